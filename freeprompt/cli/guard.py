"""What surrounds a command: interrupts, warnings and errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from freeprompt.cli.message import in_options
from freeprompt.contract.errors import Cancelled, FreePromptError, FreePromptWarning, UsageError
from freeprompt.contract.text import one_line

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import TextIO

DONE, FAILED, WRONG_USE = 0, 1, 2
# By convention a program that a signal ended exits with 128 + the signal's number.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    SIGNALS[signal.SIGHUP] = "hung up"
# An impatient user presses the keys again; while the first interrupt cleans up, that must go on.
_GRACE_SECONDS = 5.0


class _Interrupts:
    """Turns the signals that end a program into KeyboardInterrupt; remembers what a library swallows."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._last = 0.0
        self._held = 0
        self._cancellable = self._hurried = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            # Whoever ignores a signal (nohup) or has a handler of his own keeps it.
            if signal.getsignal(number) is default:
                self._before[number] = signal.signal(number, self._handle)

    def remove(self, ending: bool) -> None:
        """Put the handlers back; where the process ends anyway, ignore signals until it has."""
        for number, handler in self._before.items():
            wanted = signal.SIG_IGN if ending else handler
            # A signal that came before the one just ignored is an OSError of Python's, once: then again.
            with contextlib.suppress(OSError):
                signal.signal(number, wanted)
                continue
            signal.signal(number, wanted)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now, last = time.monotonic(), self._last
        first = self.received is None
        self.received, self._last = number, now
        if self._cancellable:
            # The first Ctrl-C waits for check(), where nothing is half done. No grace here: whoever presses again
            # does not want to wait.
            self._hurried = not first
            if not self._held and (self._hurried or number != signal.SIGINT):
                raise KeyboardInterrupt
        elif not self._held and (first or now - last > _GRACE_SECONDS):
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if not self._cancellable:
            self.check()

    @contextlib.contextmanager
    def cancellable(self, abandon: Callable[[], object]) -> Iterator[None]:
        self.check()
        self._cancellable, self._hurried = True, False
        try:
            yield
        except BaseException as error:
            if self.received != signal.SIGINT:
                raise
            raise Cancelled("cancelled") from error
        finally:
            self._cancellable = False
            if self.received == signal.SIGINT:
                self.received = None
            if self._hurried:
                abandon()
        self.check()

    def check(self) -> None:
        if self.received is not None and not self._held:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def hold_interrupts() -> contextlib.AbstractContextManager[None]:
    """Within it an interrupt waits for the end of the block: for short writes."""
    return _interrupts.held()


def cancellable(abandon: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Within it Ctrl-C cancels the block and not the command: Cancelled is raised, and the next one counts anew.

    The first is seen by ``check_interrupted`` alone, that is between steps; a second breaks off wherever it comes, and
    ``abandon`` is called to drop what may be half done then. One that comes as the block ends is forgotten.
    """
    return _interrupts.cancellable(abandon)


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
    if owns_process:
        _drop_what_cannot_be_written(sys.stderr)
    if owns_process and interrupts.received is not None:
        _end_beside_a_busy_library(code)
    return code


def _end_beside_a_busy_library(code: int) -> None:
    """End now where a library did not stop: ending as usual takes apart what it works with, and it aborts."""
    from freeprompt.engines.onnxruntime.stoppable import left_behind

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
        _point_to_nothing(sys.stdout)
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
        say_failure(error)
        return WRONG_USE if isinstance(error, UsageError) else FAILED
    if isinstance(error, MemoryError):
        say_error("error: not enough memory; use fewer prompts at once, or a smaller --size")
    elif isinstance(error, OSError) and error.filename is None and error.errno is not None:
        # Files are opened with their names; what has none is the standard output.
        say_error(f"error: cannot write the output: {error.strerror}")
        _point_to_nothing(sys.stdout)
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


def say_failure(error: FreePromptError) -> None:
    """The line of an error; of wrong use it names options, not arguments of the API."""
    say_error(f"error: {in_options(str(error)) if isinstance(error, UsageError) else error}")


def say_error(message: str) -> None:
    """One line on the standard error, whatever the message holds."""
    if sys.stderr is None:  # closed; print would take the standard output in its place
        return
    with contextlib.suppress(OSError, ValueError):
        print(f"freeprompt: {one_line(message)}", file=sys.stderr, flush=True)


def _show_warnings_as_lines() -> None:
    if os.environ.get("FREEPROMPT_DEBUG") != "1":
        # Libraries warn of their own affairs; only what freeprompt says is for the user.
        warnings.simplefilter("ignore")
    warnings.simplefilter("always", FreePromptWarning)
    # What is checked before the work is met again in it.
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        words = in_options(str(message)) if issubclass(category, FreePromptWarning) else str(message)
        if words not in said:
            said.add(words)
            say_error(f"warning: {words}")

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


def _point_to_nothing(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def _drop_what_cannot_be_written(stream: TextIO | None) -> None:
    """Python ends with 120 where the stream still holds something at its own end that nobody takes."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        _point_to_nothing(stream)


__all__ = [
    "DONE",
    "FAILED",
    "WRONG_USE",
    "cancellable",
    "check_interrupted",
    "guarded",
    "hold_interrupts",
    "say_error",
    "say_failure",
]
