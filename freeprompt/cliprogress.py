"""Where a command stands, on the standard error; how long its stages took, at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from freeprompt.cliguard import check_interrupted

if TYPE_CHECKING:
    from freeprompt.editor import Progress

# How often a line is shown: on a terminal it replaces the last, in a log it stays.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.1, 10.0


class Stages:
    """Times named stages and shows the steps within them.

    Args:
        quiet: show nothing; interrupts are looked for either way.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = 0.0
        self._width = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to that of the stage ``name``."""
        start = time.perf_counter()
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
        line = f"{progress.stage}: step {progress.step}/{progress.steps}"
        self._show(line, always=progress.step in (1, progress.steps))

    def line(self, text: str) -> None:
        """A line that stays."""
        check_interrupted()
        if not self.quiet:
            self.clear()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line that stands on the terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def summary(self) -> str:
        """ "loading 0.4 s, inversion 3.1 s, ...; 9.0 s in all"."""
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{each}; {sum(self.seconds.values()):.1f} s in all"

    def report(self, *lines: object) -> None:
        """What was done, and the times, on the standard output; nothing where quiet."""
        if not self.quiet:
            print(*lines, self.summary(), sep="\n")

    def _show(self, text: str, always: bool) -> None:
        now = time.monotonic()
        wait = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        if self.quiet or not (always or now - self._shown >= wait):
            return
        self._shown = now
        if self._terminal:
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)
