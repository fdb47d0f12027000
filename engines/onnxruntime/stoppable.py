"""Calls into a library that may never return, made so that Ctrl-C and SIGTERM are heard meanwhile.

Python runs signal handlers on the main thread, between two of its own instructions: never while that thread is within a
library. So the library is called on another thread, and the main thread waits where handlers can run.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

# On Windows a wait is not interrupted; there a signal is heard at the next one.
_LISTEN_SECONDS = 0.1
# A library that was told to stop does at the end of the operator that it is in.
GRACE_SECONDS = 2.0
_NAME, _LEFT = "freeprompt-calls", "freeprompt-calls-left"

T = TypeVar("T")


class StoppableCalls:
    """Makes calls on a thread of its own, one after the other, where the caller is the main thread; else directly.

    The thread starts with the first call and ends when this object is gone.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] | None = None
        self._end: Callable[[], Any] = lambda: None
        self._process = 0

    def run(self, function: Callable[[], T], stop: Callable[[], None]) -> T:
        """What ``function`` returns or raises.

        Args:
            function: not to touch what belongs to the main thread.
            stop: makes it end soon, from the main thread while it runs.

        Raises:
            KeyboardInterrupt: or whatever a signal's handler raises; ``function`` has ended by then, or has not within
                ``GRACE_SECONDS`` and is left behind with the thread that it keeps busy.
        """
        if threading.current_thread() is not threading.main_thread():
            return function()
        if self._calls is None or self._process != os.getpid():  # a thread does not survive a fork
            self._start()
        assert self._calls is not None
        call = _Call(function)
        try:
            self._calls.put(call)
            while not call.done.acquire(timeout=_LISTEN_SECONDS):
                pass
        except BaseException:
            stop()
            if not call.ended and not call.done.acquire(timeout=GRACE_SECONDS):
                self._leave()
            raise
        result: T = call.result()
        return result

    def _start(self) -> None:
        calls: SimpleQueue[_Call | None] = SimpleQueue()
        # A daemon: one that is left behind must not keep the process from its end.
        self._thread = threading.Thread(target=_serve, args=(calls,), name=_NAME, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, calls.put, None)
        self._calls, self._process = calls, os.getpid()

    def _leave(self) -> None:
        """Let the thread end with the call that it is in; the next call gets another."""
        self._end()
        self._calls = None
        self._thread.name = _LEFT


def left_behind() -> bool:
    """Whether a library is still busy with a call that was given up.

    A process that ends as usual then takes apart what the library works with; it does better to end at once
    (``os._exit``).
    """
    return any(thread.name == _LEFT for thread in threading.enumerate())


class _Call:
    """A call and how it ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.ended = False
        self.done = threading.Lock()
        self.done.acquire()

    def make(self) -> None:
        assert self._function is not None
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._function = None  # it holds arrays
        self.ended = True
        self.done.release()

    def result(self) -> Any:
        if self._error is not None:
            try:
                raise self._error
            finally:
                # Else the error's traceback and this object would hold each other, and the arrays of every frame.
                self._error = None
        return self._result


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while True:
        call = calls.get()
        if call is None:
            return
        call.make()
        del call  # or it would live until the next one comes
