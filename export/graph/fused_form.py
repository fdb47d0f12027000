"""A second form of each graph for ONNX Runtime, with operators of its own that the standard does not have.

MatMul-Softmax-MatMul writes the maps of every row and head to memory, N x N; ``com.microsoft.MultiHeadAttention`` does
not. ONNX Runtime itself does not recognise the exporter's pattern while it loads a graph; onnxscript's rules do. The
standard form stays beside it, for TensorRT and every other runtime; both read the same weights.

Not used, on purpose: ``SkipLayerNormalization``, whose CPU kernel takes 85 us where the addition and the layer norm
that it replaces take 19 (512 tokens of 32 channels).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import optimize
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions import shape_optimization
from onnxscript.rewriter.ort_fusions.mha import fuse_mha2
from onnxscript.rewriter.ort_fusions.mha_scale import fuse_mha_scale
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa

DOMAIN = "com.microsoft"
ATTENTION, NORM = "MultiHeadAttention", "BatchNormalization"
# The root of 2 as single or half precision has it; onnxscript's own rule for Gelu takes the first only.
_ROOT_OF_TWO = pattern.Constant(2.0**0.5, rel_tol=1e-3)
# cuDNN takes no smaller one. The variance is 1 minus it, so that nothing is divided by anything but 1.
_EPSILON = 1e-5


def fuse(model: ir.Model) -> dict[str, int]:
    """Rewrite ``model`` in place.

    Returns:
        how many nodes there now are of each operator that stands for several.
    """
    passes.ShapeInferencePass()(model)
    optimize(model)
    shape_optimization.rules.apply_to_model(model)
    optimize(model)
    _GELU.apply_to_model(model)
    fuse_sdpa(model, apply_shape_inference=True)
    fuse_mha2(model)
    fuse_mha_scale(model)
    # Takes apart again what the second and third have begun and the fourth could not end.
    optimize(model)
    _merge_affine(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    count = Counter(node.op_type for node in model.graph if node.domain == DOMAIN or node.op_type == NORM)
    return dict(sorted(count.items()))


def _erf_gelu(op: Any, x: Any) -> Any:
    """Gelu as the exporter writes it: x (1 + erf(x / sqrt(2))) / 2."""
    return x * (0.5 * (op.Erf(x / _ROOT_OF_TWO) + 1.0))


def _gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, _domain=DOMAIN)


_GELU = pattern.RewriteRuleSet([pattern.RewriteRule(_erf_gelu, _gelu)])


def _merge_affine(model: ir.Model) -> None:
    """A group norm's scale and shift of each channel in one pass over the image instead of two.

    The exporter writes group norms as an instance norm of the groups, then Mul and Add of [C, 1, 1]; that is a
    batch norm of mean 0 and variance 1.
    """
    graph = model.graph
    unit: dict[tuple[int, ir.DataType], tuple[ir.Value, ir.Value]] = {}
    for add in list(graph):
        product = add.inputs[0] if add.op_type == "Add" else None
        mul = product.producer() if product is not None else None
        if product is None or mul is None or mul.op_type != "Mul" or len(product.uses()) != 1:
            continue
        scale, shift = _channels(mul.inputs[1]), _channels(add.inputs[1])
        image = mul.inputs[0]
        if scale is None or shift is None or scale.shape != shift.shape or image is None or image.dtype is None:
            continue
        key = (len(scale), image.dtype)
        if key not in unit:
            name = f"unit.{len(scale)}"
            mean, variance = np.zeros_like(scale), np.full_like(scale, 1.0 - _EPSILON)
            unit[key] = (_initializer(graph, f"{name}.mean", mean), _initializer(graph, f"{name}.variance", variance))
        name = str(add.outputs[0].name)
        inputs = [
            image,
            _initializer(graph, f"{name}.scale", scale),
            _initializer(graph, f"{name}.shift", shift),
            *unit[key],
        ]
        norm = ir.node(NORM, inputs, attributes={"epsilon": _EPSILON})
        norm.outputs[0].shape, norm.outputs[0].type = add.outputs[0].shape, add.outputs[0].type
        graph.insert_before(add, norm)
        ir.convenience.replace_all_uses_with(add.outputs[0], norm.outputs[0])
        graph.remove([add, mul], safe=True)


def _channels(value: ir.Value | None) -> np.ndarray | None:
    """[C] of a constant [C, 1, 1], else None."""
    if value is None or value.const_value is None:
        return None
    shape = tuple(value.const_value.shape.numpy())
    if len(shape) != 3 or shape[1:] != (1, 1):
        return None
    return np.ascontiguousarray(value.const_value.numpy().reshape(-1))


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
