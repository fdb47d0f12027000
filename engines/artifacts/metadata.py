"""Files in a bundle's engines folder, each with a JSON beside it that says what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.files import atomic_path, read_regular
from freeprompt.contract.storage.strict_json import check_json

# A sidecar is some kilobytes.
MAX_SIDECAR_BYTES = 1 << 20

RecordT = TypeVar("RecordT")


def make_folder(folder: Path) -> None:
    """Make a folder of the bundle's engines folder, and that, if they are not there.

    Raises:
        OutputError: they cannot be made, or are links: what is written must stay inside the bundle.
    """
    for each in (folder.parent, folder):
        if each.is_symlink():
            raise OutputError(f"cannot write engines to {folder}: {each} is a link to outside the bundle; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write engines to {folder}: {error.strerror or error}") from error


def save_with_sidecar(path: Path, content: Any, sidecar: bytes) -> None:
    """Write a file and its sidecar; the sidecar last, since a file without one is refused.

    Args:
        content: bytes, or any buffer.

    Raises:
        OutputError: the folder cannot be written, or a link has the file's name.
    """
    make_folder(path.parent)
    try:
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot replace {path.with_suffix('.json')}: {error.strerror or error}") from error
    save_file(path, content)
    save_sidecar(path, sidecar)


def save_file(path: Path, content: Any) -> None:
    """Write a file into a folder that ``make_folder`` has made, whole or not at all. Raises OutputError."""
    with atomic_path(path, follow_links=False) as temporary:
        temporary.write_bytes(content)


def save_sidecar(path: Path, sidecar: bytes) -> None:
    """Write the sidecar of a file that is there. Raises OutputError."""
    save_file(path.with_suffix(".json"), sidecar)


def read_sidecar(path: Path) -> bytes:
    """The sidecar of a file.

    Raises:
        BackendError: none, not a regular file, or too large to be one; or one of the two is a link.
    """
    sidecar = path.with_suffix(".json")
    if path.is_symlink():
        raise BackendError("it is a link: not built by freeprompt")
    try:
        return read_regular(sidecar, MAX_SIDECAR_BYTES, follow_links=False)
    except FileNotFoundError:
        raise BackendError("it has no sidecar: not built by freeprompt, or the build was cut off") from None
    except OSError as error:
        raise BackendError(f"its sidecar cannot be read: {error.strerror or error}") from error


def record_to_sidecar(record: Any) -> bytes:
    """A record as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def sidecar_to_record(data: bytes, kind: type[RecordT], version: int) -> RecordT:
    """The record of that kind, a dataclass with a field ``version``.

    Raises:
        BackendError: it is none, or of another version.
    """
    try:
        check_json(data)
        record = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BackendError(f"its sidecar cannot be read: {str(error)[:500]}") from error
    found = getattr(record, "version", None)
    if found != version:
        raise BackendError(f"its sidecar has version {found}, this freeprompt reads {version}; build it again")
    return record
