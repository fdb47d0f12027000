"""What a command shows of its progress, and where."""

from __future__ import annotations

import contextlib
import errno
import io
import re
import time

import pytest

from freeprompt.cli.stages import Stages, duration
from freeprompt.runtime.progress import Progress


class Full(io.StringIO):
    """A stream on a disk that is full, or whose reader has gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


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
    monkeypatch.setattr("freeprompt.cli.stages._TICK_SECONDS", 0.005)
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


def report_steps(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    seconds: list[float],
    steps: list[Progress],
    total: int | None = None,
) -> list[str]:
    """What is shown where the steps come at these times; the lines of a terminal one below the other."""
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    clock = iter(seconds)
    stages = Stages(quiet=False)
    with stages.stage("editing", total):
        for step in steps:
            now = next(clock)
            monkeypatch.setattr("freeprompt.cli.stages.time.monotonic", lambda now=now: now)
            stages.step(step)
    shown = screen.getvalue().replace("\r", "\n").splitlines()
    return [line.rstrip() for line in shown if line.strip() and "..." not in line]


def step(stage: str, number: int, steps: int) -> Progress:
    return Progress(stage, number, steps, list)


def test_a_terminal_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step("edit", n, 5) for n in range(1, 6)]
    assert report_steps(monkeypatch, True, [100, 102, 104, 107, 110], steps) == [
        "edit: step 1/5",
        "edit: step 2/5, 6 s left",
        "edit: step 3/5, 4 s left",
        "edit: step 4/5, 2 s left",
        "edit: step 5/5",
    ]


def test_a_log_has_a_line_every_ten_seconds_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step("edit", n, 100) for n in range(1, 8)]
    shown = report_steps(monkeypatch, False, [100, 104, 108, 112, 116, 120, 124], steps)
    assert shown == ["edit: step 1/100", "edit: step 4/100, 6 min left", "edit: step 7/100, 6 min left"]


def test_prompts_edited_in_turn_are_counted_as_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of steps must not begin at 1 again, nor the time left leave it out."""
    steps = [step("edit", n, 2) for n in (1, 2, 1, 2)]
    assert report_steps(monkeypatch, True, [100, 101, 102, 103], steps, total=4) == [
        "edit: step 1/4",
        "edit: step 2/4, 2 s left",
        "edit: step 3/4, 1 s left",
        "edit: step 4/4",
    ]


def test_two_computations_in_one_stage_are_timed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step(name, n, 3) for name in ("generation", "edit") for n in (1, 2, 3)]
    assert report_steps(monkeypatch, True, [100, 101, 102, 110, 112, 114], steps) == [
        "generation: step 1/3",
        "generation: step 2/3, 1 s left",
        "generation: step 3/3",
        "edit: step 1/3",
        "edit: step 2/3, 2 s left",
        "edit: step 3/3",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (8.4, "8 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("stream", [Full(), None])
def test_progress_that_cannot_be_written_stops_nothing(
    stream: Full | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    stages = Stages(quiet=False)
    with stages.stage("editing"), stages.ticking():
        stages.line("a line")
        stages.step(step("edit", 1, 2))
        stages.step(step("edit", 2, 2))
    assert capsys.readouterr().out == "", "nor does it go elsewhere"
