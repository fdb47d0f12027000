"""What is rewritten for ONNX Runtime's CUDA provider, on graphs of a few nodes: the meaning of each stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from freeprompt.contract.errors import ExportError
from freeprompt.export.graph.cuda_form import fuse_for_cuda
from tests.engines.onnxruntime.cuda_reference import open_on_cpu


def test_the_library_turns_weights_round_once(tmp_path: Path) -> None:
    """Else every step would. In both precisions."""
    for kind in (np.float32, np.float16):
        weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(kind)
        tensor = numpy_helper.from_array(weight, "w")
        data_type = tensor.data_type
        nodes = [
            helper.make_node("Transpose", ["w"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ]
        inputs = [helper.make_tensor_value_info("x", data_type, ["n", 3, 3, 4])]
        outputs = [helper.make_tensor_value_info("y", data_type, None)]
        graph = helper.make_graph(nodes, "g", inputs, outputs, [tensor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert "Transpose" not in kinds


def gated_unit(width: int, swapped: bool = False, kept: bool = False) -> Any:
    """What the exporter makes of Stable Diffusion's GEGLU. ``swapped``: Gelu of the first half; ``kept``: a half is
    used once more."""
    rng = np.random.default_rng(width)
    weight = numpy_helper.from_array(rng.standard_normal((6, width)).astype(np.float32), "weight")
    bias = numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), "bias")
    first, second = ("b", "a") if swapped else ("a", "b")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Split", ["sum"], ["a", "b"], axis=-1, num_outputs=2),
        helper.make_node("Gelu", [second], ["gelu"], domain="com.microsoft"),
        helper.make_node("Mul", [first, "gelu"], ["gated"]),
        helper.make_node("Add", ["gated", "a"], ["y"]) if kept else helper.make_node("Identity", ["gated"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, width // 2])]
    graph = helper.make_graph(nodes, "gated", inputs, outputs, [weight, bias])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("width", "swapped", "kept", "fused"),
    [
        (2560, False, False, 1),
        (10240, False, False, 1),
        (2560, True, False, 0),
        (2560, False, True, 0),
        (64, False, False, 0),
    ],
)
def test_gated_units_are_fused_where_there_is_a_kernel(
    tmp_path: Path, width: int, swapped: bool, kept: bool, fused: int
) -> None:
    """Stable Diffusion's widths; another, or another meaning, stays as it is."""
    model = gated_unit(width, swapped, kept)
    x = np.random.default_rng(1).standard_normal((2, 5, 6)).astype(np.float32)
    before = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    path = tmp_path / "gated.onnx"
    onnx.save(model, path)
    result = fuse_for_cuda(path, "step")
    assert result.operators.get("BiasSplitGelu", 0) == fused
    after = open_on_cpu(result.model, tmp_path).run(None, {"x": x})[0]
    # The reference sums in float32 as the model does; erf is the library's in both.
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def half_group_norm(scale: Any, shift: Any, inner_scale: float = 1.0) -> Any:
    """As the export writes one of 8 channels in 4 groups."""
    constants = {
        "groups": np.array([0, 4, -1]), "ones": np.full(4, inner_scale, np.float16), "zeros": np.zeros(4, np.float16),
        "scale": scale, "shift": shift, "mean": np.zeros(8, np.float16), "variance": np.full(8, 1 - 1e-5, np.float16),
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["flat"]),
        helper.make_node("InstanceNormalization", ["flat", "ones", "zeros"], ["normal"], epsilon=1e-5),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["normal", "shape"], ["image"]),
        helper.make_node("BatchNormalization", ["image", "scale", "shift", "mean", "variance"], ["y"], epsilon=1e-5),
    ]
    graph = helper.make_graph(
        nodes, "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 8, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 8, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_half_precision(tmp_path: Path) -> None:
    """A group norm of a half precision image has float32 scale and shift, as its kernel wants."""
    rng = np.random.default_rng(5)
    scale, shift = (rng.standard_normal(8).astype(np.float16) for _ in range(2))
    path = tmp_path / "norm.onnx"
    onnx.save(half_group_norm(scale, shift), path)
    result = fuse_for_cuda(path, "step")
    assert result.operators == {"GroupNorm": 1}
    x = rng.standard_normal((2, 8, 6, 4)).astype(np.float16)
    got = open_on_cpu(result.model, tmp_path).run(None, {"x": x})[0]
    grouped = x.astype(np.float64).reshape(2, 4, -1)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    want = normal.reshape(x.shape) * scale[:, None, None].astype(float) + shift[:, None, None].astype(float)
    np.testing.assert_allclose(got, want, atol=4e-3)  # float16 near 4


def test_a_group_norm_that_the_optimizer_leaves_is_an_error(tmp_path: Path) -> None:
    """It knows those only whose inner scale is 1."""
    path = tmp_path / "norm.onnx"
    onnx.save(half_group_norm(np.ones(8, np.float16), np.zeros(8, np.float16), inner_scale=2.0), path)
    with pytest.raises(ExportError, match="fused 0 of 1 group norms of graph step for its CUDA provider; export with"):
        fuse_for_cuda(path, "step")


def test_a_group_norm_of_another_form_is_an_error(tmp_path: Path) -> None:
    """Rather than a batch norm that is dropped."""
    model = gated_unit(64)
    model.graph.node.append(helper.make_node("BatchNormalization", ["gated", "b1", "b2", "b3", "b4"], ["z"]))
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(
        ExportError, match=r"graph step could not be fused .* CUDA provider .*not the end of a group norm"
    ):
        fuse_for_cuda(path, "step")
