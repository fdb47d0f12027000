"""Bundles that are missing or damaged, each in its way: one line, exit code 1, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from freeprompt.files import file_to_sha256
from freeprompt.manifest import Manifest, manifest_from_json, manifest_to_json
from tests.cli_runner import assert_fails, call, names, picture

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
