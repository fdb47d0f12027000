"""Notes on forms for CUDA: what each holds for, who is believed, and what is said of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError
from freeprompt.contract.parity import Parity
from freeprompt.engines import doctor
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.cuda.runtime import DeviceInfo
from freeprompt.engines.onnxruntime import cuda_notes
from freeprompt.engines.onnxruntime.cuda_notes import CudaNote, CudaNotes, CudaTiming, note_from_json
from tests.engines.onnxruntime.cpu_backend import VERSION, check, notes_of, refusals

pytestmark = pytest.mark.usefixtures("times")


def test_reasons_of_refusal(bundle: Bundle, times: list[float], tmp_path: Path) -> None:
    times.clear()
    check(bundle, "vae_decoder")
    (path,) = (bundle.engines / "cuda").glob("*.json")
    assert refusals(bundle) == ["None"]
    assert refusals(bundle, version="9.9") == [f"checked with onnxruntime {VERSION}, this is 9.9"]
    assert notes_of(bundle, version="9.9").model("vae_decoder") is None
    assert refusals(bundle, device="Other") == ["checked on GPU, this is Other"]
    assert notes_of(bundle, device="Other").model("vae_decoder") is None
    assert refusals(bundle, device="") == ["None"], "where no one can tell the GPU's name"
    stranger = CudaNotes(bundle, VERSION, "GPU", Signature(tmp_path / "other"))
    assert "not written by this user" in str(stranger.scan()[0].refused)
    assert stranger.model("vae_decoder") is None
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"fused_ms": 1.0', b'"fused_ms": 2.0'))
    assert "not written by this user" in refusals(bundle)[0], "a note that was edited"
    for damage in (b"", b"{}", b"[" * 100_000, good[: len(good) // 2]):
        path.write_bytes(damage)
        assert "its metadata cannot be read" in refusals(bundle)[0]
    path.write_bytes(good.replace(b'"version": 2', b'"version": 3'))
    assert "its metadata has version 3, this freeprompt reads 2" in refusals(bundle)[0]
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert "it cannot be read" in refusals(bundle)[0]
    assert notes_of(bundle).model("vae_decoder") is None
    path.unlink()
    check(bundle, "vae_decoder")
    assert refusals(bundle) == ["None"], "checked again"
    path.rename(path.with_name(f"step{path.name[len('vae_decoder') :]}"))
    assert refusals(bundle) == ["it belongs to another graph"]
    assert notes_of(bundle).model("step") is None


def test_another_export_of_either_form_is_another_graph(bundle: Bundle) -> None:
    """Or of the weights. The standard form is not run."""
    check(bundle, "step")
    for changed, refused in (
        ("unet.weights", True),
        ("step.cuda.onnx", True),
        ("step.fused.onnx", True),
        ("step.onnx", False),
        ("vae_decoder.cuda.onnx", False),
    ):
        files = tuple(replace(f, sha256="0" * 64) if f.path == changed else f for f in bundle.manifest.files)
        other = replace(bundle, manifest=replace(bundle.manifest, files=files))
        reason = "it is of another version of the graph or its weights" if refused else "None"
        assert refusals(other) == [reason], changed
        assert (notes_of(other).model("step") is None) == refused


def test_a_note_for_each_device_and_version(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that several machines share is checked on each."""
    check(bundle, "step")
    check(bundle, "step", device="Other")
    assert sorted(refusals(bundle)) == ["None", "checked on Other, this is GPU"]
    assert notes_of(bundle).model("step") and notes_of(bundle, device="Other").model("step")
    monkeypatch.setattr(cuda_notes, "_device_name", lambda: "Third")
    assert CudaNotes(bundle, VERSION).model("step") is None


def test_the_form_that_was_checked_is_given(bundle: Bundle, times: list[float]) -> None:
    """That of the opened bundle, whatever lies in its place by now."""
    times.clear()
    check(bundle, "vae_decoder")
    opened = Bundle.open(bundle.path)
    path = opened.path / "vae_decoder.cuda.onnx"
    good = path.read_bytes()
    path.write_bytes(b"something else")
    assert notes_of(opened).model("vae_decoder") == good
    with pytest.raises(BundleError, match=r"vae_decoder\.cuda\.onnx has 14 bytes"):
        Bundle.open(bundle.path)


def test_a_graph_without_the_form_is_never_given(bundle: Bundle) -> None:
    """As in a bundle of before; a note of before says nothing for it."""
    check(bundle, "step")
    graphs = {name: replace(graph, cuda=None) for name, graph in bundle.manifest.graphs.items()}
    older = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    assert notes_of(older).model("step") is None
    with pytest.raises(BundleError, match=r"graph step .* has no form for CUDA.*export the checkpoint again"):
        check(older, "step")
    assert "has no form for CUDA" in refusals(older)[0]
    graphs.pop("step")
    assert "no graph 'step'" in refusals(replace(bundle, manifest=replace(bundle.manifest, graphs=graphs)))[0]


def test_numbers_that_are_none_speak_against() -> None:
    note = CudaNote("step", "0", "1", parity_threshold=1e-3)
    assert "inf" in str(note.problem), "never measured"
    right = replace(note, parity=(Parity("", 1e-4, 1e-4),))
    assert "nan" in str(replace(note, parity=(Parity("", float("nan"), 0.0),)).problem)
    assert "slower" in str(replace(right, timings=(CudaTiming("", 1.0, float("nan")),)).problem)
    assert replace(right, timings=(CudaTiming("", 1.0, 1.0),)).problem is None


def test_doctor_lists_notes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    check(bundle, "step")
    info = DeviceInfo(0, "GPU", "9.0", 1 << 30, "13.0", "12.9")
    monkeypatch.setattr(doctor, "_gpu", lambda: (info, None))
    monkeypatch.setattr(doctor, "_packages", lambda: {"onnxruntime-gpu": VERSION})
    advice = f"for a faster --backend cuda: freeprompt build {bundle.path} --backend cuda"
    text = "\n".join(doctor.report_to_lines(doctor.examine(bundle)))
    assert ".json: usable" in text and "GroupNorm" in text and advice not in text
    monkeypatch.setattr(doctor, "_gpu", lambda: (replace(info, name="Other"), None))
    text = "\n".join(doctor.report_to_lines(doctor.examine(bundle)))
    assert "checked on GPU, this is Other" in text and advice in text
    graphs = {name: replace(graph, cuda=None) for name, graph in bundle.manifest.graphs.items()}
    older = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    text = "\n".join(doctor.report_to_lines(doctor.examine(older)))
    assert "for a faster --backend cuda: export the checkpoint again" in text and advice not in text
    shutil.rmtree(bundle.engines)
    assert "forms for CUDA that were checked" not in "\n".join(doctor.report_to_lines(doctor.examine(bundle)))


def test_a_note_read_back(bundle: Bundle) -> None:
    (done,) = check(bundle, "text_encoder")
    (path,) = (bundle.engines / "cuda").glob("*.json")
    assert replace(note_from_json(path.read_bytes()), seal="") == done.note
