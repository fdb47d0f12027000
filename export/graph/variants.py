"""The graphs of one U-Net, cut from one traced model so that they share every weight.

The traced model takes recorded rows and gives every recordable layer's hidden states. From it come:

- ``step``: neither; one engine that does everything.
- ``step_recorded``: takes recorded rows.
- ``step_recording``: gives hidden states next to the stepped latents.
- ``record``: gives hidden states and nothing else, so that everything after the last recorded layer falls away, and
  with it guidance and the scheduler; rows use their own maps, so that the routing falls away too.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from freeprompt.contract.graphs import RECORD, STEP, STEP_RECORDED, STEP_RECORDING

ROUTING_INPUTS = ("map_row", "cross_map_row")


def to_step(model: ir.Model) -> None:
    """Take away recorded inputs and hidden outputs."""
    _keep_outputs(model, {"next_latents"})
    _remove_records(model)
    _finish(model, STEP)


def to_step_recording(model: ir.Model, outputs: dict[str, str]) -> None:
    """Take away recorded inputs; ``outputs`` as in ``to_record``."""
    _remove_records(model)
    _rename_outputs(model, outputs)
    _finish(model, STEP_RECORDING)


def to_step_recorded(model: ir.Model) -> None:
    """Take away hidden outputs."""
    _keep_outputs(model, {"next_latents"})
    _finish(model, STEP_RECORDED)


def to_record(model: ir.Model, outputs: dict[str, str]) -> None:
    """Keep the hidden states only.

    Args:
        outputs: traced output name -> name in the record graph.
    """
    graph = model.graph
    _keep_outputs(model, set(outputs))
    _remove_records(model)
    for value in list(graph.inputs):
        if value.name in ROUTING_INPUTS:
            for user in [use.node for use in value.uses()]:
                if user.op_type == "Shape":
                    _count_rows_by(model, user, "row_latent")
                    continue
                # The user picks a layer's row of the table; what gathers by that is routed.
                index = _after_reshapes(user.outputs[0])
                _bypass(model, (use.node for use in index.uses()))
    _rename_outputs(model, outputs)
    passes.RemoveUnusedNodesPass()(model)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    # The pinned latents are joined to the stepped ones; here there is one kind only.
    _bypass(model, (n for n in list(graph) if n.op_type == "Concat" and _joins_pinned(n)))
    for value in list(graph.inputs):
        if value.name == "pinned_latents":
            graph.inputs.remove(value)
    _finish(model, RECORD)


def _count_rows_by(model: ir.Model, shape: ir.Node, name: str) -> None:
    """The exporter may have read the number of rows off a routing table; read it off a vector instead."""
    vector = next(value for value in model.graph.inputs if value.name == name)
    other = ir.node("Shape", [vector], attributes={"start": 0, "end": 1})
    assert shape.attributes["start"].as_int() == 1, shape
    model.graph.insert_before(shape, other)
    ir.convenience.replace_all_uses_with(shape.outputs[0], other.outputs[0])
    model.graph.remove(shape, safe=True)


def _joins_pinned(node: ir.Node) -> bool:
    return any(value is not None and value.name == "pinned_latents" for value in node.inputs)


def _after_reshapes(value: ir.Value) -> ir.Value:
    """Follow Squeeze, Reshape and Cast: the exporter may put them between a choice and its use."""
    while True:
        users = [use.node for use in value.uses()]
        if len(users) == 1 and users[0].op_type in ("Squeeze", "Reshape", "Cast", "Identity"):
            value = users[0].outputs[0]
        else:
            return value


def _bypass(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Replace each node's output by its first input: a Concat with records, a Gather by a map."""
    for node in list(nodes):
        assert node.op_type in ("Concat", "Gather") and node.inputs[0] is not None, node
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        model.graph.remove(node, safe=True)


def _remove_records(model: ir.Model) -> None:
    for value in list(model.graph.inputs):
        if value.name is not None and value.name.startswith("record_"):
            # Cast first where the layer that takes it stays float32 in a float16 bundle.
            record = _after_reshapes(value)
            _bypass(model, (use.node for use in record.uses()))
            model.graph.inputs.remove(value)


def _rename_outputs(model: ir.Model, names: dict[str, str]) -> None:
    for output in model.graph.outputs:
        assert output.name is not None
        output.name = names.get(output.name, output.name)


def _keep_outputs(model: ir.Model, names: set[str]) -> None:
    for output in list(model.graph.outputs):
        if output.name not in names:
            model.graph.outputs.remove(output)


def _finish(model: ir.Model, name: str) -> None:
    passes.RemoveUnusedNodesPass()(model)
    model.graph.name = name
