"""A bundle copied to where its engines are to be built, as a whole that can be shipped."""

from __future__ import annotations

import hashlib
from pathlib import Path

from freeprompt.contract.bundle import MAX_MANIFEST_BYTES, Bundle
from freeprompt.contract.errors import BundleError, OutputError
from freeprompt.contract.files import atomic_folder, read_regular
from freeprompt.contract.manifest import MANIFEST_NAME


def copy_bundle(bundle: Bundle, target: Path) -> Bundle:
    """The same bundle at ``target``: copied there, without its engines, unless it is there already.

    Raises:
        BundleError: a file of it was changed since it was opened.
        OutputError: something else is at ``target``, or it cannot be written.
    """
    if target.exists():
        try:
            found = Bundle.open(target)
        except BundleError as error:
            raise OutputError(f"{target} exists and is no bundle ({error}); choose another name") from error
        if found.sha256 != bundle.sha256:
            raise OutputError(f"{target} is another bundle than {bundle.path}; choose another name")
        return found
    with atomic_folder(target) as folder:
        for spec in bundle.manifest.files:
            path = folder / spec.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bundle.files.view(spec.path))
        manifest = read_regular(bundle.path / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        if hashlib.sha256(manifest).hexdigest() != bundle.sha256:
            raise BundleError(f"{MANIFEST_NAME} was changed while the bundle was open: copy the bundle again")
        (folder / MANIFEST_NAME).write_bytes(manifest)
    return Bundle.open(target, verify=False)
