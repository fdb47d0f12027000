"""Ctrl-C at any time: one line, exit code 130, no file; other signals that end a program alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freeprompt.cli import guard
from freeprompt.contract.errors import Cancelled
from tests.cli.runner import Outcome, finish, names, picture, start

INTERRUPTED = Outcome(130, "", "freeprompt: interrupted\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds in.png alone."""
    picture(tmp_path / "in.png")
    return tmp_path


def _start_edit(folder: Path, bundle: Path, *options: object) -> subprocess.Popen[str]:
    arguments = ("edit", "in.png", "a cat", "--bundle", bundle, "--steps", 1000, "--threads", 1)
    return start(*arguments, "--save-latents", "l.npy", *options, cwd=folder)


# From within the first imports to the middle of the inversion on any machine.
@pytest.mark.parametrize("delay", [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6])
def test_ctrl_c_at_a_moment(folder: Path, tiny_bundle: Path, delay: float) -> None:
    process = _start_edit(folder, tiny_bundle, "-q")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert finish(process) == INTERRUPTED
    assert names(folder) == ["in.png"]


def test_ctrl_c_again_and_again_is_still_one_line(folder: Path, tiny_bundle: Path) -> None:
    process = _start_edit(folder, tiny_bundle, "-q")
    time.sleep(0.6)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert finish(process) == INTERRUPTED
    assert names(folder) == ["in.png"]


def test_termination_is_clean_too(folder: Path, tiny_bundle: Path) -> None:
    process = _start_edit(folder, tiny_bundle)
    assert process.stderr is not None
    assert process.stderr.readline() == "inversion: step 1/1000\n"
    process.terminate()
    outcome = finish(process)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (143, "freeprompt: terminated")
    assert names(folder) == ["in.png"]


def test_a_closed_terminal_is_as_termination(folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests under nohup must not hand that down.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = _start_edit(folder, tiny_bundle)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stderr is not None
    assert process.stderr.readline() == "inversion: step 1/1000\n"
    process.send_signal(signal.SIGHUP)
    outcome = finish(process)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (129, "freeprompt: hung up")
    assert names(folder) == ["in.png"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_so(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """As under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert guard.guarded(lambda: signal.raise_signal(number), owns_process=False) == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_write_ends_before_a_signal_does(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    written: list[int] = []

    def run() -> None:
        with guard.hold_interrupts():
            signal.raise_signal(number)
            written.append(number)
        written.append(0)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert guard.guarded(run, owns_process=False) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert written == [number]


def test_a_process_that_ignores_interrupts_goes_on(folder: Path, tiny_bundle: Path) -> None:
    """As under nohup, or in the background of a shell script."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "from freeprompt.cli import main; sys.exit(main())",
            *("edit", "in.png", "a cat", "--bundle", str(tiny_bundle), "--steps", "20"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "inversion: step 1/20\n"
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 0
    assert names(folder) == ["in-edited.png", "in.png"]


def test_an_interrupt_that_a_library_swallows_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    class Library:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def run() -> None:
        library = Library()
        del library
        guard.check_interrupted()
        raise AssertionError("the interrupt was lost")

    assert guard.guarded(run, owns_process=False) == 130
    assert capfd.readouterr().err == "freeprompt: interrupted\n"


def test_an_interrupt_that_comes_out_as_another_error(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("half imported") from None

    assert guard.guarded(run, owns_process=False) == 130
    assert capfd.readouterr().err == "freeprompt: interrupted\n"


def test_an_interrupt_waits_for_the_end_of_a_short_write(capfd: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def run() -> None:
        with guard.hold_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        done.append("went on")

    assert guard.guarded(run, owns_process=False) == 130
    assert done == ["written"]


def cancel(run: Callable[[], None]) -> tuple[int, str, int]:
    """Run a block that can be cancelled: exit code, how the block ended, and how often something was abandoned."""
    ended: list[str] = []
    abandoned: list[int] = []

    def command() -> None:
        try:
            with guard.cancellable(lambda: abandoned.append(1)):
                run()
            ended.append("done")
        except Cancelled:
            ended.append("cancelled")
        guard.check_interrupted()

    code = guard.guarded(command, owns_process=False)
    return code, "".join(ended), len(abandoned)


def press(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_the_first_interrupt_of_a_block_waits_for_a_check() -> None:
    went_on: list[str] = []

    def run() -> None:
        press()
        went_on.append("within a step")
        guard.check_interrupted()
        went_on.append("after it")

    assert cancel(run) == (0, "cancelled", 0)
    assert went_on == ["within a step"]


def test_the_second_breaks_off_and_abandons() -> None:
    assert cancel(lambda: press(2)) == (0, "cancelled", 1)


def test_one_that_comes_as_a_block_ends_is_forgotten() -> None:
    def write() -> None:
        with guard.hold_interrupts():
            press()

    assert cancel(press) == (0, "done", 0)
    assert cancel(write) == (0, "done", 0), "what was written is told as written"


def test_an_error_within_a_block_is_itself() -> None:
    def fail() -> None:
        raise Cancelled("by another")

    def interrupted() -> None:
        press()
        raise ImportError("half imported")

    assert cancel(fail) == (0, "cancelled", 0)
    assert cancel(interrupted) == (0, "cancelled", 0)


def test_termination_is_not_cancelled(capfd: pytest.CaptureFixture[str]) -> None:
    assert cancel(lambda: signal.raise_signal(signal.SIGTERM)) == (143, "", 0)

    def both() -> None:
        press()
        signal.raise_signal(signal.SIGTERM)

    assert cancel(both)[:2] == (143, "")
    capfd.readouterr()


def test_handlers_are_left_alone_outside_the_main_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(guard.guarded(lambda: None, False)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_ctrl_c_while_exporting_leaves_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    process = start("export", tiny_checkpoint, "-o", tmp_path / "bundle", env={"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    while not (shown := process.stderr.readline()).startswith("graph text_encoder"):
        assert shown, "the export ended early"
    os.kill(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, "freeprompt: interrupted"), outcome
    assert "Traceback" not in outcome.err
    assert names(tmp_path) == []
