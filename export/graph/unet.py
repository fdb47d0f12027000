"""The graphs of the U-Net: traced once, then cut."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from freeprompt.contract.graphs import (
    RECORD,
    STEP,
    STEP_GRAPHS,
    STEP_RECORDED,
    STEP_RECORDING,
    UNET,
    GraphSignature,
    record_name,
    record_signature,
    record_tensors,
    step_signature,
)
from freeprompt.contract.manifest import DataType, LatentSpec, TextSpec
from freeprompt.export.graph import variants
from freeprompt.export.graph.parity import Expectation, module_to_expectations
from freeprompt.export.graph.writer import GraphWriter
from freeprompt.export.model.calibration import Calibration
from freeprompt.export.model.cases import Routes, StepCase, step_cases
from freeprompt.export.model.half import ASKED, halve
from freeprompt.export.model.layers import Architecture, set_routed_attention
from freeprompt.export.model.modules import StepGraph
from freeprompt.export.model.ranges import LIMIT, WHOLE, unet_to_ranges

TRACED = "traced"
WEIGHTS = "unet.weights"


class UnetExport:
    """One U-Net on its way into a bundle."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        architecture: Architecture,
        latents: LatentSpec,
        text: TextSpec,
        writer: GraphWriter,
    ) -> None:
        self.architecture, self.latents, self.text, self.writer = architecture, latents, text, writer
        self.half = writer.settings.precision == "float16"
        self.recordable = tuple(layer.number for layer in architecture.layers if layer.recordable)
        set_routed_attention(unet, architecture)
        self.module = StepGraph(unet, self.recordable).eval()
        self.expected: dict[Routes, tuple[Expectation, ...]] = {}
        self.step = step_signature(latents, text, len(architecture.layers), len(architecture.cross_layers))
        dtype: DataType = writer.settings.precision
        self.rows_in = record_tensors(architecture.layers, "record_rows", dtype)
        self.record = record_signature(latents, text, architecture.layers, dtype)
        self.names = [spec.name for spec in (*self.step[0], *self.rows_in)]

    def write(self, calibration: Calibration | None) -> None:
        """Write every graph that the architecture's recordable layers allow. The U-Net's weights are gone after it.

        Args:
            calibration: for half precision.

        Raises:
            ExportError: a graph cannot be exported or does not agree with the model.
        """
        routes: tuple[Routes, ...] = ("own", "recorded", "none") if self.recordable else ("own",)
        self.expected = {route: self._expect(route) for route in routes}
        if calibration is not None:
            self.halve(calibration)
        self._trace()
        _free_weights(self.module)
        self.writer.progress("graph step")
        self.writer.cut(TRACED, STEP, variants.to_step)
        self._register(STEP, "own", self.step)
        if self.recordable:
            self._write_recording()
        for name in STEP_GRAPHS:
            self._count_macs(name, self.architecture.macs)
        if self.recordable:
            self._count_macs(RECORD, self.architecture.macs_before[self.recordable[-1] - 1])
        (self.writer.folder / f"{TRACED}.onnx").unlink()

    def halve(self, calibration: Calibration) -> None:
        """Halve the weights in place, but for what the calibration shows to be out of range."""
        self.writer.progress("graph step: measuring the U-Net's ranges")
        unet, log = self.module.unet, self.writer.half
        ranges = unet_to_ranges(unet, calibration.samples, calibration.timesteps, calibration.texts)
        log.ranges[UNET] = ranges
        parts = ranges.float32_parts()
        upcast = {name: peak for name, peak in ranges.upcast().items() if not parts.keys() & {WHOLE, name}}
        log.keep_parts(UNET, parts, "activations")
        log.keep_parts(UNET, upcast, "attention logits")
        asked = [n for n in ranges.logits if self.writer.settings.keeps(f"{UNET}.{n}") and n not in upcast]
        for name in asked:
            log.keep(UNET, name, ASKED)
        configured = [name for name in ranges.logits if unet.get_submodule(name).upcast_attention]
        below = [ranges.logits[name] for name in configured if name not in upcast and name not in asked]
        if below:
            # From when queries met keys before they were scaled. To obey would cost the fused kernels
            # (which sum in float32 themselves) and write N x N maps of float32.
            reason = f"upcast_attention in {len(below)} layers, whose logits reach {max(below):.4g} of {LIMIT:.4g}"
            log.believe_not(UNET, WHOLE, reason)
        set_routed_attention(unet, self.architecture, [*upcast, *asked])
        self.module.record_dtype = torch.float16
        if WHOLE not in parts:
            halve(unet, parts)

    def _trace(self) -> None:
        self.writer.progress("graph step: tracing the U-Net")
        first = self._cases("recorded")[0]
        outputs = [self.step[1][0].name, *(_hidden_name(number) for number in self.recordable)]
        model = self.writer.trace(STEP, self.module, first.args, first.dynamic_shapes, self.names, outputs)
        self.writer.save(model, TRACED, WEIGHTS)

    def _write_recording(self) -> None:
        (step_in, step_out), (_, record_out) = self.step, self.record
        renamed = {_hidden_name(number): record_name(number) for number in self.recordable}
        self.writer.progress("graph step_recorded")
        self.writer.cut(TRACED, STEP_RECORDED, variants.to_step_recorded)
        self._register(STEP_RECORDED, "recorded", ((*step_in, *self.rows_in), step_out))
        self.writer.progress("graph step_recording")
        self.writer.cut(TRACED, STEP_RECORDING, lambda model: variants.to_step_recording(model, renamed))
        self._register(STEP_RECORDING, "own", (step_in, (*step_out, *record_out)))
        self.writer.progress("graph record")
        self.writer.cut(TRACED, RECORD, lambda model: variants.to_record(model, renamed))
        self._register(RECORD, "none", self.record)

    def _cases(self, routes: Routes) -> list[StepCase]:
        cases = step_cases(self.latents, self.text, self.architecture, routes)
        if not self.half:
            return cases
        return [replace(c, records=tuple(r.half() for r in c.records)) for c in cases]

    def _expect(self, routes: Routes) -> tuple[Expectation, ...]:
        cases = self._cases(routes)[1:]
        return module_to_expectations(self.module, [(case.shapes, case.args) for case in cases])

    def _register(self, name: str, routes: Routes, signature: GraphSignature) -> None:
        outputs = {RECORD: slice(1, None), STEP_RECORDING: slice(None)}.get(name, slice(0, 1))
        self.writer.register(name, self.expected[routes], self.names, outputs, signature)

    def _count_macs(self, name: str, macs: int) -> None:
        graphs = self.writer.graphs
        if name in graphs:
            graphs[name] = replace(graphs[name], macs=macs)


def _free_weights(module: nn.Module) -> None:
    """Give the memory back that they take, whoever still refers to them: PyTorch keeps what it has traced.

    ONNX Runtime will hold a copy of the weights, and another while it loads.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():  # not where it is a part of a mapped file
            storage.resize_(0)


def _hidden_name(layer: int) -> str:
    """Name of a layer's hidden states as output of the traced model."""
    return f"hidden_{layer:02d}"
