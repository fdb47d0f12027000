"""Files that are either whole or absent: everything is written to a temporary name and renamed.

What was written is on the disk before it gets its name. A process that is killed leaves its temporary file or folder
behind; the next one that writes the same target removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from freeprompt.contract.errors import OutputError
from freeprompt.contract.storage.durable import exchange, sync_file, sync_folder, sync_tree
from freeprompt.contract.storage.temporary import Names, Temporary, claimed, sweep

_CHUNK = 1 << 20


def file_to_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def open_regular(path: Path, most_bytes: int | None = None, follow_links: bool = True) -> Iterator[BinaryIO]:
    """Open a file to read, and nothing else: a pipe or a device would never end, or never begin.

    Args:
        most_bytes: of a file that is accepted.
        follow_links: False refuses a link.

    Raises:
        OSError: it cannot be opened, is no regular file, is larger, or is a link that is not followed; ``strerror``
            says which.
    """
    # Asked before it is opened, since opening alone can do something to a device; and after, of what was opened.
    _check_regular(path, path.stat() if follow_links else path.lstat(), most_bytes)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0)))
    with os.fdopen(descriptor, "rb") as file:
        _check_regular(path, os.fstat(descriptor), most_bytes)
        yield file


def read_regular(path: Path, most_bytes: int, follow_links: bool = True) -> bytes:
    """The bytes of a regular file of at most ``most_bytes``. Raises OSError as ``open_regular``."""
    with open_regular(path, most_bytes, follow_links) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:  # it has grown meanwhile
        raise _too_large(path, most_bytes)
    return data


@contextlib.contextmanager
def atomic_path(target: Path, follow_links: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary path beside ``target``, renamed to it when the block ends without an error.

    The temporary name keeps the suffix of ``target``, since image writers choose their format by it. A file that is
    replaced leaves its permissions to the new one; behind a link it is the file that the link names that is replaced.

    Args:
        follow_links: False refuses a target that is a link.
        mode: permissions of a file that was not there, less those that the process's mask takes away.

    Raises:
        OutputError: the folder does not exist or cannot be written, the target is something other than a file, or the
            disk is full.
    """
    temporary: Temporary | None = None
    try:
        with _names_checked(target):
            final, kept = _to_replace(target, follow_links)
            names = Names.of_file(final)
            sweep(final.parent, names)
            # Until it is complete nobody may read more than was to be read of the file it replaces.
            temporary = Temporary.file(final.parent, names, mode if kept is None else 0o600)
        yield temporary.path
        sync_file(temporary.path)
        if kept is not None:
            temporary.path.chmod(kept)
        temporary.path.replace(final)
        sync_folder(final.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.remove()


def check_writable(target: Path) -> None:
    """Raise OutputError unless ``atomic_path`` can be expected to write ``target``."""
    try:
        with _names_checked(target):
            final, _ = _to_replace(target, follow_links=True)
            Temporary.file(final.parent, Names.of_file(final), 0o600).remove()
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``target``, renamed to it when the block ends without an error.

    A folder that is replaced keeps its permissions, and is there in whole, the old or the new, at every moment; only
    where the system cannot exchange two names (Windows, some file systems) is there a moment without: a process killed
    then leaves the old one under a name that begins with ``.NAME-freeprompt-old-``, see ``restore_folder``.

    Raises:
        OutputError: ``target`` exists and ``overwrite`` is False, or it is no folder, its parent cannot be written, or
            the disk is full.
    """
    temporary: Temporary | None = None
    try:
        with _names_checked(target):
            final = Path(os.path.realpath(target))
            final.parent.mkdir(parents=True, exist_ok=True)
            restore_folder(final)
            mode = _folder_mode(target, final, overwrite)
            names = Names.of_folder(final)
            sweep(final.parent, names, *([] if mode is None else [Names.of_old(final)]))
            temporary = Temporary.folder(final.parent, names, 0o777 if mode is None else 0o700)
        yield temporary.path
        sync_tree(temporary.path)
        if mode is not None:
            temporary.path.chmod(mode)
        if os.path.lexists(final):
            _replace_folder(temporary.path, final)
        else:
            temporary.path.replace(final)
        sync_folder(final.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.remove()


def restore_folder(target: Path) -> bool:
    """Put a folder back that a process moved aside to replace it, and then was killed: True if there was one.

    Nothing is done where ``target`` is there, or a living process is about to replace it.

    Raises:
        OSError: it cannot be renamed.
    """
    final = Path(os.path.realpath(target))
    if os.path.lexists(final):
        return False
    for old in Names.of_old(final).found_in(final.parent):
        with claimed(old) as is_left:
            if is_left and not os.path.lexists(final):
                old.replace(final)
                return True
    return False


def _replace_folder(new: Path, final: Path) -> None:
    """Put ``new`` in the place of ``final``; what ``final`` was is then at ``new``, or is removed."""
    if exchange(new, final):
        return
    old = final.parent / Names.of_old(final).fresh()
    with claimed(final):  # or another process might put it back in between
        try:
            final.replace(old)
            new.replace(final)
        except BaseException:
            if os.path.lexists(old):
                old.replace(final)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _to_replace(target: Path, follow_links: bool) -> tuple[Path, int | None]:
    """Where the file will be, and the permissions of the one that is there; None: there is none."""
    if not follow_links and target.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and none is followed here; remove it")
    final = Path(os.path.realpath(target))
    try:
        mode = final.lstat().st_mode
    except FileNotFoundError:
        return final, None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        # A loop of links is its own target.
        raise OSError(errno.EINVAL, "it exists and is not a file")
    return final, stat.S_IMODE(mode) & 0o777


def _folder_mode(target: Path, final: Path, overwrite: bool) -> int | None:
    """Permissions of the folder that is there; None: there is none."""
    try:
        mode = final.lstat().st_mode
    except FileNotFoundError:
        return None
    if not overwrite:
        raise OutputError(f"{target} exists already; choose another name or ask to overwrite it")
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{target} exists and is not a folder; choose another name or remove it")
    return stat.S_IMODE(mode) & 0o777


@contextlib.contextmanager
def _names_checked(target: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a NUL, or a character that the file system has no bytes for
        raise OutputError(f"cannot write {str(target)!r}: {error}") from error


def _check_regular(path: Path, found: os.stat_result, most_bytes: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "it is a link, and none is followed here", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if most_bytes is not None and found.st_size > most_bytes:
        raise _too_large(path, most_bytes)


def _too_large(path: Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
