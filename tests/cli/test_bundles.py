"""Bundles that are missing or damaged, each in its way: one line, exit code 1, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freeprompt.contract.files import file_to_sha256
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.manifest_file import manifest_from_json, manifest_to_json
from freeprompt.contract.parity import Parity
from tests.cli.runner import assert_fails, call, names, picture

Capture = pytest.CaptureFixture[str]
Damage = Callable[[Path], object]


def _edit_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write a changed manifest with the right checksum, as an attacker or another program would."""
    path = bundle / "manifest.json"
    path.write_bytes(manifest_to_json(change(manifest_from_json(path.read_bytes()))))


def _replace_text(bundle: Path, old: bytes, new: bytes) -> None:
    path = bundle / "manifest.json"
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _first_path(bundle: Path, name: str) -> None:
    _edit_manifest(bundle, lambda m: replace(m, files=(replace(m.files[0], path=name), *m.files[1:])))


def _list_and_name(bundle: Path, name: str) -> None:
    """Name a file by another path wherever it is used, so that only the path itself is wrong."""

    def change(manifest: Manifest) -> Manifest:
        files = tuple(replace(f, path=name) if f.path == "tokenizer.json" else f for f in manifest.files)
        return replace(manifest, files=files, tokenizer=name)

    _edit_manifest(bundle, change)


def _link_outside(bundle: Path) -> None:
    outside = bundle.parent / "outside.json"
    shutil.move(bundle / "tokenizer.json", outside)
    (bundle / "tokenizer.json").symlink_to(outside)


def _forge(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree: what is in it must still be checked when it is used."""
    path = bundle / name
    path.write_bytes(content)
    sha256 = file_to_sha256(path)

    def change(manifest: Manifest) -> Manifest:
        return replace(
            manifest,
            files=tuple(replace(f, bytes=len(content), sha256=sha256) if f.path == name else f for f in manifest.files),
        )

    _edit_manifest(bundle, change)


def _become_a_file(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.write_text("x")


def _become_empty(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.mkdir()


def _manifest_a_folder(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "absent": (lambda b: shutil.rmtree(b), "not a folder"),
    "a file": (_become_a_file, "not a folder"),
    "empty folder": (_become_empty, "no manifest.json"),
    "manifest a folder": (
        _manifest_a_folder,
        "no manifest.json",
    ),
    "manifest empty": (lambda b: (b / "manifest.json").write_bytes(b""), "manifest.json"),
    "manifest not JSON": (lambda b: (b / "manifest.json").write_bytes(b"\xff{"), "manifest.json"),
    "manifest nested": (lambda b: (b / "manifest.json").write_bytes(b"[" * 100_000), "manifest.json"),
    "manifest cut": (
        lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes()[:-500]),
        "manifest.json",
    ),
    "other version": (lambda b: _replace_text(b, b'"format_version": 1', b'"format_version": 99'), "version 99"),
    "digit changed": (lambda b: _replace_text(b, b'"opset": 18', b'"opset": 19'), "SHA-256"),
    "field missing": (lambda b: _replace_text(b, b'"opset"', b'"upset"'), "manifest.json"),
    "wrong type": (lambda b: _replace_text(b, b'"opset": 18', b'"opset": []'), "manifest.json"),
    "constants wrong": (
        lambda b: _edit_manifest(b, lambda m: replace(m, latents=replace(m.latents, scaling_factor=0.0))),
        "contradicts itself",
    ),
    "file missing": (lambda b: (b / "unet.weights").unlink(), "unet.weights is missing"),
    "file cut": (lambda b: (b / "step.onnx").write_bytes(b"short"), "step.onnx has 5 bytes"),
    "bit flipped": (lambda b: _flip(b / "unet.weights"), "unet.weights is damaged"),
    "path above": (lambda b: _list_and_name(b, "../outside"), "not inside the bundle"),
    "path absolute": (lambda b: _list_and_name(b, "/etc/passwd"), "not inside the bundle"),
    "path of windows": (lambda b: _list_and_name(b, "C:\\secret"), "not inside the bundle"),
    "path with NUL": (lambda b: _list_and_name(b, "a\0b"), "freeprompt: error"),
    "path unlisted": (lambda b: _first_path(b, "elsewhere"), "not listed"),
    "link outside": (_link_outside, "link to outside"),
}
# These open, but cannot be run.
FORGERIES: dict[str, tuple[Damage, str]] = {
    "tokenizer not one": (lambda b: _forge(b, "tokenizer.json", b"{}"), "tokenizer.json"),
    "graph not one": (lambda b: _forge(b, "vae_encoder.fused.onnx", b"not a graph"), "vae_encoder"),
    "graph of another": (
        lambda b: _forge(b, "vae_encoder.fused.onnx", (b / "vae_decoder.fused.onnx").read_bytes()),
        "vae_encoder",
    ),
    "weights cut": (lambda b: _forge(b, "vae_encoder.weights", b"\0" * 64), "vae_encoder"),
}


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to damage; the current folder is another one that holds in.png alone."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    work = tmp_path / "work"
    work.mkdir()
    picture(work / "in.png")
    monkeypatch.chdir(work)
    yield bundle
    assert names(work) == ["in.png"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_tells_what_is_wrong_with_a_bundle(copied: Path, damage: str, capsys: Capture) -> None:
    harm, words = DAMAGES[damage]
    harm(copied)
    for arguments in (
        ["inspect", copied],
        ["inspect", copied, "--json"],
        ["edit", "in.png", "a cat", "--bundle", copied],
        ["invert", "in.png", "--bundle", copied],
        ["synthesize", "a cat", "a dog", "--bundle", copied],
    ):
        assert_fails(call(capsys, *arguments), 1, words)


@pytest.mark.parametrize("damage", FORGERIES)
def test_a_forged_file_is_told_when_it_is_used(copied: Path, damage: str, capsys: Capture) -> None:
    harm, words = FORGERIES[damage]
    harm(copied)
    assert call(capsys, "inspect", copied).code == 0
    arguments = ("edit", "in.png", "a cat", "--bundle", copied, "--steps", 1, "-q")
    assert_fails(call(capsys, *arguments), 1, words)


def test_plan_checks_the_bundle_too(copied: Path, capsys: Capture) -> None:
    (copied / "unet.weights").unlink()
    assert_fails(call(capsys, "edit", "in.png", "a cat", "--bundle", copied, "--plan"), 1, "unet.weights")


def test_inspect_is_a_screenful(tiny_bundle: Path, capsys: Capture) -> None:
    outcome = call(capsys, "inspect", tiny_bundle)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert len(lines) <= 24, "a terminal's height"
    manifest = manifest_from_json((tiny_bundle / "manifest.json").read_bytes())
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["model"] == manifest.model and said["precision"] == "float32, opset 18"
    assert said["image"].startswith("64x64") and said["replaced"].startswith("layers 1-4 of 4 ")
    assert said["graphs"] == ", ".join(manifest.graphs)
    assert "4 of" not in said["fused"] and "8 MultiHeadAttention" in said["fused"]
    parities = [
        (parity.relative_l2 / graph.parity_threshold, parity.relative_l2)
        for graph in manifest.graphs.values()
        for parity in (*graph.parity, *(graph.fused.parity if graph.fused else ()))
    ]
    assert f"with PyTorch to {max(parities)[1]:.1e} relative L2 at worst" in said["agreement"]
    assert said["built"].startswith("no engines")
    assert "half" not in said, "the bundle is float32"
    whole = call(capsys, "inspect", tiny_bundle, "--all").out
    assert whole.startswith(outcome.out.rstrip("\n")) and len(whole.splitlines()) > 50


def test_inspect_counts_what_was_built(copied: Path, capsys: Capture) -> None:
    for name in ("tensorrt/step-1.engine", "tensorrt/step-1.json", "cuda/step-1.json", "cuda/record-1.json"):
        path = copied / "engines" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert "1 TensorRT engines, 2 forms checked for CUDA" in call(capsys, "inspect", copied).out


# Clear the screen, and the one-character form of the sequence's beginning; turn the line round; begin another.
HOSTILE = "model\x1b[2J\x9b31m\u202e\nsecond line"


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "--all"), ("doctor",)], ids=" ".join)
def test_a_terminal_obeys_nothing_that_a_manifest_says(copied: Path, command: tuple[str, ...], capsys: Capture) -> None:
    """Notes are free text; whatever else has such characters is refused, and quoted as they are written."""
    _edit_manifest(copied, lambda manifest: replace(manifest, notes={HOSTILE: HOSTILE}))
    outcome = call(capsys, command[0], copied, *command[1:])
    assert (outcome.code, outcome.err) == (0, "")
    assert [c for c in outcome.out if not c.isprintable() and c != "\n"] == []
    assert ("model\\x1b[2J\\x9b31m\\u202e\\nsecond line" in outcome.out) == (command[0] == "inspect")
    as_json = call(capsys, command[0], copied, "--json").out
    assert [c for c in as_json if not c.isprintable() and c != "\n"] == []
    if command[0] == "inspect":
        assert json.loads(as_json)["manifest"]["notes"] == {HOSTILE: HOSTILE}
    _edit_manifest(copied, lambda manifest: replace(manifest, model=HOSTILE))
    outcome = call(capsys, command[0], copied, *command[1:])
    assert outcome.code == 1 and "characters that cannot be printed" in outcome.err
    assert [c for c in outcome.out + outcome.err if not c.isprintable() and c != "\n"] == []


def test_a_terminal_obeys_nothing_that_a_build_says(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    parity = Parity(HOSTILE, 0.0, 0.0)
    monkeypatch.setattr("freeprompt.engines.select.create_backend", lambda name: None)
    monkeypatch.setattr("freeprompt.engines.warm.warm_bundle", lambda *arguments: iter([parity]))
    outcome = call(capsys, "build", tiny_bundle, "--backend", "ort:tensorrt")
    assert outcome.code == 0, outcome.err
    assert [c for c in outcome.out if not c.isprintable() and c != "\n"] == [] and "\\x1b[2J" in outcome.out


@pytest.mark.parametrize("damage", DAMAGES)
def test_doctor_says_what_is_wrong_with_a_bundle_and_all_the_rest(copied: Path, damage: str, capsys: Capture) -> None:
    harm, words = DAMAGES[damage]
    harm(copied)
    outcome = call(capsys, "doctor", copied)
    assert outcome.code == 1
    assert outcome.err.startswith("freeprompt: error: ") and outcome.err.count("\n") == 1
    if not words.startswith("freeprompt"):
        assert words in outcome.err
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("bundle "))
    assert line.startswith("bundle        cannot be used: ")
    assert "--backend auto takes " in outcome.out, "the machine is reported all the same"
    outcome = call(capsys, "doctor", copied, "--json")
    assert outcome.code == 1 and json.loads(outcome.out)["bundle"]["problem"]


def test_a_checkpoint_is_no_bundle_but_can_become_one(tiny_checkpoint: Path, capsys: Capture) -> None:
    advice = f"export it first, with freeprompt export {tiny_checkpoint} -o "
    outcome = call(capsys, "doctor", tiny_checkpoint)
    assert outcome.code == 1
    assert advice in outcome.err and advice in outcome.out
    assert_fails(call(capsys, "inspect", tiny_checkpoint), 1, advice)
