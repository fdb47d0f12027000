"""Where a command stands, on the standard error; how long its stages took, at the end."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from freeprompt.cli.guard import check_interrupted
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.editor import Progress

# How often a line is shown: on a terminal it replaces the last, in a log it stays.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.1, 10.0
# How often the time is shown that the step after a line takes.
_TICK_SECONDS = 1.0


class Stages:
    """Times named stages and shows the steps within them.

    Args:
        quiet: show nothing; interrupts are looked for either way.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        # Kept: the libraries of the export are silenced by putting another in its place.
        self._stream = sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()
        self._lock = threading.RLock()
        self._line = ("", 0.0)
        self._shown = 0.0
        self._width = 0
        self._clock = _Clock()

    @contextlib.contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[None]:
        """Add the time of the block to that of the stage ``name``; ``steps``: how many there are in it, if known."""
        start = time.perf_counter()
        self._clock = _Clock(steps)
        if self._terminal:
            self._show(f"{name} ...", always=True)
        try:
            yield
        finally:
            self.clear()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        check_interrupted()

    def step(self, progress: Progress) -> None:
        """The callback for Editor."""
        check_interrupted()
        done, steps, left = self._clock.step(progress)
        line = f"{progress.stage}: step {done}/{steps}"
        self._show(line + (f", {duration(left)} left" if left else ""), always=done in (1, steps))

    def line(self, text: str) -> None:
        """A line that stays."""
        check_interrupted()
        if not self.quiet:
            with self._lock:
                self.clear()
                self._line = (text, time.monotonic())
                self._print(escaped(text))

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Show on a terminal, below each ``line``, for how long it has been so: some of the work reports nothing."""
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(_TICK_SECONDS):
                text, start = self._line
                if text:
                    with self._lock:
                        minutes, seconds = divmod(int(time.monotonic() - start), 60)
                        self._show(f"  {minutes}:{seconds:02d}", always=True)

        thread = threading.Thread(target=tick, name="progress", daemon=True)
        if self._terminal and not self.quiet:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()
            self.clear()

    def clear(self) -> None:
        """Wipe the line that stands on the terminal."""
        with self._lock:
            if self._width:
                self._print("\r" + " " * self._width + "\r", end="")
                self._width = 0

    def summary(self) -> str:
        """ "loading 0.4 s, inversion 3.1 s, ...; 9.0 s in all"."""
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{each}; {sum(self.seconds.values()):.1f} s in all"

    def report(self, *lines: object) -> None:
        """What was done, and the times, on the standard output; nothing where quiet."""
        if not self.quiet:
            print(*(escaped(str(line)) for line in lines), self.summary(), sep="\n")

    def _show(self, text: str, always: bool) -> None:
        now = time.monotonic()
        wait = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        if self.quiet or not (always or now - self._shown >= wait):
            return
        self._shown = now
        if self._terminal:
            self._print("\r" + text.ljust(self._width), end="")
            self._width = max(self._width, len(text))
        else:
            self._print(text)

    def _print(self, text: str, end: str = "\n") -> None:
        if self._stream is None:  # print would take the standard output in its place
            return
        try:
            print(text, end=end, file=self._stream, flush=True)
        except (OSError, ValueError):  # a full disk, a reader that has gone: the work does not depend on it
            self._stream = None


class _Clock:
    """Counts the steps of a stage and says how long the others will take, all being alike.

    Args:
        steps: of the stage, if a plan says so; else those of the computation that reports them.
    """

    def __init__(self, steps: int | None = None) -> None:
        self._steps = steps
        self._done = 0
        self._first = ("", 0, 0.0)  # the computation, and how many steps were done when

    def step(self, progress: Progress) -> tuple[int, int, float]:
        """Steps done, steps in all, and seconds left: 0.0 where they cannot be told yet, or no longer need to."""
        now = time.monotonic()
        self._done = self._done + 1 if self._steps else progress.step
        steps = self._steps or progress.steps
        name, first, start = self._first
        if progress.stage != name or self._done <= first:
            self._first = (progress.stage, self._done, now)
            return self._done, steps, 0.0
        return self._done, steps, (now - start) / (self._done - first) * (steps - self._done)


def duration(seconds: float) -> str:
    """ "8 s", "3 min", "2.5 h": as exact as a forecast is."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
