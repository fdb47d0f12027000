"""What the operating system does to make a change whole and lasting: writing through to the disk, exchanging names."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

_RENAME_EXCHANGE = 2  # Linux's RENAME_EXCHANGE and macOS's RENAME_SWAP alike
_AT_FDCWD = -100
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk. Raises OSError."""
    # Windows writes through only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows; a folder that may be written and not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until everything in a folder is on the disk. Raises OSError."""
    for folder, _, files in os.walk(path):
        for file in (Path(folder, name) for name in files):
            if stat.S_ISREG(file.lstat().st_mode):
                sync_file(file)
        sync_folder(Path(folder))


def exchange(one: Path, other: Path) -> bool:
    """Let two names trade what they stand for, in one step. Both must be there, on one file system.

    Returns:
        False: nothing was done, because the system or file system has no such step.

    Raises:
        OSError: it has, and failed.
    """
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if sys.platform == "linux":
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
        elif sys.platform == "darwin":
            failed = library.renamex_np(*names, _RENAME_EXCHANGE)
        else:
            return False
    except (ImportError, AttributeError, TypeError):  # no ctypes, a C library without the call, Windows
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
