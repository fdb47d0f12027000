"""Other providers than the CPU's: what they compute is compared before it is used. A real plug-in edits for real."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from freeprompt import Editor, ProviderUnusedWarning
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.session import Array, Feed, HostArray
from freeprompt.editor import demo_bundle
from freeprompt.engines import verify
from freeprompt.engines.comparison import seeded_inputs, small_sizes
from freeprompt.engines.onnxruntime import backend as onnxruntime_backend
from freeprompt.engines.onnxruntime.backend import DeviceArray, OnnxRuntimeBackend, OnnxRuntimeSession
from freeprompt.engines.select import create_backend
from freeprompt.engines.warm import warm_bundle
from tests.damage import Json, copy_bundle, edit_manifest
from tests.engines.conftest import SIZE
from tests.shapes import shapes_of

PLUGIN = "nxrt_ep_cpu"
with_plugin = pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason=f"{PLUGIN} is not installed")
# It takes the text encoder of the embedded model and leaves the U-Net to the CPU.
unused = pytest.mark.filterwarnings("ignore::freeprompt.contract.errors.ProviderUnusedWarning")


@pytest.fixture(autouse=True)
def nothing_shown_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(verify.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_answers(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of a time before known answers."""

    def forget(manifest: Json) -> None:
        del manifest["known_answers"]
        for graph in manifest["graphs"].values():
            del graph["known_answer"]

    copied = copy_bundle(tiny_bundle, tmp_path / "old")
    edit_manifest(copied, forget)
    return Bundle.open(copied)


@with_plugin
@unused
def test_an_edit_of_the_embedded_example_by_a_real_plugin() -> None:
    """In float32; what differs is the order of sums in the text encoder, over twenty steps with guidance."""
    examples = demo_bundle().parent / "examples"
    prompt = (examples / "prompt.txt").read_text().strip()
    results = []
    for name in ("cpu", f"ort:{PLUGIN}"):
        editor = Editor.load(backend=name, threads=1, verify=False)
        inversion = editor.invert(examples / "example-1.png", 20)
        results.append(editor.edit_latents(inversion, prompt))
    on_cpu, by_plugin = results
    assert np.abs(by_plugin - on_cpu).max() <= 1e-4
    assert (by_plugin != on_cpu).any(), "the plug-in computed nothing of it"


@with_plugin
def test_what_a_plugin_takes_is_told(tiny_bundle: Path) -> None:
    bundle, backend = Bundle.open(tiny_bundle), create_backend(f"ort:{PLUGIN}", 1)
    assert (backend.name, backend.device) == (f"ort:{PLUGIN}", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = backend.open(bundle, "text_encoder")
    assert isinstance(session, OnnxRuntimeSession)
    placement = session.placement
    assert placement is not None and 0 < placement.taken <= placement.nodes
    with pytest.warns(ProviderUnusedWarning, match="cpu_ep takes no node of graph vae_decoder, which runs on the CPU"):
        backend.open(bundle, "vae_decoder")
    assert OnnxRuntimeBackend("cpu", 1).open_model(bundle, "text_encoder", None).placement is None


@with_plugin
@unused
def test_a_build_says_which_nodes_run_where(tiny_bundle: Path) -> None:
    bundle, lines = Bundle.open(tiny_bundle), list[str]()
    shapes = shapes_of(bundle.manifest, SIZE, rows="1")
    backend = create_backend(f"ort:{PLUGIN}", 1)
    for parity in warm_bundle(bundle, shapes, backend, ("text_encoder", "vae_decoder"), lines.append):
        assert parity.relative_l2 < 1e-5
    text = "\n".join(lines)
    assert "text_encoder: " in text and " nodes on cpu_ep" in text
    assert "vae_decoder: 0 of " in text and "on cpu_ep, the others on the CPU" in text


def halves(session: Any, feeds: Mapping[str, Feed]) -> dict[str, Array]:
    """A provider with a wrong kernel; the CPU's own sessions compute right."""
    results = session._run_on_host(feeds)
    if session.placement is None:
        return results  # type: ignore[no-any-return]
    return {name: HostArray(value.numpy() / 2) for name, value in results.items()}


@with_plugin
@unused
@pytest.mark.parametrize("answers", [True, False], ids=["known answers", "compared with the CPU"])
def test_a_provider_that_computes_wrong_is_refused(
    tiny_bundle: Path,
    without_answers: Bundle,
    nothing_shown_before: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
) -> None:
    bundle = Bundle.open(tiny_bundle) if answers else without_answers
    monkeypatch.setattr(OnnxRuntimeSession, "run", halves)
    for graph in bundle.manifest.graphs:
        with pytest.raises(BackendError) as raised:
            create_backend(f"ort:{PLUGIN}", 1).open(bundle, graph)
        said = str(raised.value)
        assert f"(cpu_ep of nxrt-ep-cpu 0.1.0.dev6) computes graph {graph} wrong here: it differs from " in said
        assert ("the model by 5.0e-01" if answers else "ONNX Runtime on the CPU by 5.0e-01") in said
        assert "let it compute in the model's precision" in said and "choose another backend" in said
    assert not nothing_shown_before.exists()


@with_plugin
@unused
def test_a_bundle_without_answers_is_compared_once(
    without_answers: Bundle, nothing_shown_before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(OnnxRuntimeBackend):
        def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> OnnxRuntimeSession:
            made.append(self.name)
            return super().open_model(bundle, graph, model)

    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeBackend", Counted)
    for _ in range(2):
        Counted(PLUGIN, 1).open(without_answers, "step")
    assert made == [f"ort:{PLUGIN}", "cpu", f"ort:{PLUGIN}"]
    assert len(list(nothing_shown_before.rglob("*.json"))) == 1
    Counted(f"{PLUGIN},another=option", 1).open(without_answers, "step")
    assert made[3:] == [f"ort:{PLUGIN},another=option", "cpu"], "with other options it has to show it again"
    Counted("cpu", 1).open(without_answers, "step")
    assert made[5:] == ["cpu"], "there is nothing to compare the CPU with"


def test_results_are_left_on_the_gpu_that_was_chosen(tiny_bundle: Path) -> None:
    """On a session that binds as ONNX Runtime's does, and computes on the CPU."""
    bundle = Bundle.open(tiny_bundle)
    on_cpu = OnnxRuntimeBackend("cpu", 1).open(bundle, "text_encoder")
    ids = np.zeros((1, 77), np.int32)

    class Binding:
        def __init__(self) -> None:
            self.inputs: dict[str, Any] = {}
            self.outputs: list[tuple[str, str, int]] = []
            self.bind_cpu_input = self.inputs.__setitem__

        def bind_output(self, name: str, device: str, number: int) -> None:
            self.outputs.append((name, device, number))

        def get_outputs(self) -> list[Any]:
            results = on_cpu.run(self.inputs)
            return [ort.OrtValue.ortvalue_from_numpy(results[name].numpy()) for name, _, _ in self.outputs]

    class Session:
        binding = Binding()
        get_inputs, get_outputs = on_cpu._session.get_inputs, on_cpu._session.get_outputs  # type: ignore[attr-defined]

        def io_binding(self) -> Binding:
            return self.binding

        def run_with_iobinding(self, binding: Binding, options: Any) -> None:
            assert binding is self.binding

    session = OnnxRuntimeSession("text_encoder", Session(), bundle.manifest.graph("text_encoder"), cuda_device=1)
    result = session.run({"input_ids": ids})["encoder_hidden_states"]
    assert isinstance(result, DeviceArray)
    np.testing.assert_array_equal(result.numpy(), on_cpu.run({"input_ids": ids})["encoder_hidden_states"].numpy())
    assert Session.binding.outputs == [("encoder_hidden_states", "cuda", 1)]


def test_small_sizes_are_run_by_every_graph(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for graph in bundle.manifest.graphs:
        inputs = seeded_inputs(bundle.manifest, graph, small_sizes(bundle.manifest, graph))
        outputs = OnnxRuntimeBackend("cpu", 1).open(bundle, graph).run(inputs)
        assert all(np.isfinite(value.numpy()).all() for value in outputs.values())
        assert _size(inputs) <= _size(_answer(bundle, graph)), "as small as a known answer"


def _answer(bundle: Bundle, graph: str) -> Mapping[str, np.ndarray[Any, Any]]:
    return verify._read_answer(bundle, graph, bundle.manifest.graph(graph))[0]


def _size(values: Mapping[str, np.ndarray[Any, Any]]) -> int:
    return sum(value.nbytes for value in values.values())


def test_a_dimension_that_is_not_known(tiny_bundle: Path) -> None:
    manifest: Manifest = Bundle.open(tiny_bundle).manifest
    spec = manifest.graph("text_encoder")
    (ids,) = spec.inputs
    other = replace(spec, inputs=(replace(ids, shape=("frames", 77)),))
    changed = replace(manifest, graphs={**manifest.graphs, "text_encoder": other})
    with pytest.raises(BackendError, match="has a dimension 'frames' that this freeprompt does not know"):
        small_sizes(changed, "text_encoder")
