"""What TensorRT's builder is told through polygraphy, by version, on a mock of its module in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import TensorSpec
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.building.request import BuilderSettings, BuildRequest

pytest.importorskip("polygraphy")

INPUTS = (TensorSpec("input_ids", "int32", ("texts", 77)),)
RANGE, FIXED = Profile({"texts": (1, 2, 4)}), Profile({"texts": (2, 2, 2)})
versions = pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])


def told(folder: Path, version: str, settings: BuilderSettings, *profiles: Profile, how: str = "") -> Any:
    request = BuildRequest(
        "tensorrt", "text.onnx", str(folder / "engine"), INPUTS, profiles, settings, str(folder / "timings")
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.engines.tensorrt.told_builder", version, how],
        input=msgspec.json.encode(request),
        capture_output=True,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@versions
def test_what_every_version_is_told(tmp_path: Path, version: str) -> None:
    found = told(tmp_path, version, BuilderSettings(1 << 22, 5), RANGE, FIXED)
    assert found["flags"] == 1 << 1, "strongly typed, and no explicit batch, which 11 no longer has"
    assert found["set_flag"] == [] and found["clear_flag"] == ["TF32"]
    assert found["memory"] == [["WORKSPACE", 1 << 22]]
    assert (found["level"], found["verbosity"]) == (5, "DETAILED")
    assert found["profiles"] == [
        ["input_ids", [1, 77], [2, 77], [4, 77]],
        ["input_ids", [2, 77], [2, 77], [2, 77]],
    ]
    assert found["shape"] == [-1, 77]
    assert (tmp_path / "engine").read_bytes() == b"engine"
    assert (tmp_path / "timings").read_bytes() == b"timings"


def test_fixed_shapes_are_the_network_s_own(tmp_path: Path) -> None:
    found = told(tmp_path, "11.4.0.106", BuilderSettings(baked=True), FIXED)
    assert found["shape"] == [2, 77]
    with pytest.raises(UsageError, match="single static profile"):
        told(tmp_path, "11.4.0.106", BuilderSettings(baked=True), RANGE)


@pytest.mark.parametrize(("before", "caches"), [("timings", ["timings"]), ("damaged", ["damaged", ""]), (None, [""])])
def test_measured_kernels_are_used_again_and_damaged_ones_begun_anew(
    tmp_path: Path, before: str | None, caches: list[str]
) -> None:
    if before is not None:
        (tmp_path / "timings").write_text(before)
    assert told(tmp_path, "10.16.1.11", BuilderSettings(), FIXED)["caches"][: len(caches)] == caches
    assert (tmp_path / "timings").read_bytes() == b"timings"


def test_measured_kernels_behind_a_link_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "timings").symlink_to("other")
    assert told(tmp_path, "10.16.1.11", BuilderSettings(), FIXED)["caches"][0] == ""
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_builder_that_does_not_start(tmp_path: Path) -> None:
    found = told(tmp_path, "10.3.0", BuilderSettings(), FIXED, how="no builder")
    assert found == {"error": "TensorRT could not start its builder: it gave no reason"}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Requested amount of GPU memory (123 bytes) could not be allocated. OutOfMemory", "smaller --workspace"),
        ("Could not find any implementation for node {ForeignNode[a...b]}.", "node {ForeignNode[a...b]}"),
        ("CUDA initialization failure with error: 35", "no GPU that it can use"),
        ("Something else", "Something else"),
    ],
)
def test_why_a_build_failed(tmp_path: Path, message: str, said: str) -> None:
    found = told(tmp_path, "10.3.0", BuilderSettings(), FIXED, how=message)["error"]
    assert found.startswith("TensorRT could not build text: ") and said in found
    assert not (tmp_path / "engine").exists()
