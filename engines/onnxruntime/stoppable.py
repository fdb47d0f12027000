"""A call into a library that may never return, made so that Ctrl-C and SIGTERM are heard meanwhile.

For what happens once, as loading a graph: on a thread of its own, which can be left behind where the library does not
stop. What happens at each step is watched (``interrupts``). A library that keeps Python's lock meanwhile, as
onnxruntime 1.26 and earlier do, lets nothing be heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

# On Windows a wait is not interrupted; there a signal is heard at the next one.
_LISTEN_SECONDS = 0.1
# A library that was told to stop does at the end of what it is at.
GRACE_SECONDS = 2.0
_NAME, _LEFT = "freeprompt-call", "freeprompt-call-left"

T = TypeVar("T")


def call_stoppable(function: Callable[[], T], stop: Callable[[], None]) -> T:
    """What ``function`` returns or raises: on another thread where the caller is the main thread, else directly.

    Args:
        function: not to touch what belongs to the main thread.
        stop: makes it end soon, from the main thread while it runs.

    Raises:
        KeyboardInterrupt: or whatever a signal's handler raises; ``function`` has ended by then, or has not within
            ``GRACE_SECONDS`` and is left behind with the thread that it keeps busy.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    call = _Call(function)
    # A daemon: one that is left behind must not keep the process from its end.
    thread = threading.Thread(target=call.make, name=_NAME, daemon=True)
    try:
        thread.start()
        while not call.done.acquire(timeout=_LISTEN_SECONDS):
            pass
    except BaseException:
        stop()
        if not call.ended and not call.done.acquire(timeout=GRACE_SECONDS):
            thread.name = _LEFT
        raise
    thread.join()
    result: T = call.result()
    return result


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
        self._function = None
        self.ended = True
        self.done.release()

    def result(self) -> Any:
        if self._error is not None:
            try:
                raise self._error
            finally:
                # Else the error's traceback and this object would hold each other, and what every frame holds.
                self._error = None
        return self._result
