"""``--backend`` of every command: names that are none, and an edit on a plug-in provider of ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.runner import assert_fails, call, picture

Capture = pytest.CaptureFixture[str]
PLUGIN = "nxrt_ep_cpu"
with_plugin = pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason=f"{PLUGIN} is not installed")

COMMANDS = (
    ("edit", "in.png", "a cat"),
    ("invert", "in.png", "-o", "x.npy"),
    ("synthesize", "a cat", "a dog"),
    ("bench",),
    ("build", "demo"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_names_that_are_none(command: tuple[str, ...], capsys: Capture, folder: Path) -> None:
    for name, said in (
        ("ort-tensorrt", "there is no backend 'ort-tensorrt' any more: it is called ort:tensorrt now"),
        ("ort:x,y", "expected option=value of ort:x, not 'y'"),
        ("ort:azure", "freeprompt sends nothing"),
    ):
        assert_fails(call(capsys, *command, "--backend", name), 2, said)
    assert [path.name for path in folder.iterdir()] == ["in.png"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_provider_that_is_not_there(command: tuple[str, ...], capsys: Capture) -> None:
    assert_fails(call(capsys, *command, "--backend", "ort:nobodys"), 1, "backend 'ort:nobodys' is not there")


@with_plugin
def test_an_edit_on_a_plugin(tiny_bundle: Path, capsys: Capture) -> None:
    """The latents are the CPU's, and what the plug-in leaves to the CPU is told."""
    found = {}
    for number, backend in enumerate(("cpu", f"ort:{PLUGIN}")):
        arguments = ("--bundle", tiny_bundle, "--backend", backend, "--steps", 2, "--threads", 1)
        outcome = call(capsys, "edit", "in.png", "a cat", *arguments, "-o", f"{number}.png", "-q")
        assert outcome.code == 0, outcome.err
        warned = [line for line in outcome.err.splitlines() if "takes no node of graph" in line]
        assert bool(warned) == (number == 1)
        assert outcome.err.splitlines() == warned
        saved = f"{number}.npy"
        outcome = call(capsys, "invert", "in.png", *arguments, "-o", saved, "-q")
        assert outcome.code == 0, outcome.err
        found[number] = np.load(saved)
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert Path("1.png").is_file()


@with_plugin
def test_doctor_lists_the_plugin(capsys: Capture) -> None:
    providers = json.loads(call(capsys, "doctor", "--json").out)["providers"]
    (plugin,) = (provider for provider in providers if provider["backend"] == f"ort:{PLUGIN}")
    assert plugin["ep_name"] == "cpu_ep" and plugin["origin"].startswith("nxrt-ep-cpu ")
    assert plugin["problem"] is None and plugin["devices"][0].startswith("CPU (")
    assert f"ort:{PLUGIN}" in call(capsys, "doctor").out
