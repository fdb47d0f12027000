"""The shell: Ctrl-C cancels an edit and keeps the inversion, results replace nothing, failures are counted."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from freeprompt import Editor
from tests.cli.runner import Outcome, call, names, picture

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A current folder that holds in.png alone."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


class Typed(io.StringIO):
    """A standard input in which the line "^C" is that key."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        line = super().readline()
        if line == "^C\n":
            signal.raise_signal(signal.SIGINT)
        return line


def shell(capsys: Capture, monkeypatch: Patch, bundle: Path, *options: object, lines: list[str]) -> Outcome:
    monkeypatch.setattr(sys, "stdin", Typed("".join(f"{line}\n" for line in lines)))
    return call(capsys, "shell", "in.png", "--bundle", bundle, "--steps", 5, "--threads", 1, "-q", *options)


def press_while_editing(monkeypatch: Patch, prompt: str, times: int, number: int = signal.SIGINT) -> list[int]:
    """Press Ctrl-C in the second step of an edit by ``prompt``; returns the steps that each edit made."""
    edit, steps = Editor.edit, []

    def pressed(self: Editor, inversion: Any, prompts: Any, *, callback: Any, **settings: Any) -> Any:
        steps.append(0)

        def step(progress: Any) -> None:
            steps[-1] = progress.step
            for _ in range(times if prompts == prompt and progress.step == 2 else 0):
                signal.raise_signal(number)
            callback(progress)

        return edit(self, inversion, prompts, callback=step, **settings)

    monkeypatch.setattr(Editor, "edit", pressed)
    return steps


@pytest.mark.parametrize("times", [1, 2, 5])
def test_ctrl_c_cancels_the_edit_alone(
    folder: Path, tiny_bundle: Path, times: int, capsys: Capture, monkeypatch: Patch
) -> None:
    """Pressed again it does not wait for the step; what the edit recorded is then dropped, not trusted."""
    plain = shell(capsys, monkeypatch, tiny_bundle, "-o", "plain.png", lines=["a dog"])
    assert plain.code == 0, plain.err
    steps = press_while_editing(monkeypatch, "a cat", times)
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a cat", "a dog", "a cat", "a bird"])
    assert outcome.code == 0, outcome.err
    assert steps == [2, 5, 2, 5]
    assert [line.split(" (")[0] for line in outcome.out.splitlines()] == [
        "in-edited-1.png: a dog",
        "in-edited-2.png: a bird",
    ]
    assert outcome.err == "freeprompt: cancelled; the next prompt is read, Ctrl-C there ends\n" * 2
    assert names(folder) == ["in-edited-1.png", "in-edited-2.png", "in.png", "plain-1.png"]
    with Image.open("in-edited-1.png") as after, Image.open("plain-1.png") as before:
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_ctrl_c_at_the_prompt_ends(folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch) -> None:
    press_while_editing(monkeypatch, "a cat", 1)
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a cat", "^C", "a dog"])
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1] == "freeprompt: interrupted"
    assert names(folder) == ["in.png"]


def test_termination_while_editing_ends(folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch) -> None:
    press_while_editing(monkeypatch, "a cat", 1, signal.SIGTERM)
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a cat", "a dog"])
    assert (outcome.code, outcome.out, outcome.err) == (143, "", "freeprompt: terminated\n")
    assert names(folder) == ["in.png"]


def test_edits_that_failed_are_counted(folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch) -> None:
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a \ud800", "a cat", "\udfff", "quit", "a bird"])
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "freeprompt: error: 2 of 3 edits failed"
    assert outcome.err.count("cannot be encoded") == 2
    assert names(folder) == ["in-edited-1.png", "in.png"]


def test_an_error_of_the_backend_leaves_the_inversion(
    folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    from freeprompt.contract.errors import BackendError

    edit = Editor.edit

    def failing(self: Editor, inversion: Any, prompts: Any, **settings: Any) -> Any:
        if prompts == "a cat":
            raise BackendError("out of memory")
        return edit(self, inversion, prompts, **settings)

    monkeypatch.setattr(Editor, "edit", failing)
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a cat", "a dog"])
    assert outcome.code == 1
    assert outcome.err.splitlines() == ["freeprompt: error: out of memory", "freeprompt: error: 1 of 2 edits failed"]
    assert names(folder) == ["in-edited-1.png", "in.png"]


def test_results_replace_nothing_unless_forced(
    folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    for name in ("out-1.png", "out-3.png"):
        (folder / name).write_bytes(b"old")
    outcome = shell(capsys, monkeypatch, tiny_bundle, "-o", "out.png", lines=["a cat", "a dog"])
    assert outcome.code == 0, outcome.err
    assert names(folder) == ["in.png", *(f"out-{n}.png" for n in range(1, 5))]
    assert {(folder / name).read_bytes() for name in ("out-1.png", "out-3.png")} == {b"old"}
    outcome = shell(capsys, monkeypatch, tiny_bundle, "-o", "out.png", "--force", lines=["a cat"])
    assert outcome.code == 0, outcome.err
    assert (folder / "out-1.png").read_bytes() == (folder / "out-2.png").read_bytes(), "the same edit"


def test_the_picture_itself_is_not_replaced_even_so(
    folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    before = (folder / "in.png").read_bytes()
    (folder / "x-2.png").symlink_to("in.png")
    outcome = shell(capsys, monkeypatch, tiny_bundle, "-o", "x.png", "--force", lines=["a cat", "a dog"])
    assert outcome.code == 0, outcome.err
    assert (folder / "in.png").read_bytes() == before
    assert names(folder) == ["in.png", "x-1.png", "x-2.png", "x-3.png"]


def test_a_prompt_is_escaped_when_it_is_printed(
    folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    outcome = shell(capsys, monkeypatch, tiny_bundle, lines=["a \x1b[31mcat"])
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("in-edited-1.png: a \\x1b[31mcat (")
