"""Operators that only ONNX Runtime's CUDA provider has, spelled out in standard ones, so that a CPU can run the graph.

Written from the operators' documentation (ContribOperators.md): what a rewritten graph means, without the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class Expansion:
    """Standard nodes that stand for one node."""

    def __init__(self, node: NodeProto) -> None:
        self.node = node
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def input(self, number: int) -> str:
        """Name of an input, "" where it is left out."""
        return self.node.input[number] if number < len(self.node.input) else ""

    def __call__(self, kind: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> str:
        names = [output or f"{self.node.output[0]}.reference.{len(self.nodes)}"]
        names += [f"{names[0]}.{number}" for number in range(1, outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def constant(self, values: Any) -> str:
        name = f"{self.node.output[0]}.constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def group_norm(op: Expansion, image: str = "") -> None:
    """``image`` is [N,H,W,C]; statistics in float32, as the kernel does."""
    assert op.attributes.get("channels_last", 1) == 1
    image = image or op.input(0)
    groups, epsilon = op.attributes["groups"], op.attributes.get("epsilon", 1e-5)
    first = op("Cast", op("Transpose", image, perm=FIRST), to=TensorProto.FLOAT)
    flat = op("Reshape", first, op.constant(np.array([0, groups, -1])))
    last = op.constant(np.array([2]))
    centred = op("Sub", flat, op("ReduceMean", flat, last))
    variance = op("ReduceMean", op("Mul", centred, centred), last)
    scale = op("Sqrt", op("Add", variance, op.constant(np.float32(epsilon))))
    back = op("Transpose", op("Reshape", op("Div", centred, scale), op("Shape", first)), perm=LAST)
    result = op("Add", op("Mul", back, op.input(1)), op.input(2))
    if op.attributes["activation"]:
        result = op("Mul", result, op("Sigmoid", result))
    op("CastLike", result, image, output=op.node.output[0])


def skip_group_norm(op: Expansion) -> None:
    total = op("Add", op.input(0), op.input(3))
    if op.input(4):
        total = op("Add", total, op.input(4))
    if len(op.node.output) > 1:
        op("Identity", total, output=op.node.output[1])
    group_norm(op, total)


def nhwc_conv(op: Expansion) -> None:
    image = op("Transpose", op.input(0), perm=FIRST)
    weight = op("Transpose", op.input(1), perm=FIRST)
    bias = [op.input(2)] if op.input(2) else []
    op("Transpose", op("Conv", image, weight, *bias, **op.attributes), perm=LAST, output=op.node.output[0])


def bias_split_gelu(op: Expansion) -> None:
    left = op("Split", op("Add", op.input(0), op.input(1)), outputs=2, axis=-1, num_outputs=2)
    right = op("Cast", f"{left}.1", to=TensorProto.FLOAT)
    scaled = op("Mul", right, op.constant(np.float32(0.5**0.5)))
    gelu = op(
        "Mul", op("Mul", right, op.constant(np.float32(0.5))), op("Add", op("Erf", scaled), op.constant(np.float32(1)))
    )
    op("Mul", left, op("CastLike", gelu, left), output=op.node.output[0])


def bias_add(op: Expansion) -> None:
    op("Add", op("Add", op.input(0), op.input(1)), op.input(2), output=op.node.output[0])


REFERENCES: dict[str, Callable[[Expansion], None]] = {
    "GroupNorm": group_norm,
    "SkipGroupNorm": skip_group_norm,
    "NhwcConv": nhwc_conv,
    "BiasSplitGelu": bias_split_gelu,
    "BiasAdd": bias_add,
}


def to_standard(model: bytes) -> bytes:
    """The graph with every CUDA operator spelled out."""
    proto = onnx.load_from_string(model)
    constants: list[TensorProto] = []
    nodes = list(_expand(proto, constants))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(constants)
    del proto.graph.value_info[:]
    result: bytes = proto.SerializeToString()
    return result


def open_on_cpu(model: bytes, folder: Path) -> Any:
    """A session of the graph with every CUDA operator spelled out; ``folder`` is that of its weights."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return ort.InferenceSession(to_standard(model), options, providers=["CPUExecutionProvider"])


def _expand(proto: Any, constants: list[TensorProto]) -> Iterator[NodeProto]:
    for node in proto.graph.node:
        reference = REFERENCES.get(node.op_type) if node.domain == "com.microsoft" else None
        if reference is None:
            yield NodeProto.FromString(node.SerializeToString())
            continue
        expansion = Expansion(node)
        reference(expansion)
        constants += expansion.constants
        yield from expansion.nodes
