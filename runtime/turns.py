"""Whose turn it is: sessions are not for two threads at once, a server has many."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from freeprompt.contract.errors import UsageError


class Turns:
    """One call at a time, and within it one user of the graphs at a time.

    A call has the graphs except while its callback runs (``pause``): then previews may be decoded, by whichever thread.
    """

    def __init__(self) -> None:
        self._calls = threading.Lock()
        self._graphs = threading.Lock()
        self._caller: int | None = None
        self._running = False

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Wait until no other thread is in a call.

        Raises:
            UsageError: this thread is in a call, whose callback made another one.
        """
        # Only this thread can have put its own number there.
        if self._caller == threading.get_ident():
            raise UsageError(
                "this editor is in the middle of a call, and a callback cannot start another one on it: "
                "let the callback return first, or use another Editor"
            )
        with self._calls:
            self._caller = threading.get_ident()
            try:
                self._take()
                yield
            finally:
                self._leave()
                self._caller = None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Within a call: leave the graphs to others for a while."""
        self._leave()
        try:
            yield
        finally:
            self._take()

    def graphs(self) -> contextlib.AbstractContextManager[bool]:
        """Use the graphs outside a call, or in its callback."""
        return self._graphs

    def _take(self) -> None:
        self._graphs.acquire()
        self._running = True

    def _leave(self) -> None:
        # An interrupt may have come while a paused call waited to go on.
        if self._running:
            self._running = False
            self._graphs.release()
