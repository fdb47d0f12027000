"""Making damaged bundles: a copy whose manifest is edited as JSON, with its checksums put right where asked."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ZEROS = "0" * 64


def copy_bundle(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    return target


def read_manifest(bundle: Path) -> Json:
    manifest: Json = json.loads((bundle / "manifest.json").read_bytes())
    return manifest


def seal(text: str) -> bytes:
    """Put the checksum of a manifest's text in place of its (first) 64 zeros."""
    return text.replace(ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def write_manifest(bundle: Path, manifest: Json) -> None:
    """Write it with the right checksum, so that what it says is looked at."""
    if "manifest_sha256" in manifest:
        manifest = {**manifest, "manifest_sha256": ZEROS}
    (bundle / "manifest.json").write_bytes(seal(json.dumps(manifest)))


def edit_manifest(bundle: Path, edit: Callable[[Json], Any]) -> None:
    manifest = copy.deepcopy(read_manifest(bundle))
    edit(manifest)
    write_manifest(bundle, manifest)


def rehash(bundle: Path) -> None:
    """Make the manifest's sizes and hashes those of the files that are there."""

    def edit(manifest: Json) -> None:
        for file in manifest["files"]:
            data = (bundle / file["path"]).read_bytes()
            file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(bundle, edit)
