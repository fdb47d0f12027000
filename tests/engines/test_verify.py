"""A runtime that computes something else than the model is refused before it makes a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.numpy

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError
from freeprompt.contract.manifest import TensorSpec
from freeprompt.contract.session import Array, Feed, HostArray, NumpyArray
from freeprompt.engines import verify
from freeprompt.engines.onnxruntime import library
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.verify import Runner, Verified, verify_session
from tests.damage import Json, copy_bundle, edit_manifest, rehash

RUNNER = Runner("Some Runtime 1.0", "for tests")


class ChangedSession:
    """ONNX Runtime's results, changed on their way; counts its runs."""

    def __init__(self, bundle: Bundle, graph: str, change: Callable[[NumpyArray], NumpyArray] = lambda value: value):
        self._session = OnnxRuntimeBackend("cpu", threads=1).open_model(bundle, graph, None)
        self._change = change
        self.runs = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        self.runs += 1
        results = self._session.run(feeds)
        return {name: HostArray(self._change(value.numpy())) for name, value in results.items()}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def verified(tmp_path: Path) -> Verified:
    return Verified(tmp_path / "cache")


def test_every_graph_has_a_known_answer_that_both_forms_give(bundle: Bundle, tmp_path: Path) -> None:
    assert {name for name, spec in bundle.manifest.graphs.items() if spec.known_answer} == set(bundle.manifest.graphs)
    for graph in bundle.manifest.graphs:
        for fused in (False, True):
            session = OnnxRuntimeBackend("cpu", 1, fused=fused).open_model(bundle, graph, None)
            verify_session(bundle, graph, session, RUNNER, Verified(tmp_path / f"{graph}-{fused}"))


def test_the_answer_is_pytorchs(bundle: Bundle, tiny_checkpoint: Path) -> None:
    """Computed again from the checkpoint, by diffusers alone: the autoencoder's half that decodes."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_checkpoint / "vae")
    tensors = safetensors.numpy.load_file(bundle.path / str(bundle.manifest.known_answers))
    answer = bundle.manifest.graph("vae_decoder").known_answer
    assert answer is not None
    latents = torch.from_numpy(tensors[answer.inputs["latents"]])
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].numpy()
    np.testing.assert_allclose(tensors[answer.outputs["image"]], expected, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value * np.float32(1.01),
        lambda value: np.roll(value, 1, axis=-1),
        lambda value: np.full_like(value, np.nan),
        lambda value: np.zeros_like(value),
        lambda value: value[..., :-1],
    ],
    ids=["scaled", "shifted", "not finite", "zeros", "cut"],
)
@pytest.mark.parametrize("graph", ["text_encoder", "step", "record"])
def test_a_runtime_that_computes_something_else_is_refused(
    bundle: Bundle, verified: Verified, graph: str, change: Callable[[NumpyArray], NumpyArray]
) -> None:
    session = ChangedSession(bundle, graph, change)
    with pytest.raises(BackendError, match=r"Some Runtime 1\.0 .* choose another backend"):
        verify_session(bundle, graph, session, RUNNER, verified)
    assert not verified.holds(bundle, graph, RUNNER)


def test_what_was_shown_once_is_not_asked_again(bundle: Bundle, tmp_path: Path) -> None:
    session = ChangedSession(bundle, "step")
    for _ in range(3):
        verify_session(bundle, "step", session, RUNNER, Verified(tmp_path))
    assert session.runs == 1


def test_another_version_form_or_bundle_has_to_show_it_again(
    bundle: Bundle, verified: Verified, tiny_bundle: Path, tmp_path: Path
) -> None:
    verify_session(bundle, "step", ChangedSession(bundle, "step"), RUNNER, verified)
    copied = copy_bundle(tiny_bundle, tmp_path / "other")
    edit_manifest(copied, lambda manifest: manifest.update(model="another"))
    others: list[tuple[Bundle, Runner]] = [
        (bundle, Runner("Some Runtime 1.1", RUNNER.build)),
        (bundle, Runner(RUNNER.name, "another form")),
        (Bundle.open(copied), RUNNER),
    ]
    for opened, runner in others:
        session = ChangedSession(opened, "step")
        verify_session(opened, "step", session, runner, verified)
        assert session.runs == 1


def test_a_cache_that_cannot_be_written_means_asking_each_time(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    session = ChangedSession(bundle, "step")
    for _ in range(2):
        verify_session(bundle, "step", session, RUNNER, Verified(tmp_path / "file"))
    assert session.runs == 2


def test_backends_ask_before_they_return_a_session(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(verify.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr("freeprompt.engines.onnxruntime.backend.OnnxRuntimeSession.run", _zeros)
    with pytest.raises(BackendError, match=r"ONNX Runtime .* computes graph text_encoder wrong here"):
        OnnxRuntimeBackend("cpu", threads=1).open(bundle, "text_encoder")
    assert not list(tmp_path.rglob("*.json"))


def _zeros(session: Any, feeds: Mapping[str, Feed]) -> dict[str, Array]:
    return {"encoder_hidden_states": HostArray(np.zeros((*np.shape(feeds["input_ids"]), 32), np.float32))}


def test_a_bundle_without_known_answers_is_not_asked(tiny_bundle: Path, tmp_path: Path, verified: Verified) -> None:
    def forget(manifest: Json) -> None:
        del manifest["known_answers"]
        for graph in manifest["graphs"].values():
            del graph["known_answer"]

    copied = copy_bundle(tiny_bundle, tmp_path / "old")
    edit_manifest(copied, forget)
    bundle = Bundle.open(copied)
    session = ChangedSession(bundle, "step", np.zeros_like)
    verify_session(bundle, "step", session, RUNNER, verified)
    assert session.runs == 0


@pytest.mark.parametrize("damage", ["no tensor", "not finite", "no safetensors", "another shape"])
def test_damaged_answers(tiny_bundle: Path, tmp_path: Path, verified: Verified, damage: str) -> None:
    copied = copy_bundle(tiny_bundle, tmp_path / "damaged")
    file = copied / "known_answers.safetensors"
    answer = Bundle.open(copied).manifest.graph("step").known_answer
    assert answer is not None
    name = answer.inputs["latents"]
    tensors = safetensors.numpy.load_file(file)
    if damage == "no tensor":
        del tensors[name]
    elif damage == "not finite":
        tensors[name] = np.full_like(tensors[name], np.inf)
    else:
        tensors[name] = tensors[name][:, :, :1]
    file.write_bytes(b"\0" * 100 if damage == "no safetensors" else safetensors.numpy.save(tensors))
    rehash(copied)
    bundle = Bundle.open(copied)
    with pytest.raises((BundleError, BackendError), match=r"known_answers|shape"):
        verify_session(bundle, "step", ChangedSession(bundle, "step"), RUNNER, verified)


@pytest.mark.parametrize("version", ["1.17.3", "1.20.0", "1.20.1", "1.21.0", "1.9", "unknown"])
def test_versions_that_compute_wrong_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    with pytest.raises(BackendError, match=r"onnxruntime .* later one: pip install 'onnxruntime>=1\.21\.1'"):
        OnnxRuntimeBackend("cpu")


@pytest.mark.parametrize("version", ["1.21.1", "1.22.0", "1.32.0", "1.23.0.dev20250801", "2.0.0", "1.22"])
def test_versions_that_compute_right_are_taken(version: str) -> None:
    library.check_version(version)
