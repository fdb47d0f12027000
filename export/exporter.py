"""Export: a checkpoint becomes a bundle, or an error and nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Literal

import onnx_ir as ir
import torch
from torch import nn

import freeprompt
from freeprompt.bundle import Bundle
from freeprompt.errors import ExportError, OutputError, UsageError
from freeprompt.export import variants
from freeprompt.export.cases import SEED, Routes, StepCase, step_cases
from freeprompt.export.checkpoint import Checkpoint, load_checkpoint
from freeprompt.export.layers import Architecture, set_routed_attention, unet_to_architecture
from freeprompt.export.onnx_graph import DEFAULT_OPSET, module_to_onnx
from freeprompt.export.parity import THRESHOLDS, graph_to_parity
from freeprompt.export.scheduler import config_to_scheduler
from freeprompt.export.signatures import (
    Signature,
    record_name,
    record_signature,
    record_tensors,
    step_signature,
    text_encoder_signature,
    vae_decoder_signature,
    vae_encoder_signature,
)
from freeprompt.export.stage_graphs import (
    StepGraph,
    TextEncoderGraph,
    VaeDecoderGraph,
    VaeEncoderGraph,
)
from freeprompt.export.tokenizer import save_tokenizer
from freeprompt.files import atomic_folder, file_to_sha256
from freeprompt.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    DataType,
    FileSpec,
    GraphSpec,
    LatentSpec,
    Manifest,
    TextSpec,
    manifest_to_json,
)

Progress = Callable[[str], None]
Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
PROFILES = ("memory", "latency")


@dataclass(frozen=True)
class ExportSettings:
    """How a checkpoint is exported.

    Attributes:
        precision: of the weights; latents, guidance and scheduler are float32 either way.
        opset: ONNX operator set.
        profile: "memory" holds the one step graph that does everything; "latency" also the graphs that record and
            use recorded hidden states, which share its weights on disk.
    """

    precision: Precision = "float32"
    opset: int = DEFAULT_OPSET
    profile: str = "latency"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; use {' or '.join(PRECISIONS)}")
        if self.profile not in PROFILES:
            raise UsageError(f"unknown profile {self.profile!r}; use {' or '.join(PROFILES)}")
        if not 18 <= self.opset <= 23:
            raise UsageError(f"opset must be from 18 to 23, not {self.opset}")


def export_checkpoint(
    source: str | Path,
    target: str | Path,
    settings: ExportSettings | None = None,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Export a diffusers checkpoint (a folder or a hub id) as the bundle ``target``.

    Raises:
        CheckpointError: it cannot be loaded or is of another kind.
        ExportError: a graph cannot be exported or does not agree with the model.
        OutputError: the bundle exists already or cannot be written.
    """
    settings = settings or ExportSettings()
    target = Path(target)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another name or ask to overwrite it")
    progress(f"loading {source}")
    checkpoint = load_checkpoint(str(source))
    with atomic_folder(target, overwrite) as folder:
        manifest = _Exporter(checkpoint, settings, folder, progress).run()
        (folder / MANIFEST_NAME).write_bytes(manifest_to_json(manifest))
        progress("checking the bundle")
        Bundle.open(folder)
    return Bundle.open(target, verify=False)


class _Exporter:
    """The state of one export: what is known of the model, and the folder that fills."""

    def __init__(self, checkpoint: Checkpoint, settings: ExportSettings, folder: Path, progress: Progress) -> None:
        self.checkpoint, self.settings, self.folder = checkpoint, settings, folder
        self.progress = progress
        self.latents = _latent_spec(checkpoint)
        self.text = _text_spec(checkpoint)
        # Here, since an unknown value must be told before graphs are traced for minutes.
        self.scheduler = config_to_scheduler(checkpoint.scheduler)
        native = (
            self.latents.height // self.latents.scale,
            self.latents.width // self.latents.scale,
        )
        architecture = unet_to_architecture(checkpoint.unet, *native)
        layers = tuple(
            replace(layer, recordable=layer.replaced and settings.profile == "latency") for layer in architecture.layers
        )
        self.architecture: Architecture = replace(architecture, layers=layers)
        self.graphs: dict[str, GraphSpec] = {}

    def run(self) -> Manifest:
        tokenizer = "tokenizer.json"
        self.progress("tokenizer")
        save_tokenizer(self.checkpoint.tokenizer, self.folder / tokenizer)
        self._text_encoder()
        self._vae()
        self._unet()
        files = tuple(
            FileSpec(p.relative_to(self.folder).as_posix(), p.stat().st_size, file_to_sha256(p))
            for p in sorted(self.folder.rglob("*"))
            if p.is_file()
        )
        return Manifest(
            format_version=FORMAT_VERSION,
            producer=f"freeprompt {freeprompt.__version__}, torch {torch.__version__}",
            model=Path(self.checkpoint.name).name,
            precision=self.settings.precision,
            opset=self.settings.opset,
            latents=self.latents,
            text=self.text,
            scheduler=self.scheduler,
            layers=self.architecture.layers,
            cross_layers=len(self.architecture.cross_layers),
            graphs=self.graphs,
            tokenizer=tokenizer,
            files=files,
        )

    def _text_encoder(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        vocabulary = self.checkpoint.text_encoder.config.vocab_size

        def case(texts: int) -> tuple[str, tuple[Any, ...]]:
            ids = torch.randint(vocabulary, (texts, self.text.tokens), generator=generator)
            return f"texts={texts}", (ids.int(),)

        self._stage(
            "text_encoder",
            TextEncoderGraph(self.checkpoint.text_encoder),
            [case(2), case(1), case(3)],
            ({0: torch.export.Dim("texts", min=1, max=1024)},),
            text_encoder_signature(self.text),
        )

    def _vae(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        spec, block = self.latents, self.latents.multiple
        sizes = [(2, 2 * block, 3 * block), (1, 2 * block, 2 * block), (3, 3 * block, 2 * block)]
        dim = torch.export.Dim
        h, w = dim("h", min=1, max=4096), dim("w", min=1, max=4096)
        count, scale = dim("images", min=1, max=64), spec.scale
        pixels, codes = [], []
        for images, height, width in sizes:
            shapes = f"images={images} latents {height}x{width}"
            image = torch.rand(images, 3, height * scale, width * scale, generator=generator)
            code = torch.randn(images, spec.channels, height, width, generator=generator)
            pixels.append((shapes, (image * 2 - 1,)))
            codes.append((shapes, (code,)))
        self._stage(
            "vae_encoder",
            VaeEncoderGraph(self.checkpoint.vae),
            pixels,
            ({0: count, 2: scale * h, 3: scale * w},),
            vae_encoder_signature(spec),
        )
        self._stage(
            "vae_decoder",
            VaeDecoderGraph(self.checkpoint.vae),
            codes,
            ({0: count, 2: h, 3: w},),
            vae_decoder_signature(spec),
        )

    def _stage(
        self,
        name: str,
        module: nn.Module,
        cases: list[tuple[str, tuple[Any, ...]]],
        dynamic_shapes: tuple[Any, ...],
        signature: Signature,
    ) -> None:
        """A graph with weights of its own."""
        self.progress(f"graph {name}")
        names = [spec.name for spec in signature[0]]
        outputs = [spec.name for spec in signature[1]]
        model = module_to_onnx(
            self._precise(module),
            cases[0][1],
            dynamic_shapes,
            names,
            outputs,
            self.settings.opset,
            name,
        )
        self._save(model, name, f"{name}.weights")
        self._register(name, module.eval(), cases[1:], tuple(names), slice(None), signature)

    def _unet(self) -> None:
        self.progress("graph step: tracing the U-Net")
        layers, unet = self.architecture.layers, self.checkpoint.unet
        recordable = tuple(layer.number for layer in layers if layer.recordable)
        set_routed_attention(unet, self.architecture)
        module = StepGraph(unet, recordable)
        first = self._step_cases("recorded")[0]
        step_in, step_out = step_signature(self.latents, self.text, len(layers), len(self.architecture.cross_layers))
        dtype: DataType = self.settings.precision
        rows_in = record_tensors(layers, "record_rows", dtype)
        record_sig = record_signature(self.latents, self.text, layers, dtype)
        names = [spec.name for spec in (*step_in, *rows_in)]
        hidden = [f"hidden_{number:02d}" for number in recordable]
        precise = self._precise(module)
        traced = module_to_onnx(
            precise,
            first.args,
            first.dynamic_shapes,
            names,
            [step_out[0].name, *hidden],
            self.settings.opset,
            "step",
        )
        del precise
        self._save(traced, "traced", "unet.weights")
        del traced
        self.progress("graph step")
        self._variant("step", variants.to_step)
        self._register_step("step", module, "own", names, (step_in, step_out))
        if recordable:
            self.progress("graph step_recorded")
            self._variant("step_recorded", variants.to_step_recorded)
            signature = ((*step_in, *rows_in), step_out)
            self._register_step("step_recorded", module, "recorded", names, signature)
            renamed = {f"hidden_{n:02d}": record_name(n) for n in recordable}
            self.progress("graph step_recording")
            self._variant("step_recording", lambda model: variants.to_step_recording(model, renamed))
            signature = (step_in, (*step_out, *record_sig[1]))
            self._register_step("step_recording", module, "own", names, signature)
            self.progress("graph record")
            self._variant("record", lambda model: variants.to_record(model, renamed))
            self._register_step("record", module, "none", names, record_sig)
        self._count_macs(recordable)
        (self.folder / "traced.onnx").unlink()

    def _step_cases(self, routes: Routes) -> list[StepCase]:
        cases = step_cases(self.latents, self.text, self.architecture, routes)
        if self.settings.precision == "float32":
            return cases
        return [replace(c, records=tuple(r.half() for r in c.records)) for c in cases]

    def _register_step(
        self, name: str, module: nn.Module, routes: Routes, names: list[str], signature: Signature
    ) -> None:
        cases = [(case.shapes, case.args) for case in self._step_cases(routes)[1:]]
        outputs = {"record": slice(1, None), "step_recording": slice(None)}.get(name, slice(0, 1))
        self._register(name, module, cases, tuple(names), outputs, signature)

    def _variant(self, name: str, cut: Callable[[ir.Model], None]) -> None:
        model = ir.load(self.folder / "traced.onnx")
        cut(model)
        ir.save(model, self.folder / f"{name}.onnx")

    def _count_macs(self, recordable: tuple[int, ...]) -> None:
        for name in ("step", "step_recorded", "step_recording", "record"):
            if name in self.graphs:
                macs = self.architecture.macs
                if name == "record":
                    macs = self.architecture.macs_before[recordable[-1] - 1]
                self.graphs[name] = replace(self.graphs[name], macs=macs)

    def _precise(self, module: nn.Module) -> nn.Module:
        """The module as it is traced; a copy where the weights are halved, since parity needs the original."""
        if self.settings.precision == "float32":
            return module.eval()
        return copy.deepcopy(module).half().eval()

    def _save(self, model: ir.Model, name: str, weights: str) -> None:
        try:
            # Aligned to pages, so that a runtime may map the file instead of reading it.
            ir.save(model, self.folder / f"{name}.onnx", external_data=weights, alignment=4096)
        except OSError as error:
            raise OutputError(f"cannot write graph {name}: {error.strerror or error}") from error

    def _register(
        self,
        name: str,
        reference: nn.Module,
        cases: list[tuple[str, tuple[Any, ...]]],
        names: tuple[str, ...],
        outputs: slice,
        signature: Signature,
    ) -> None:
        path = self.folder / f"{name}.onnx"
        precision = self.settings.precision
        parity = graph_to_parity(name, path, reference, cases, names, outputs, precision)
        worst = max(p.relative_l2 for p in parity)
        self.progress(f"graph {name}: agrees with torch to {worst:.1e}")
        if {s.name for s in signature[0]} - set(names):
            raise ExportError(f"graph {name} has inputs that were not traced")
        self.graphs[name] = GraphSpec(path.name, signature[0], signature[1], parity, THRESHOLDS[precision])


def _latent_spec(checkpoint: Checkpoint) -> LatentSpec:
    vae, unet = checkpoint.vae.config, checkpoint.unet.config
    scale = 2 ** (len(vae.block_out_channels) - 1)
    size = unet.sample_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return LatentSpec(
        channels=vae.latent_channels,
        scale=scale,
        scaling_factor=float(vae.scaling_factor),
        height=height * scale,
        width=width * scale,
        multiple=2 ** (len(unet.block_out_channels) - 1),
    )


def _text_spec(checkpoint: Checkpoint) -> TextSpec:
    tokenizer, config = checkpoint.tokenizer, checkpoint.text_encoder.config
    return TextSpec(
        tokens=config.max_position_embeddings,
        channels=config.hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
