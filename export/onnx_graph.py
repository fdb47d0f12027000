"""Tracing a module into an ONNX model, and the clean-up that every backend profits from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import nn

from freeprompt.errors import ExportError
from freeprompt.export.checkpoint import quiet

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
