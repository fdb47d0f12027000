"""What surrounds a command: interrupts, warnings and errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable

from freeprompt.errors import FreePromptError, UsageError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import TextIO

DONE, FAILED, WRONG_USE = 0, 1, 2
# By convention a program that a signal ended exits with 128 + the signal's number.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# An impatient user presses the keys again; while the first interrupt cleans up, that must go on.
_GRACE_SECONDS = 5.0


class _Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt; remembers what a library swallows."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._last = 0.0
        self._held = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        ):
            # Whoever ignores a signal (nohup) or has a handler of his own keeps it.
            if signal.getsignal(number) is default:
                self._before[number] = signal.signal(number, self._handle)

    def remove(self, ending: bool) -> None:
        """Put the handlers back; where the process ends anyway, ignore signals until it has."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if ending else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now, last = time.monotonic(), self._last
        first = self.received is None
        self.received, self._last = number, now
        if not self._held and (first or now - last > _GRACE_SECONDS):
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.check()

    def check(self) -> None:
        if self.received is not None and not self._held:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def hold_interrupts() -> contextlib.AbstractContextManager[None]:
    """Within it an interrupt waits for the end of the block: for short writes."""
    return _interrupts.held()


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if one came that a library swallowed."""
    _interrupts.check()


def guarded(run: Callable[[], None], owns_process: bool) -> int:
    """Run a command and translate however it ends into an exit code."""
    global _interrupts
    _interrupts = interrupts = _Interrupts()
    hook = sys.unraisablehook
    try:
        interrupts.install()
        sys.unraisablehook = _quiet_hook(hook)
        if owns_process:
            _make_streams_safe()
        with warnings.catch_warnings():
            _show_warnings_as_lines()
            code = _translated(run, interrupts)
    except KeyboardInterrupt:
        code = _ended_by(interrupts)
    finally:
        sys.unraisablehook = hook
        interrupts.remove(ending=owns_process)
    if owns_process and interrupts.received is not None:
        _end_beside_a_busy_library(code)
    return code


def _end_beside_a_busy_library(code: int) -> None:
    """End now where a library did not stop: ending as usual takes apart what it works with, and it aborts."""
    from freeprompt.engines.stoppable import left_behind

    if left_behind():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _translated(run: Callable[[], None], interrupts: _Interrupts) -> int:
    try:
        with contextlib.suppress(SystemExit):  # after --help and --version
            run()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    except KeyboardInterrupt:
        return _ended_by(interrupts)
    except BrokenPipeError:
        # The reader has enough. Python would complain again when it flushes at the end.
        _point_to_nothing()
        return FAILED
    except BaseException as error:
        # An import or a callback that an interrupt broke can come out as any other error.
        if interrupts.received is not None:
            return _ended_by(interrupts)
        return _failed(error)
    return DONE


def _failed(error: BaseException) -> int:
    if os.environ.get("FREEPROMPT_DEBUG") == "1":
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, FreePromptError):
        say_error(f"error: {error}")
        return WRONG_USE if isinstance(error, UsageError) else FAILED
    if isinstance(error, MemoryError):
        say_error("error: not enough memory; use fewer prompts at once, or a smaller --size")
    elif isinstance(error, OSError) and error.filename is None and error.errno is not None:
        # Files are opened with their names; what has none is the standard output.
        say_error(f"error: cannot write the output: {error.strerror}")
        _point_to_nothing()
    else:
        say_error(
            f"error: unexpected {type(error).__name__}: {error} -- please report this, "
            "with the output under FREEPROMPT_DEBUG=1"
        )
    return FAILED


def _ended_by(interrupts: _Interrupts) -> int:
    number = interrupts.received or signal.SIGINT
    say_error(SIGNALS[signal.Signals(number)])
    return 128 + number


def say_error(message: str) -> None:
    """One line on the standard error, whatever the message holds."""
    with contextlib.suppress(OSError, ValueError):
        print(f"freeprompt: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    """Runs of white space, line ends among them, as one space; other control characters escaped."""
    joined = " ".join(message.split())
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in joined)


def _show_warnings_as_lines() -> None:
    if os.environ.get("FREEPROMPT_DEBUG") != "1":
        # Libraries warn of their own affairs; only what freeprompt says is for the user.
        warnings.simplefilter("ignore")
    from freeprompt.errors import PromptTruncatedWarning

    warnings.simplefilter("always", PromptTruncatedWarning)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say_error(f"warning: {message}")

    warnings.showwarning = show


def _quiet_hook(
    hook: Callable[[UnraisableHookArgs], Any],
) -> Callable[[UnraisableHookArgs], None]:
    """Python prints a traceback of what a destructor raises; an interrupt there is remembered."""

    def quiet(args: UnraisableHookArgs) -> None:
        kind: type[BaseException] = args.exc_type
        if not issubclass(kind, KeyboardInterrupt):
            hook(args)

    return quiet


def _make_streams_safe() -> None:
    # A prompt may hold characters that the terminal's encoding lacks; printing must not fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _point_to_nothing() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = [
    "DONE",
    "FAILED",
    "WRONG_USE",
    "check_interrupted",
    "guarded",
    "hold_interrupts",
    "one_line",
    "say_error",
]
