"""Paths and links of a bundle: nothing outside it is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError
from tests.damage import Json, copy_bundle, edit_manifest, read_manifest, seal


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


def file_names(tiny_bundle: Path) -> list[str]:
    return [file["path"] for file in read_manifest(tiny_bundle)["files"]]


def seal_of(manifest: Json) -> bytes:
    import json

    return seal(json.dumps({**manifest, "manifest_sha256": "0" * 64}))


OUTSIDE = ["/etc/passwd", "../x", "a/../../x", "..", ".", "", "a\\b", "C:/x", "step.onnx\0", "//x", "./.."]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside(bundle: Path, path: str) -> None:
    def edit(manifest: Json) -> None:
        manifest["files"].append({"path": path, "bytes": 0, "sha256": "0" * 64})

    edit_manifest(bundle, edit)
    with pytest.raises(BundleError):
        Bundle.open(bundle)


def test_outside_is_never_read(bundle: Path, tmp_path: Path) -> None:
    """Right size, right hash, but not in the bundle."""
    secret = tmp_path / "secret"
    secret.write_bytes((bundle / "step.onnx").read_bytes())

    def edit(manifest: Json) -> None:
        for file in manifest["files"]:
            file["path"] = file["path"].replace("step.onnx", "../secret")
        manifest["graphs"]["step"]["file"] = "../secret"

    edit_manifest(bundle, edit)
    with pytest.raises(BundleError, match=r"\.\./secret.*not inside the bundle"):
        Bundle.open(bundle)


def test_link_to_outside(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle / "step.onnx").rename(outside)
    (bundle / "step.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"step\.onnx is a link to outside"):
        Bundle.open(bundle)
    (bundle / "step.onnx").unlink()
    (bundle / "inner").symlink_to(outside)
    (bundle / "step.onnx").symlink_to("inner")
    with pytest.raises(BundleError, match=r"step\.onnx is a link to outside"):
        Bundle.open(bundle)


def test_link_within_and_to_the_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "step.onnx").rename(bundle / "blob")
    (bundle / "step.onnx").symlink_to("blob")
    Bundle.open(bundle)
    (tmp_path / "link").symlink_to(bundle)
    Bundle.open(tmp_path / "link")


def test_link_loop(bundle: Path) -> None:
    (bundle / "step.onnx").unlink()
    (bundle / "step.onnx").symlink_to("step.onnx")
    with pytest.raises(BundleError):
        Bundle.open(bundle)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(bundle: Path) -> None:
    (bundle / "step.onnx").chmod(0)
    with pytest.raises(BundleError, match="cannot read the bundle"):
        Bundle.open(bundle)
