"""The command line's limit of time."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.cli import options
from freeprompt.runtime.plan.limits import Limits
from tests.cli.runner import assert_fails, call, names, picture

PICTURE = np.zeros((64, 64, 3), np.uint8)


def test_the_command_lines_time_limit(tiny_bundle: Path) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_model_options(parser)
    options.add_limit_options(parser)
    given = ["--bundle", str(tiny_bundle), "--backend", "cpu"]
    editor = options.load_editor(parser.parse_args([*given, "--time-limit", "2.5"]), verify=False)
    assert editor.limits == Limits(seconds=2.5)
    for wrong in ("0", "-1", "nan", "inf", "soon", ""):
        with pytest.raises(argparse.ArgumentError, match="expected a number of seconds above 0"):
            parser.parse_args([*given, "--time-limit", wrong])


def test_an_edit_that_takes_too_long_fails_and_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, result = picture(tmp_path / "x.png"), tmp_path / "y.png"
    given = ("--bundle", tiny_bundle, "--backend", "cpu", "--steps", 2, "-q")
    # A nanosecond has passed before the first step, on any machine.
    outcome = call(capsys, "edit", source, "a cat", "-o", result, *given, "--time-limit", "1e-9")
    assert_fails(outcome, 1, "the time limit of 1e-09 s has passed")
    assert names(tmp_path) == ["x.png"]
    assert call(capsys, "edit", source, "a cat", "-o", result, *given, "--time-limit", "1e6").code == 0


def test_a_shell_goes_on_after_a_line_that_took_too_long(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "x.inversion"
    editor = Editor.load(tiny_bundle, "cpu", threads=1)
    editor.invert(PICTURE, 2).save(saved)
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\na dog\n"))
    given = ("--bundle", tiny_bundle, "--backend", "cpu", "-q", "--time-limit", "1e-9")
    outcome = call(capsys, "shell", saved, "-o", tmp_path / "y.png", *given)
    assert outcome.code == 1 and outcome.err.endswith("2 of 2 edits failed\n")
    assert outcome.err.count("the time limit of 1e-09 s has passed") == 2
