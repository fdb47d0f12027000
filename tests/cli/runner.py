"""Calling the command line in tests, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from freeprompt.cli import main

# A process that says when the command begins: what comes before is Python's own start.
_READY = "import sys; from freeprompt.cli import main; print('ready', file=sys.stderr, flush=True); sys.exit(main())"


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)


def start(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own; returns when it has printed that it begins."""
    process = subprocess.Popen(
        [sys.executable, "-c", _READY, *map(str, arguments)],
        stdout=settings.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings.pop("env", {})},
        **settings,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Outcome(process.returncode, out or "", err)


def assert_fails(outcome: Outcome, code: int, *words: str) -> None:
    """One line on the standard error that holds ``words``, and this exit code."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("freeprompt: error: "), outcome.err
    assert outcome.err.endswith("\n"), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "unexpected" not in outcome.err, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert outcome.out == ""


def picture(path: Path, width: int = 64, height: int = 64) -> Path:
    """Write a picture of noise."""
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())
