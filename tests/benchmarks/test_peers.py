"""What freeprompt is compared with does the same work, and the commands that compare start."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks.cpu.contest import RATIOS, contenders, contest
from freeprompt import Editor

COMMANDS = (
    *("gpu_check", "gpu.profile_ort", "cpu.run", "full_size.sd15_export", "full_size.sd15_rows"),
    *("embedded.train", "embedded.checkpoint", "embedded.score", "embedded.sweep"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_explain_themselves(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_contenders_do_the_same_work(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """The literal reference, the same plan in PyTorch and every way to edit end in the same latents."""
    torch.set_num_threads(1)
    entered = contenders(tiny_checkpoint, Editor.load(tiny_bundle, "cpu", threads=1), 3)
    found = contest(entered, 1, lambda line: None)
    # The order of summation, over three steps of inversion and three of editing.
    assert max(found["errors"].values()) < 2e-5, found["errors"]
    assert {"torch: same plan", "literal: four prompts", "freeprompt: further edit"} <= found["errors"].keys()
    assert [one["title"] for one in found["ratios"]] == [title for title, _, _ in RATIOS]
