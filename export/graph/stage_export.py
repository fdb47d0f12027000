"""A graph with weights of its own, on its way into a bundle."""

from __future__ import annotations

import copy

from torch import nn

from freeprompt.export.graph.parity import Expectation, ParityError, module_to_expectations
from freeprompt.export.graph.writer import GraphWriter
from freeprompt.export.model.calibration import Calibration
from freeprompt.export.model.half import ASKED, halve
from freeprompt.export.model.ranges import WHOLE, module_to_ranges
from freeprompt.export.model.stages import Stage
from freeprompt.export.settings import Precision


def write_stage(stage: Stage, writer: GraphWriter, calibration: Calibration | None) -> None:
    """Write the graph; with a calibration in half precision, but for what that cannot hold.

    Raises:
        ExportError: it cannot be exported or does not agree with the model, in float32 either.
    """
    writer.progress(f"graph {stage.name}")
    stage.module.eval()
    expected = module_to_expectations(stage.module, stage.cases[1:])
    if calibration is None:
        _write(stage, stage.module, expected, writer, "float32")
        return
    if writer.settings.keeps(stage.name):
        writer.half.keep(stage.name, WHOLE, ASKED)
        _write(stage, stage.module, expected, writer, "float32")
        return
    ranges = module_to_ranges(stage.module, lambda: stage.module(*calibration.stage_args(stage.name)))
    writer.half.ranges[stage.name] = ranges
    parts = ranges.float32_parts()
    if WHOLE not in parts:
        # A copy, since the other half of an autoencoder is still to be measured, and this may yet be needed.
        half = copy.deepcopy(stage.module)
        halve(half, parts)
        try:
            _write(stage, half, expected, writer, "float16")
        except ParityError as error:
            writer.progress(f"{error}; it stays float32")
            writer.half.keep(stage.name, WHOLE, f"in float16 the {error}")
        else:
            writer.half.keep_parts(stage.name, parts, "activations")
            return
    else:
        writer.half.keep_parts(stage.name, parts, "activations")
    _write(stage, stage.module, expected, writer, "float32")


def _write(
    stage: Stage, module: nn.Module, expected: tuple[Expectation, ...], writer: GraphWriter, precision: Precision
) -> None:
    names = [spec.name for spec in stage.signature[0]]
    outputs = [spec.name for spec in stage.signature[1]]
    model = writer.trace(stage.name, module, stage.cases[0][1], stage.dynamic_shapes, names, outputs)
    writer.save(model, stage.name, f"{stage.name}.weights")
    writer.register(stage.name, expected, names, slice(None), stage.signature, precision)
