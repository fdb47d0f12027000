"""CUDA's operators as functions that ONNX Runtime cannot look into, so that a CPU shows how it moves transpositions.

A session cannot be made of operators without a kernel; of functions that are inlined late it can, and the library
optimises the graph before. The bodies have the shapes of the operators and compute nothing of use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper

DOMAIN = "barrier"
KINDS = ("NhwcConv", "GroupNorm", "SkipGroupNorm")


def loaded_transpositions(model: bytes, weights: Path, folder: Path) -> list[NodeProto]:
    """Those of images that are left when ONNX Runtime has loaded the rewritten graph."""
    proto = onnx.load_from_string(model)
    functions: dict[str, Any] = {}
    nodes = [_to_barrier(node, functions) if node.op_type in KINDS else node for node in proto.graph.node]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]
    proto.functions.extend(functions.values())
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    for key, value in (
        ("session.model_external_initializers_file_folder_path", str(weights.resolve())),
        ("session.disable_aot_function_inlining", "1"),
        ("session.optimized_model_external_initializers_file_name", "loaded.weights"),
    ):
        options.add_session_config_entry(key, value)
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(folder / "loaded.onnx", load_external_data=False)
    # Those of rank 2 are the bodies'.
    return [node for node in loaded.graph.node if node.op_type == "Transpose" and len(node.attribute[0].ints) == 4]


def _to_barrier(node: NodeProto, functions: dict[str, Any]) -> NodeProto:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    stride = attributes.get("strides", [1])[0]
    name = f"{node.op_type}_{len(node.input)}_{len(node.output)}_{stride}"
    inputs, outputs = (
        [f"{kind}{n}" for n in range(len(names))] for kind, names in (("i", node.input), ("o", node.output))
    )
    if name not in functions:
        body = _convolution(inputs, stride) if node.op_type == "NhwcConv" else []
        body = body or [helper.make_node("Erf", ["i0"], [output]) for output in outputs]
        functions[name] = helper.make_function(DOMAIN, name, inputs, outputs, body, [helper.make_opsetid("", 18)])
    return helper.make_node(name, list(node.input), list(node.output), name=node.name, domain=DOMAIN)


def _convolution(inputs: list[str], stride: int) -> list[NodeProto]:
    """[N,H,W,C] times the weights [O,kH,kW,C] summed over their windows."""

    def constant(name: str, values: list[int]) -> NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values)))

    body = [constant("axes", [1, 2]), constant("start", [0, 0]), constant("end", [1 << 31] * 2)]
    body += [
        constant("steps", [stride, stride]),
        helper.make_node("Slice", ["i0", "start", "end", "axes", "steps"], ["image"]),
        helper.make_node("ReduceSum", ["i1", "axes"], ["summed"], keepdims=0),
        helper.make_node("Transpose", ["summed"], ["weight"], perm=[1, 0]),
        helper.make_node("MatMul", ["image", "weight"], ["product"]),
        helper.make_node("Add", ["product", inputs[2]] if len(inputs) > 2 else ["product", "product"], ["o0"]),
    ]
    return body
