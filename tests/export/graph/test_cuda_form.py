"""The form of each graph for ONNX Runtime's CUDA provider: fused in fact, of the same meaning, no weights of its own.

Its kernels need a GPU; their meaning is spelled out in standard operators (``cuda_reference``) and run on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import ExportError, OutputError
from freeprompt.engines.comparison import compare, profile_to_sizes, seeded_inputs
from freeprompt.engines.reference import reference_outputs
from freeprompt.export.graph import cuda_form, writer
from freeprompt.export.graph.cuda_form import fuse_for_cuda
from tests.engines.onnxruntime.cuda_reference import open_on_cpu
from tests.export.graph.barrier import loaded_transpositions
from tests.shapes import shapes_of

GRAPHS = ("step", "step_recorded", "step_recording", "record", "text_encoder", "vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def model_of(bundle: Bundle, graph: str) -> bytes:
    return bundle.read(bundle.cuda_name(graph))


def external(model: bytes) -> dict[str, set[tuple[str, str]]]:
    """Weight -> where it is: file, offset, length."""
    tensors = onnx.load_from_string(model).graph.initializer
    return {
        t.name: {(entry.key, entry.value) for entry in t.external_data}
        for t in tensors
        if t.data_location == TensorProto.EXTERNAL
    }


@pytest.mark.parametrize("graph", GRAPHS)
def test_it_means_the_same(bundle: Bundle, graph: str) -> None:
    """At two sizes, one not square, so that a shape that was baked in or an axis mixed up would show.

    Bound: the same sums in another order, in single precision; a transposed axis or a lost bias gives above 1e-2.
    """
    session = open_on_cpu(model_of(bundle, graph), bundle.path)
    for profile in shapes_of(bundle.manifest, (64, 64), (96, 64), rows="2,3").profiles(graph):
        sizes = profile_to_sizes(profile)
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, seeded_inputs(bundle.manifest, graph, sizes))
        found = compare("", reference_outputs(bundle, graph, sizes, 1), dict(zip(names, values, strict=True)))
        assert found.relative_l2 < 2e-6, profile


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_has_it_and_the_manifest_counts_its_operators(bundle: Bundle, graph: str) -> None:
    spec = bundle.manifest.graph(graph).cuda
    assert spec is not None and spec.file == f"{graph}.cuda.onnx"
    nodes = onnx.load_from_string(model_of(bundle, graph)).graph.node
    assert spec.operators == Counter(node.op_type for node in nodes if node.domain)
    assert set(bundle.manifest.graphs) == set(GRAPHS)


@pytest.mark.parametrize("graph", [g for g in GRAPHS if g != "text_encoder"])
def test_no_group_norm_and_no_convolution_is_left(bundle: Bundle, graph: str) -> None:
    """Counted in the standard form, which has one InstanceNormalization for each group norm."""
    standard = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
    before = Counter(node.op_type for node in standard.graph.node)
    after = Counter(node.op_type for node in onnx.load_from_string(model_of(bundle, graph)).graph.node)
    # The autoencoder's attention normalises tokens, [N, C, HW]: not an image, so not this operator.
    tokens = 1 if graph.startswith("vae") else 0
    assert after["GroupNorm"] + after["SkipGroupNorm"] == before["InstanceNormalization"] - tokens > 0
    assert after["InstanceNormalization"] == tokens
    assert after["NhwcConv"] == before["Conv"] > 0 == after["Conv"]
    assert after["MultiHeadAttention"] == before["Softmax"] > 0 == after["Softmax"]
    assert after["BatchNormalization"] == 0


@pytest.mark.parametrize(("graph", "left"), [("step", 2), ("vae_decoder", 4), ("vae_encoder", 4), ("record", 1)])
def test_images_are_turned_round_where_they_come_and_go(bundle: Bundle, tmp_path: Path, graph: str, left: int) -> None:
    """As ONNX Runtime has loaded it: its transpose optimizer has moved the others until they met. Latents come and
    go, the record graph gives none; the autoencoder's attention reads [N, C, HW]."""
    assert len(loaded_transpositions(model_of(bundle, graph), bundle.path, tmp_path)) == left


@pytest.mark.parametrize("graph", GRAPHS)
def test_it_holds_no_weights(bundle: Bundle, graph: str) -> None:
    """Each is where the fused form has it too, byte for byte; ONNX Runtime turns convolutions round while it loads."""
    fused, cuda = bundle.read(bundle.graph_name(graph, fused=True)), model_of(bundle, graph)
    named, shared = external(cuda), external(fused)
    assert len(named) > 0.5 * len(shared)
    assert all(shared[name] == place for name, place in named.items())
    own = [t for t in onnx.load_from_string(cuda).graph.initializer if t.data_location != TensorProto.EXTERNAL]
    assert max(t.ByteSize() for t in own) < 8192, "as of the fused form: some constants"
    # A transposition more for each convolution, some nodes less for each norm; the weights are many times that.
    assert len(cuda) < 1.2 * len(fused)


def test_bytes_are_the_same_in_every_process(bundle: Bundle) -> None:
    """An export is repeatable: no order of a set or of names in memory is in it."""
    code = (
        "import hashlib, sys; from pathlib import Path; from freeprompt.export.graph.cuda_form import fuse_for_cuda\n"
        "print(hashlib.sha256(fuse_for_cuda(Path(sys.argv[1]), 'vae_decoder').model).hexdigest())"
    )
    path = bundle.graph_path("vae_decoder", fused=True)
    found = {
        subprocess.run(
            [sys.executable, "-c", code, path],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {next(f.sha256 for f in bundle.manifest.files if f.path == "vae_decoder.cuda.onnx")}


def test_a_graph_that_cannot_be_read_or_written(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(FileNotFoundError):
        fuse_for_cuda(tmp_path / "none.onnx", "step")
    with pytest.raises(OutputError, match="cannot write graph step: No such file"):
        writer._write_cuda("step", tmp_path / "none.onnx", tmp_path / "step.cuda.onnx")
    with pytest.raises(OutputError, match="cannot write graph vae_encoder: No such file"):
        writer._write_cuda("vae_encoder", bundle.graph_path("vae_encoder", fused=True), tmp_path / "none" / "a.onnx")


def test_what_the_optimizer_raises_is_an_export_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise KeyError("shape")

    monkeypatch.setattr(cuda_form, "optimize_by_fusion", broken)
    with pytest.raises(
        ExportError, match=r"graph vae_encoder could not be fused .* by onnxruntime .*KeyError\('shape'\)"
    ):
        fuse_for_cuda(bundle.graph_path("vae_encoder", fused=True), "vae_encoder")


def test_nothing_is_printed(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """The optimizer shows progress and gives hints on the terminal."""
    fuse_for_cuda(bundle.graph_path("vae_decoder", fused=True), "vae_decoder")
    assert capfd.readouterr() == ("", "")
