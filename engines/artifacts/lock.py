"""One build of a thing at a time."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.storage.locks import try_lock

LOCK_SECONDS = 7200.0
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def folder_lock(
    folder: Path, name: str, timeout: float = LOCK_SECONDS, waiting: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold the build of ``name`` in a folder that exists: a second process waits and finds what the first has built.

    Where there are no locks (Windows, some network file systems) two builds at once cost time, and the later wins
    whole.

    Args:
        waiting: told once, where another process holds it.

    Raises:
        BackendError: not given within ``timeout`` seconds.
        OutputError: the lock file cannot be made, or is something else: it is neither followed nor emptied.
    """
    descriptor = _open_lock(folder / f".{name}.lock")
    try:
        end = time.monotonic() + timeout
        told = False
        while try_lock(descriptor) is False:
            if not told:
                waiting(f"another process is building {name}; waiting for it")
                told = True
            if time.monotonic() > end:
                raise BackendError(
                    f"another process has been building {name} for {timeout:.0f} s; wait for it or end it"
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        reason = "it is a link; remove it" if path.is_symlink() else error.strerror
        raise OutputError(f"cannot lock {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OutputError(f"cannot lock {path}: it is not a file; remove it")
    return descriptor
