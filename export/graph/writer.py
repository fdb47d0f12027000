"""Graphs as files of a bundle, each compared with what it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from freeprompt.contract.errors import ExportError, OutputError
from freeprompt.contract.graphs import GraphSignature
from freeprompt.contract.manifest import CudaGraph, FusedGraph, GraphSpec
from freeprompt.export.graph.cuda_form import fuse_for_cuda
from freeprompt.export.graph.fused_form import ATTENTION, fuse
from freeprompt.export.graph.known_answers import KnownAnswers
from freeprompt.export.graph.parity import THRESHOLDS, Expectation, graph_to_parity
from freeprompt.export.graph.trace import module_to_onnx
from freeprompt.export.model.half import HalfLog
from freeprompt.export.settings import ExportSettings, Precision, Reporter


class GraphWriter:
    """The folder that fills with graphs, and what is known of each.

    Attributes:
        graphs: name -> what the manifest says of it.
        half: what was decided about half precision; empty where the bundle is float32.
        answers: of every graph, for the runtimes that will run it.
    """

    def __init__(self, folder: Path, settings: ExportSettings, progress: Reporter) -> None:
        self.folder, self.settings, self.progress = folder, settings, progress
        self.graphs: dict[str, GraphSpec] = {}
        self.half = HalfLog()
        self.answers = KnownAnswers()

    def trace(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        dynamic_shapes: tuple[Any, ...],
        inputs: list[str],
        outputs: list[str],
    ) -> ir.Model:
        """``module`` as an ONNX model.

        Raises:
            ExportError: it cannot be traced.
        """
        return module_to_onnx(module, args, dynamic_shapes, inputs, outputs, self.settings.opset, name)

    def save(self, model: ir.Model, name: str, weights: str) -> None:
        """Write the graph ``name`` and its weights.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            # Aligned to pages, so that a runtime may map the file instead of reading it.
            ir.save(model, self.folder / f"{name}.onnx", external_data=weights, alignment=4096)
        except OSError as error:
            raise OutputError(f"cannot write graph {name}: {error.strerror or error}") from error

    def cut(self, traced: str, name: str, cut: Callable[[ir.Model], None]) -> None:
        """Write the graph ``name``, cut from the written graph ``traced``; they share its weights."""
        model = ir.load(self.folder / f"{traced}.onnx")
        cut(model)
        ir.save(model, self.folder / f"{name}.onnx")

    def register(
        self,
        name: str,
        expectations: Sequence[Expectation],
        names: list[str],
        outputs: slice,
        signature: GraphSignature,
        precision: Precision | None = None,
    ) -> None:
        """Write the other forms of the written graph, and compare those that a CPU can run with what their model
        computes in float32.

        Args:
            name: of the graph.
            expectations, names, outputs: as ``graph_to_parity`` takes them; the last is kept as known answer.
            signature: of the graph.
            precision: of its weights, where it is not that of the settings.

        Raises:
            ExportError: one does not agree or cannot be written.
        """
        if {s.name for s in signature[0]} - set(names):
            raise ExportError(f"graph {name} has inputs that were not traced")
        path, fused_path = self.folder / f"{name}.onnx", self.folder / f"{name}.fused.onnx"
        precision = precision or self.settings.precision
        parity = graph_to_parity(name, path, expectations, names, outputs, precision)
        operators, layers = _write_fused(name, path, fused_path)
        fused_parity = graph_to_parity(name, fused_path, expectations, names, outputs, precision)
        worst = max(p.relative_l2 for p in (*parity, *fused_parity))
        # A layer that is not fused writes its maps to memory, and nothing else would tell.
        fused_layers = f", {operators.get(ATTENTION, 0)} of {layers} attention layers fused" if layers else ""
        self.progress(f"graph {name}: agrees with torch to {worst:.1e}{fused_layers}")
        self.progress(f"graph {name}: fusing it for CUDA")
        cuda = _write_cuda(name, fused_path, self.folder / f"{name}.cuda.onnx")
        fused = FusedGraph(fused_path.name, operators, fused_parity)
        known = expectations[-1]
        answer = self.answers.add(
            {spec.name: known.inputs[names.index(spec.name)] for spec in signature[0]},
            {spec.name: value for spec, value in zip(signature[1], known.outputs[outputs], strict=True)},
        )
        self.graphs[name] = GraphSpec(
            path.name, *signature, parity, THRESHOLDS[precision], fused=fused, known_answer=answer, cuda=cuda
        )


def _write_fused(name: str, path: Path, fused_path: Path) -> tuple[dict[str, int], int]:
    """Read again from the file, so that both refer to the same weights instead of each having its own.

    Returns:
        counts of the fused operators, and how many attention layers the graph has.
    """
    try:
        model = ir.load(path)
        layers = sum(node.op_type == "Softmax" for node in model.graph)
        operators = fuse(model)
        ir.save(model, fused_path)
    except OSError as error:
        raise OutputError(f"cannot write graph {name}: {error.strerror or error}") from error
    except Exception as error:  # the rewriter raises whatever its rules meet
        raise ExportError(f"graph {name} could not be fused for ONNX Runtime: {error}") from error
    return operators, layers


def _write_cuda(name: str, fused_path: Path, path: Path) -> CudaGraph:
    """Its weights are those of the fused form."""
    try:
        form = fuse_for_cuda(fused_path, name)
        path.write_bytes(form.model)
    except OSError as error:
        raise OutputError(f"cannot write graph {name}: {error.strerror or error}") from error
    return CudaGraph(path.name, form.operators)
