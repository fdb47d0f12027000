"""One build of a thing at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from freeprompt.errors import BackendError

LOCK_SECONDS = 7200.0
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def folder_lock(folder: Path, name: str, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the build of ``name`` in a folder that exists: a second process waits and finds what the first has built.

    Raises:
        BackendError: not given within ``timeout`` seconds.
    """
    path = folder / f".{name}.lock"
    try:
        import fcntl
    except ImportError:  # not on Windows; two builds at once then cost time, and the later wins whole
        yield
        return
    with path.open("w") as file:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BackendError(
                        f"another process has been building {name} for {timeout:.0f} s; wait for it or end it"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
