"""Holding a file or folder, so that others can tell whether a living process is at work on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What a system answers that has no such lock for this file: some network file systems, some folders.
_IMPOSSIBLE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EBADF)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder for this process alone, without waiting.

    The lock ends with the descriptor, however the process ends.

    Returns:
        True: it is held now. False: another process holds it. None: nobody can hold it here (Windows, some file
        systems).

    Raises:
        OSError: the descriptor cannot be used.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _IMPOSSIBLE:
            return None
        raise
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether ``path`` itself, not what it may link to, is what ``descriptor`` has open."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
