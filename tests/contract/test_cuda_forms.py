"""Forms for CUDA in a bundle: checked as every file is, and not asked of a bundle of before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError
from tests.damage import Json, copy_bundle, edit_manifest, read_manifest

NAME = "step.cuda.onnx"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, rf"{NAME} is damaged \(its SHA-256 differs\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), rf"{NAME} has \d+ bytes, the manifest says"),
        (lambda path: path.unlink(), f"{NAME} is missing"),
    ],
)
def test_a_form_that_is_damaged_is_refused(bundle: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(bundle / NAME)
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle)


def test_what_is_put_in_its_place_later_is_not_read(bundle: Path) -> None:
    opened, good = Bundle.open(bundle), (bundle / NAME).read_bytes()
    flip(bundle / NAME)
    assert opened.read(opened.cuda_name("step")) == good


def not_listed(manifest: Json) -> None:
    manifest["files"] = [file for file in manifest["files"] if file["path"] != NAME]


def anothers(manifest: Json) -> None:
    manifest["graphs"]["step"]["cuda"]["file"] = "record.cuda.onnx"


def outside(manifest: Json) -> None:
    for file in manifest["files"]:
        if file["path"] == NAME:
            file["path"] = f"../{NAME}"
    manifest["graphs"]["step"]["cuda"]["file"] = f"../{NAME}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (not_listed, f"{NAME} is used but not listed"),
        (anothers, "record.cuda.onnx is used for two things"),
        (outside, "is not inside the bundle"),
        (lambda manifest: manifest["graphs"]["step"]["cuda"]["operators"].update(NhwcConv=-1), "cannot be read"),
        (lambda manifest: manifest["graphs"]["step"]["cuda"].pop("operators"), "cannot be read"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, change: Callable[[Json], object], said: str
) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle)


def test_hash_of_several_files_and_their_weights(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    one, other = (f"{graph}.cuda.onnx" for graph in ("step", "vae_decoder"))
    assert bundle.onnx_sha256(bundle.graph_name("step")) == bundle.graph_sha256("step")
    assert bundle.onnx_sha256(one, other) == bundle.onnx_sha256(other, one)
    hashes = {bundle.onnx_sha256(*names) for names in ((one,), (other,), (one, other))}
    assert len(hashes) == 3
    with pytest.raises(BundleError, match="the bundle has no file 'none'"):
        bundle.onnx_sha256("none")


@pytest.mark.parametrize("written", [None, "absent"])
def test_a_bundle_of_before_opens(bundle: Path, written: str | None) -> None:
    """Its manifest does not know of such forms; one of now says that a graph has none."""

    def strip(manifest: Json) -> None:
        for graph in manifest["graphs"].values():
            (bundle / graph["cuda"]["file"]).unlink()
            if written is None:
                graph["cuda"] = None
            else:
                del graph["cuda"]
        manifest["files"] = [file for file in manifest["files"] if not file["path"].endswith(".cuda.onnx")]

    edit_manifest(bundle, strip)
    opened = Bundle.open(bundle)
    assert len(opened.manifest.graphs) == len(read_manifest(bundle)["graphs"]) == 7
    assert all(len(graph.files) == 2 for graph in opened.manifest.graphs.values())
    with pytest.raises(BundleError, match=r"graph step .* has no form for CUDA.*export the checkpoint again with this"):
        opened.cuda_name("step")
    with pytest.raises(BundleError, match="no graph 'none'"):
        opened.cuda_name("none")
