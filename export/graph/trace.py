"""Tracing a module into an ONNX model, and the clean-up that every backend profits from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import nn

from freeprompt.contract.errors import ExportError
from freeprompt.export.quiet import quiet

DEFAULT_OPSET = 18


def module_to_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    input_names: list[str],
    output_names: list[str],
    opset: int,
    graph: str,
) -> ir.Model:
    """Trace ``module`` with ``torch.onnx.export(dynamo=True)``.

    Raises:
        ExportError: names the graph and PyTorch's reason.
    """
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                module,
                args,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever tracing or translation met
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(f"graph {graph} could not be exported: {reason}") from error
    assert program is not None
    model: ir.Model = program.model
    _fold_transposes(model)
    _index_directly(model)
    _share_shapes(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    model.producer_name = "freeprompt"
    model.graph.name = graph
    return model


def _fold_transposes(model: ir.Model) -> None:
    """Store weights the way MatMul reads them.

    The exporter's own folding stops at small tensors, and every runtime would transpose the large ones while loading.
    """
    graph = model.graph
    folded: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        source = node.inputs[0]
        if not source.is_initializer() or source.const_value is None or source.name is None:
            continue
        attribute = node.attributes.get("perm")
        rank = len(source.const_value.shape)
        perm = tuple(attribute.as_ints()) if attribute else tuple(reversed(range(rank)))
        key = (source.name, perm)
        if key not in folded:
            name = f"{source.name}.transposed"
            array = np.ascontiguousarray(source.const_value.numpy().transpose(perm))
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            graph.register_initializer(value)
            folded[key] = value
        ir.convenience.replace_all_uses_with(node.outputs[0], folded[key])
        graph.remove(node, safe=True)
    passes.RemoveUnusedNodesPass()(model)


def _index_directly(model: ir.Model) -> None:
    """Gather by the int32 vectors that the graph is given.

    The exporter flattens and widens each index before each use: 100 of the embedded U-Net's 1,848 nodes, and a
    cast to int64 that TensorRT has to undo.
    """
    for node in model.graph:
        if node.op_type != "Gather" or node.inputs[1] is None:
            continue
        index = node.inputs[1]
        while (producer := index.producer()) is not None and producer.op_type in ("Cast", "Reshape"):
            source = producer.inputs[0]
            assert source is not None
            index = source
        if index is not node.inputs[1] and index.dtype == ir.DataType.INT32 and index.shape and len(index.shape) == 1:
            node.replace_input_with(1, index)


def _share_shapes(model: ir.Model) -> None:
    """Ask for each shape once: tensors of equal symbolic shape have equal shapes.

    Every group norm asks for its input's, of which there are as many as levels and widths.
    """
    asked: dict[tuple[str, str], ir.Value] = {}
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is None or source.shape is None or not all(_is_known(dim) for dim in source.shape):
            continue
        part = str(sorted((name, attribute.value) for name, attribute in node.attributes.items()))
        key = (str(source.shape), part)
        if key in asked:
            ir.convenience.replace_all_uses_with(node.outputs[0], asked[key])
            model.graph.remove(node, safe=True)
        else:
            asked[key] = node.outputs[0]


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None
