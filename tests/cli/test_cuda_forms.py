"""A bundle that was exported before there were forms for CUDA, and what is said of those that there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.runner import assert_fails, call, picture
from tests.damage import Json, copy_bundle, edit_manifest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def older(tiny_bundle: Path, tmp_path: Path) -> Path:
    """As an earlier version wrote it."""
    bundle = copy_bundle(tiny_bundle, tmp_path / "older")

    def strip(manifest: Json) -> None:
        for graph in manifest["graphs"].values():
            (bundle / graph.pop("cuda")["file"]).unlink()
        manifest["files"] = [file for file in manifest["files"] if not file["path"].endswith(".cuda.onnx")]

    edit_manifest(bundle, strip)
    return bundle


def test_a_bundle_of_before_edits_as_one_of_now(
    older: Path, tiny_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    pixels = []
    for bundle in (older, tiny_bundle):
        target = tmp_path / f"{bundle.name}.png"
        arguments = (picture(tmp_path / "in.png"), "a red cat", "--bundle", bundle, "--steps", 4, "-o", target)
        outcome = call(capsys, "edit", *arguments, "--backend", "cpu", "--threads", 1)
        assert outcome.code == 0, outcome.err
        pixels.append(np.asarray(Image.open(target)))
    np.testing.assert_array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("graphs", [(), ("--graph", "vae_decoder")])
def test_a_build_says_that_it_is_to_be_exported_again(older: Path, graphs: tuple[str, ...], capsys: Capture) -> None:
    """Whether or not there is a GPU; nothing is written."""
    outcome = call(capsys, "build", older, "--backend", "cuda", *graphs)
    assert_fails(outcome, 1, "has no form for CUDA", "export the checkpoint again with this one", str(older))
    assert not (older / "engines").exists()


def test_a_build_without_a_gpu_says_so(tiny_bundle: Path, capsys: Capture) -> None:
    assert_fails(call(capsys, "build", tiny_bundle, "--backend", "cuda"), 1, "backend 'cuda' is not there")


def test_inspect_tells_of_them(older: Path, tiny_bundle: Path, capsys: Capture) -> None:
    def line(bundle: Path, begins: Callable[[str], bool]) -> str:
        return next(line for line in call(capsys, "inspect", bundle, "--all").out.splitlines() if begins(line))

    now = line(tiny_bundle, lambda line: line.startswith("cuda "))
    assert "GroupNorm" in now and "NhwcConv" in now
    assert "in the step graph, where freeprompt build --backend cuda finds it right and not slower" in now
    assert "exported before there were any" in line(older, lambda line: line.startswith("cuda "))
    assert "GroupNorm" in line(tiny_bundle, lambda line: "for ONNX Runtime on CUDA: step.cuda.onnx (" in line)
    assert "for ONNX Runtime on CUDA" not in call(capsys, "inspect", older, "--all").out


def test_doctor_tells_of_them(older: Path, tiny_bundle: Path, capsys: Capture) -> None:
    assert "(standard, fused, cuda)" in call(capsys, "doctor", tiny_bundle).out
    assert "(standard, fused)" in call(capsys, "doctor", older).out
