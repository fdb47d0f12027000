"""Files in a bundle's engines folder, each with a JSON beside it that says what is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.files import atomic_path, read_regular
from freeprompt.contract.storage.strict_json import check_json

# Metadata is some kilobytes.
MAX_METADATA_BYTES = 1 << 20

MetadataT = TypeVar("MetadataT")


@dataclass(frozen=True)
class _Versioned:
    version: int


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


@contextlib.contextmanager
def writing_with_metadata(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file, which has its name when the block ends without an error.

    The metadata of what had that name is removed: a file without any is refused, until ``save_metadata`` is called.

    Raises:
        OutputError: the folder cannot be written, or a link has the file's name.
    """
    make_folder(path.parent)
    try:
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot replace {path.with_suffix('.json')}: {error.strerror or error}") from error
    with atomic_path(path, follow_links=False) as temporary:
        yield temporary


def save_with_metadata(path: Path, content: Any, metadata: bytes) -> None:
    """Write a file and its metadata; the metadata last, since a file without it is refused.

    Args:
        content: bytes, or any buffer.

    Raises:
        OutputError: the folder cannot be written, or a link has the file's name.
    """
    with writing_with_metadata(path) as temporary:
        temporary.write_bytes(content)
    save_metadata(path, metadata)


def save_file(path: Path, content: Any) -> None:
    """Write a file into a folder that ``make_folder`` has made, whole or not at all. Raises OutputError."""
    with atomic_path(path, follow_links=False) as temporary:
        temporary.write_bytes(content)


def save_metadata(path: Path, metadata: bytes) -> None:
    """Write the metadata of a file that is there. Raises OutputError."""
    save_file(path.with_suffix(".json"), metadata)


def read_metadata(path: Path) -> bytes:
    """The metadata of a file.

    Raises:
        BackendError: none, not a regular file, or too large to be one; or one of the two is a link.
    """
    metadata = path.with_suffix(".json")
    if path.is_symlink():
        raise BackendError("it is a link: not built by freeprompt")
    try:
        return read_regular(metadata, MAX_METADATA_BYTES, follow_links=False)
    except FileNotFoundError:
        raise BackendError("it has no metadata: not built by freeprompt, or the build was cut off") from None
    except OSError as error:
        raise BackendError(f"its metadata cannot be read: {error.strerror or error}") from error


def encode_metadata(metadata: Any) -> bytes:
    """Metadata as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(metadata), indent=1) + b"\n"


def decode_metadata(data: bytes, kind: type[MetadataT], version: int) -> MetadataT:
    """Metadata of that kind, a dataclass with a field ``version``.

    Raises:
        BackendError: it is none, or of another version.
    """
    try:
        check_json(data)
        # First, since another version has other fields.
        found = msgspec.json.decode(data, type=_Versioned).version
        if found == version:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BackendError(f"its metadata cannot be read: {str(error)[:500]}") from error
    raise BackendError(f"its metadata has version {found}, this freeprompt reads {version}; build it again")
