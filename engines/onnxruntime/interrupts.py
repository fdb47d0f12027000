"""Runs of a graph that may never end, made so that Ctrl-C and SIGTERM end them.

Python runs signal handlers on the main thread, between two of its own instructions: never while that thread is within a
library. The system's own handler, which Python installs, does write to a file descriptor at once
(``signal.set_wakeup_fd``): a thread waits there and tells the library to stop. The run itself stays on the main thread,
where it costs nothing more: waking another one for each step would take some tenths of a millisecond.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

# Those by which a user or the system ends a program, as far as there are: others come often, and mean something else.
_ENDING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)}

T = TypeVar("T")


class InterruptWatch:
    """Makes calls during which the main thread hears Ctrl-C; calls from other threads, which never do, are just made.

    Its thread starts with the first call and ends when this object is gone.
    """

    def __init__(self) -> None:
        self._watched: _Watched | None = None
        self._process = 0

    def run(self, function: Callable[[Any], T], options: Any) -> T:
        """What ``function`` returns or raises.

        Args:
            function: called with ``options``; again, if a signal's handler has returned and not raised.
            options: of the library's run; it ends soon once their attribute ``terminate`` is True.

        Raises:
            KeyboardInterrupt: or whatever a signal's handler raises; ``function`` has ended by then.
        """
        options.terminate = False
        if threading.current_thread() is not threading.main_thread():
            return function(options)
        if self._watched is None or self._process != os.getpid():  # a thread does not survive a fork
            self._start()
        watched = self._watched
        assert watched is not None
        while True:
            options.terminate = False
            watched.options = options
            before = signal.set_wakeup_fd(watched.descriptor, warn_on_full_buffer=False)
            watched.forward = before
            try:
                return function(options)
            except Exception:
                # Handlers have run by the end of this block.
                if not options.terminate:
                    raise
            finally:
                watched.options = None
                signal.set_wakeup_fd(before)

    def _start(self) -> None:
        read: Callable[[int], bytes]
        close: Callable[[], Any]
        if sys.platform == "win32":  # signals are written to sockets only there
            receiver, sender = socket.socketpair()
            sender.setblocking(False)
            read, close, descriptor = receiver.recv, sender.close, sender.fileno()
        else:
            end, descriptor = os.pipe()
            os.set_blocking(descriptor, False)
            read, close = functools.partial(os.read, end), functools.partial(os.close, descriptor)
            # When the thread has ended, which closing the other end brings about.
            weakref.finalize(read, os.close, end).atexit = False
        watched = _Watched(descriptor)
        threading.Thread(target=_wait, args=(read, watched), name="freeprompt-watch", daemon=True).start()
        weakref.finalize(self, close)
        self._watched, self._process = watched, os.getpid()


class _Watched:
    """What the thread looks at: options of the run that is under way, and who else is told of signals."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.options: Any = None
        self.forward = -1


def _wait(read: Callable[[int], bytes], watched: _Watched) -> None:
    while numbers := read(64):
        options = watched.options
        if options is not None and not _ENDING.isdisjoint(numbers):
            options.terminate = True
        if watched.forward != -1:
            with suppress(OSError):
                os.write(watched.forward, numbers)
