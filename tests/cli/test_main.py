"""python -m freeprompt: exit codes, what it imports, what it leaves to its caller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from freeprompt.cli import main
from tests.cli.runner import picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that holds in.png alone."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


def test_python_m_freeprompt_and_its_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "freeprompt", "paint"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["numpy", "msgspec", "argparse", "PIL"])
def test_python_m_freeprompt_imports_nothing_from_the_current_folder(
    folder: Path, tiny_bundle: Path, module: str
) -> None:
    (folder / f"{module}.py").write_text("raise SystemExit('imported from the current folder')")
    done = subprocess.run(
        [sys.executable, "-m", "freeprompt", "edit", "in.png", "a cat", "--bundle", str(tiny_bundle), "--steps", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "in-edited.png").exists()


@pytest.mark.parametrize("option", [[], ["-P"], ["-I"]])
def test_python_m_freeprompt_keeps_folders_that_were_asked_for(folder: Path, option: list[str]) -> None:
    """Only the current folder goes, and only where Python itself put it first."""
    code = (
        "import runpy, sys; before = list(sys.path)\n"
        "try: runpy.run_module('freeprompt', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert [p for p in before if p not in sys.path] in ([], ['']), before\n"
        "assert len(before) - len(sys.path) <= 1, sys.path"
    )
    command = [sys.executable, *option, "-c", code, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_main_restores_the_warning_filters_of_its_caller(capsys: Capture) -> None:
    import signal
    import warnings

    before = list(warnings.filters), warnings.showwarning, sys.unraisablehook, signal.getsignal(signal.SIGINT)
    assert main(["--version"]) == 0
    after = list(warnings.filters), warnings.showwarning, sys.unraisablehook, signal.getsignal(signal.SIGINT)
    assert after == before
