"""What ONNX Runtime's optimizer is prepared for, and what it does not do, on the way to a graph's form for CUDA.

Each works on an ``onnx.ModelProto`` in place. None reads a large weight: a graph names those of its bundle.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft"
# The widths that the CUDA kernel of BiasSplitGelu is compiled for.
GATED_WIDTHS = (2560, 5120, 10240)
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def prepare_group_norms(model: Any) -> int:
    """Write group norms as the optimizer knows them.

    In these graphs one is Reshape, InstanceNormalization, Reshape to what some tensor of that shape has, and a
    BatchNormalization of mean 0 that scales and shifts (export/graph/fused_form.py). The optimizer wants the shape of
    the very tensor that was reshaped, then Mul and Add.

    Returns:
        how many there are.

    Raises:
        ValueError: a BatchNormalization that ends none.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    nodes: list[Any] = []
    count = 0
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        count += 1
        back = producers[node.input[0]]
        normalised = producers[back.input[0]]
        flat = producers[normalised.input[0]]
        if (back.op_type, normalised.op_type, flat.op_type) != ("Reshape", "InstanceNormalization", "Reshape"):
            raise ValueError(f"{node.name or node.output[0]} is not the end of a group norm")
        name = node.output[0]
        nodes.insert(
            next(place for place, earlier in enumerate(nodes) if earlier is back),
            helper.make_node("Shape", [flat.input[0]], [f"{name}.shape"], name=f"{name}.shape"),
        )
        back.input[1] = f"{name}.shape"
        for old, new in ((node.input[1], f"{name}.scale_3d"), (node.input[2], f"{name}.shift_3d")):
            # GroupNorm takes them in float32 whatever the image is, and the optimizer passes them on as they are.
            values = numpy_helper.to_array(constants[old]).astype("float32").reshape(-1, 1, 1)
            model.graph.initializer.append(numpy_helper.from_array(values, new))
        product = f"{name}.scaled"
        nodes.append(helper.make_node("Mul", [node.input[0], f"{name}.scale_3d"], [product], name=product))
        nodes.append(helper.make_node("Add", [product, f"{name}.shift_3d"], [name], name=f"{name}.shifted"))
    _replace_nodes(model, nodes)
    return count


def fuse_gated(model: Any, widths: tuple[int, ...] = GATED_WIDTHS) -> None:
    """Add(bias), Split in two, Gelu of the second half, product: one ``BiasSplitGelu``."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(output.name for output in model.graph.output)
    fused: dict[int, Any] = {}
    gone: set[int] = set()
    for node in model.graph.node:
        gelu = next((producers[name] for name in node.input if _is_exact_gelu(producers.get(name))), None)
        if node.op_type != "Mul" or gelu is None or uses[gelu.output[0]] != 1:
            continue
        split = producers.get(gelu.input[0])
        if split is None or split.op_type != "Split" or len(split.output) != 2:
            continue
        left = next(name for name in node.input if name != gelu.output[0])
        add = producers.get(split.input[0])
        if (left, gelu.input[0]) != tuple(split.output) or any(uses[name] != 1 for name in split.output):
            continue
        if add is None or add.op_type != "Add" or uses[add.output[0]] != 1:
            continue
        bias = next((name for name in add.input if name in constants and len(constants[name].dims) == 1), None)
        if bias is None or constants[bias].dims[0] not in widths or _axis(split) not in (-1, 2):
            continue
        hidden = next(name for name in add.input if name != bias)
        name = node.output[0]
        fused[id(node)] = helper.make_node("BiasSplitGelu", [hidden, bias], [name], name=f"{name}.gated", domain=DOMAIN)
        gone |= {id(gelu), id(split), id(add)}
    _replace_nodes(model, [fused.get(id(node), node) for node in model.graph.node if id(node) not in gone])


def to_channels_last(model: Any) -> None:
    """Convolutions and what lies between them on images with channels last, each between two transpositions.

    Those that meet vanish: here where they are neighbours, and in ONNX Runtime, which moves them through additions and
    concatenations while it loads. On Stable Diffusion 1.5's step two of 200 are left, where latents come and go.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(name: str, values: Any) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    nodes: list[Any] = []
    for node in model.graph.node:
        name = node.output[0]
        image, result = f"{name}.channels_last_input", f"{name}.channels_last"
        first = helper.make_node("Transpose", [node.input[0]], [image], name=image, perm=_TO_CHANNELS_LAST)
        if node.op_type == "Conv" and _rank(constants.get(node.input[1])) == 4:
            turned = f"{name}.channels_last_weight"
            weight = helper.make_node("Transpose", [node.input[1]], [turned], name=turned, perm=_TO_CHANNELS_LAST)
            changed = helper.make_node("NhwcConv", [image, turned, *node.input[2:]], [result], name=result)
            changed.domain = DOMAIN
            nodes += [first, weight]
        elif node.op_type == "Resize" and (scales := _small(constants, node, 2)) is not None and scales.shape == (4,):
            permuted = constant(f"{name}.channels_last_scales", scales[list(_TO_CHANNELS_LAST)])
            changed = helper.make_node("Resize", [image, "", permuted], [result], name=result)
            nodes.append(first)
        elif node.op_type == "Unsqueeze" and _is_to_image(_small(constants, node, 1)):
            inner = constant(f"{name}.channels_last_axes", np.array([1, 2]))
            changed = helper.make_node("Unsqueeze", [node.input[0], inner], [result], name=result)
        else:
            nodes.append(node)
            continue
        changed.attribute.extend(node.attribute)
        back = helper.make_node("Transpose", [result], [name], name=f"{name}.channels_first", perm=_TO_CHANNELS_FIRST)
        nodes += [changed, back]
    _replace_nodes(model, nodes)


def _is_to_image(axes: Any) -> bool:
    """Whether an Unsqueeze makes [N, C, 1, 1] of [N, C], to be added to an image."""
    return axes is not None and axes.tolist() == [2, 3]


def _rank(tensor: Any) -> int:
    return -1 if tensor is None else len(tensor.dims)


def _small(constants: dict[str, Any], node: Any, number: int) -> Any:
    """Values of an input that is a small constant, else None."""
    name = node.input[number] if len(node.input) > number else ""
    tensor = constants.get(name)
    return None if tensor is None or tensor.external_data else numpy_helper.to_array(tensor)


def _is_exact_gelu(node: Any) -> bool:
    """Whether it is the Gelu by the error function, not the approximation by tanh."""
    if node is None or node.op_type != "Gelu":
        return False
    return not any(attribute.name == "approximate" and attribute.s != b"none" for attribute in node.attribute)


def _axis(split: Any) -> int:
    return next((int(attribute.i) for attribute in split.attribute if attribute.name == "axis"), 0)


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    # Copies: what the graph gives up is freed.
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
