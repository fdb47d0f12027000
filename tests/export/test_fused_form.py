"""The fused form of each graph: fused in fact, the same result, no weights of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

STEPS = ("step", "step_recorded", "step_recording")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def operators(bundle: Bundle, graph: str, fused: bool) -> Counter[str]:
    model = onnx.load(str(bundle.graph_path(graph, fused)), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("graph", STEPS)
def test_every_attention_layer_of_a_step_is_fused(bundle: Bundle, graph: str) -> None:
    """Read off the file; the manifest says the same. A softmax that is left would write N x N maps to memory."""
    layers = len(bundle.manifest.layers) + bundle.manifest.cross_layers
    standard, fused = operators(bundle, graph, False), operators(bundle, graph, True)
    assert standard["Softmax"] == layers and standard["MultiHeadAttention"] == 0
    assert fused["Softmax"] == 0 and fused["MultiHeadAttention"] == layers
    spec = bundle.manifest.graph(graph).fused
    assert spec is not None and spec.operators["MultiHeadAttention"] == layers
    assert all(fused[name] == count for name, count in spec.operators.items())


def test_standard_form_has_standard_operators_only(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs:
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}


def test_fused_form_reads_the_same_weights(bundle: Bundle) -> None:
    """What it has of its own are some constants."""
    for graph in bundle.manifest.graphs:
        for fused in (False, True):
            model = onnx.load(str(bundle.graph_path(graph, fused)), load_external_data=False)
            own = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
            assert max(t.ByteSize() for t in own) < 8192
    weights = [file.path for file in bundle.manifest.files if file.path.endswith(".weights")]
    assert len(weights) == 4


def test_fused_parity_is_recorded(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs.values():
        assert graph.fused is not None
        assert [p.shapes for p in graph.fused.parity] == [p.shapes for p in graph.parity]
        assert all(0.0 < p.relative_l2 < graph.parity_threshold for p in graph.fused.parity)


@pytest.mark.parametrize("record", ["none", "exact"])
def test_an_edit_by_either_form_is_the_same(bundle: Bundle, record: str) -> None:
    """10 steps. Single precision summed in another order: what the literal reference differs by in 50 is 2e-5."""
    found: list[Any] = []
    for fused in (False, True):
        editor = Editor(bundle, OnnxRuntimeBackend("cpu", threads=1, fused=fused))
        noise = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
        inversion = editor.pipeline.invert(editor.pipeline.graphs.backend.upload(noise), 10)
        found.append(editor.edit_latents(inversion, "a red cat", record=record))
    standard, fused_latents = found
    difference = float(np.linalg.norm(fused_latents - standard) / np.linalg.norm(standard))
    assert 0.0 < difference < 2e-5
