"""Saved inversions and the shell at the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freeprompt import Inversion
from tests.cli.runner import call, names, picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a picture in it."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png", 64, 64)
    return tmp_path


def test_saved_inversion_is_edited_in_a_new_process(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    model = ["--bundle", str(tiny_bundle), "--steps", "4", "--threads", "1"]
    first = call(capsys, "edit", "in.png", "a cat", *model, "--save-inversion", "in.inversion")
    assert first.code == 0, first.err
    assert "in.inversion" in first.out
    assert Inversion.load("in.inversion").record_bytes > 0
    # The same edit from the file alone, elsewhere: the same picture, bit for bit.
    command = ["edit", "in.inversion", "a cat", "-o", "again.png", "--bundle", str(tiny_bundle), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "freeprompt", *command, "--save-latents", "again.npy", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "again.png").read_bytes() == (folder / "in-edited.png").read_bytes()
    assert np.load("again.npy").shape == (1, 4, 16, 16)


def test_plans_account_for_every_way(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    model = ["--bundle", tiny_bundle, "--plan"]
    assert "total: 190 rows" in call(capsys, "edit", "in.png", "a cat", *model).out
    exact = call(capsys, "edit", "in.png", "a cat", *model, "--record", "exact").out
    assert "record: 40 source rows in 10 passes" in exact
    approximate = call(capsys, "edit", "in.png", "a cat", *model, "--record", "inversion").out
    assert "total: 150 rows" in approximate
    assert "step_recording" in approximate
    several = call(capsys, "edit", "in.png", "a cat", "a dog", *model).out
    assert "record: 40 source rows" in several


def test_refusals(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    model = ["--bundle", tiny_bundle, "--steps", 2, "--threads", 1]
    (folder / "bad.inversion").write_bytes(b"nonsense")
    wrong = call(capsys, "edit", "bad.inversion", "a cat", "--bundle", tiny_bundle)
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "bad.inversion" in wrong.err
    name = call(capsys, "edit", "in.png", "a cat", *model, "--save-inversion", "in.safetensors")
    assert name.code == 2
    assert ".inversion" in name.err
    assert names(folder) == ["bad.inversion", "in.png"]


def test_shell(folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = "a cat\n\n" + "\ud800" + "\na dog\nquit\na bird\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    model = ["--bundle", tiny_bundle, "--steps", 2, "--threads", 1]
    outcome = call(capsys, "shell", "in.png", *model, "-q")
    assert outcome.code == 1, outcome.err
    assert names(folder) == ["in-edited-1.png", "in-edited-2.png", "in.png"]
    lines = outcome.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["in-edited-1.png", "in-edited-2.png"]
    assert "a dog" in lines[1]
    assert " s)" in lines[1]
    assert outcome.err.count("error") == 2, (
        "a line that cannot be encoded is told, the next one edited, and all counted"
    )
    assert call(capsys, "edit", "in.png", "a dog", *model, "-o", "plain.png").code == 0
    ours, plain = (np.asarray(load(folder / n), int) for n in ("in-edited-2.png", "plain.png"))
    assert np.abs(ours - plain).max() <= 1


def load(path: Path) -> object:
    from PIL import Image

    return Image.open(path)
