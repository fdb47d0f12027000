"""What a command shows of its progress, and where."""

from __future__ import annotations

import contextlib
import io
import re
import time

import pytest

from freeprompt import cliprogress
from freeprompt.cliprogress import Stages


class Screen(io.StringIO):
    """A standard error that is a terminal, or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_a_long_step_ticks_on_a_terminal(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the libraries of the export are silenced by redirecting the standard error."""
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(cliprogress, "_TICK_SECONDS", 0.005)
    stages = Stages(quiet)
    with stages.ticking():
        time.sleep(0.05)
        assert screen.getvalue() == "", "no work has been named yet"
        stages.line("tracing")
        with contextlib.redirect_stderr(io.StringIO()) as silenced:
            deadline = time.monotonic() + (10 if terminal and not quiet else 0.1)
            while time.monotonic() < deadline and "0:01" not in screen.getvalue():
                time.sleep(0.005)
        stages.line("done")
    shown = screen.getvalue()
    assert silenced.getvalue() == ""
    if not terminal:
        assert shown == "tracing\ndone\n"
    elif quiet:
        assert shown == ""
    else:
        assert shown.startswith("tracing\n")
        assert re.search(r"\r  0:00(\r  0:00)*\r  0:01", shown), shown[:200]
        # What stands on the screen in the end: every time has been wiped.
        assert [line.rpartition("\r")[2] for line in shown.split("\n")] == ["tracing", "done", ""]
    time.sleep(0.05)
    assert screen.getvalue() == shown, "the ticking goes on after its end"
