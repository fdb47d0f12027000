"""Files in a bundle's engines folder, each with a JSON beside it that says what is known of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from freeprompt.errors import BackendError, OutputError
from freeprompt.files import atomic_path

# A sidecar is some kilobytes.
MAX_SIDECAR_BYTES = 1 << 20

RecordT = TypeVar("RecordT")


def make_folder(folder: Path) -> None:
    """Raises OutputError if it is not there and cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write engines to {folder}: {error}") from error


def save_with_sidecar(path: Path, content: Any, sidecar: bytes) -> None:
    """Write a file and its sidecar; the sidecar last, since a file without one is refused.

    Args:
        content: bytes, or any buffer.

    Raises:
        OutputError: the folder cannot be written.
    """
    make_folder(path.parent)
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    save_sidecar(path, sidecar)


def save_sidecar(path: Path, sidecar: bytes) -> None:
    """Write the sidecar of a file that is there. Raises OutputError."""
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(sidecar)


def read_sidecar(path: Path) -> bytes:
    """The sidecar of a file.

    Raises:
        BackendError: none, or too large to be one.
        OSError: it cannot be read.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise BackendError("it has no sidecar: not built by freeprompt, or the build was cut off")
    data = read_plain(sidecar, MAX_SIDECAR_BYTES)
    if len(data) > MAX_SIDECAR_BYTES:
        raise BackendError("its sidecar is too large to be one")
    return data


def read_plain(path: Path, limit: int) -> bytes:
    """A plain file in one reading, cut one byte after ``limit``: whoever checks the length sees that it is longer.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no plain file")
        # Not more than there is: Python reserves what it is asked for.
        return file.read(min(limit, found.st_size) + 1)


def record_to_sidecar(record: Any) -> bytes:
    """A record as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def sidecar_to_record(data: bytes, kind: type[RecordT], version: int) -> RecordT:
    """The record of that kind, a dataclass with a field ``version``.

    Raises:
        BackendError: it is none, or of another version.
    """
    try:
        record = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError(f"its sidecar cannot be read: {error}") from error
    found = getattr(record, "version", None)
    if found != version:
        raise BackendError(f"its sidecar has version {found}, this freeprompt reads {version}; build it again")
    return record
