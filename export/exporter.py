"""Export: a checkpoint becomes a bundle, or an error and nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch

import freeprompt
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import CheckpointWarning, OutputError
from freeprompt.contract.files import atomic_folder, file_to_sha256
from freeprompt.contract.graphs import UNET
from freeprompt.contract.manifest import FORMAT_VERSION, MANIFEST_NAME, FileSpec, LatentSpec, Manifest
from freeprompt.contract.manifest_file import manifest_to_json
from freeprompt.export.checkpoint.constants import checkpoint_to_latents, checkpoint_to_text
from freeprompt.export.checkpoint.load import Checkpoint, load_checkpoint
from freeprompt.export.checkpoint.scheduler import config_to_scheduler, spacing_to_words
from freeprompt.export.checkpoint.tokenizer import save_tokenizer
from freeprompt.export.graph.stage_export import write_stage
from freeprompt.export.graph.unet import UnetExport
from freeprompt.export.graph.writer import GraphWriter
from freeprompt.export.model.calibration import checkpoint_to_calibration
from freeprompt.export.model.layers import Architecture, unet_to_architecture
from freeprompt.export.model.stages import checkpoint_to_stages
from freeprompt.export.settings import ExportSettings, Reporter

TOKENIZER = "tokenizer.json"
KNOWN_ANSWERS = "known_answers.safetensors"


def export_checkpoint(
    source: str | Path,
    target: str | Path,
    settings: ExportSettings | None = None,
    overwrite: bool = False,
    progress: Reporter = lambda line: None,
) -> Bundle:
    """Export a diffusers checkpoint (a folder or a hub id) as the bundle ``target``.

    What the checkpoint has and the bundle does not is told as CheckpointWarning and stands in the manifest's notes.

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
    checkpoint = load_checkpoint(str(source), settings.variant, progress)
    for line in checkpoint.unused:
        warnings.warn(f"{source}: {line}", CheckpointWarning, stacklevel=2)
    with atomic_folder(target, overwrite) as folder:
        manifest = _fill(folder, checkpoint, settings, progress)
        (folder / MANIFEST_NAME).write_bytes(manifest_to_json(manifest))
        progress("checking the bundle")
        Bundle.open(folder)
    return Bundle.open(target, verify=False)


def _fill(folder: Path, checkpoint: Checkpoint, settings: ExportSettings, progress: Reporter) -> Manifest:
    """Write everything but the manifest."""
    latents, text = checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint)
    # Here, since an unknown value must be told before graphs are traced for minutes.
    scheduler = config_to_scheduler(checkpoint.scheduler, settings.spacing)
    spacing, differs = spacing_to_words(checkpoint.scheduler, settings.spacing)
    progress(f"timestep spacing {spacing}")
    notes = {"timestep spacing": spacing} if differs else {}
    if checkpoint.unused:
        notes["not used"] = "; ".join(checkpoint.unused)
    architecture = _architecture(checkpoint, latents, settings)
    stages = tuple(checkpoint_to_stages(checkpoint, latents, text))
    layers = (*(layer.name for layer in architecture.layers), *architecture.cross_layers)
    settings.check_names([*(stage.name for stage in stages), *(f"{UNET}.{name}" for name in layers)])
    progress("tokenizer")
    save_tokenizer(checkpoint.tokenizer, folder / TOKENIZER)
    writer = GraphWriter(folder, settings, progress)
    half = settings.precision == "float16"
    calibration = checkpoint_to_calibration(checkpoint, latents, text, scheduler) if half else None
    for stage in stages:
        write_stage(stage, writer, calibration)
    UnetExport(checkpoint.unet, architecture, latents, text, writer).write(calibration)
    writer.answers.write(folder / KNOWN_ANSWERS)
    return Manifest(
        format_version=FORMAT_VERSION,
        producer=f"freeprompt {freeprompt.__version__}, torch {torch.__version__}",
        model=Path(checkpoint.name).name,
        precision=settings.precision,
        opset=settings.opset,
        latents=latents,
        text=text,
        scheduler=scheduler,
        layers=architecture.layers,
        cross_layers=len(architecture.cross_layers),
        graphs=writer.graphs,
        tokenizer=TOKENIZER,
        files=_files(folder),
        notes=notes,
        half_precision=writer.half.to_spec() if half else None,
        known_answers=KNOWN_ANSWERS,
    )


def _architecture(checkpoint: Checkpoint, latents: LatentSpec, settings: ExportSettings) -> Architecture:
    native = (latents.height // latents.scale, latents.width // latents.scale)
    architecture = unet_to_architecture(checkpoint.unet, *native)
    records = settings.graphs == "latency"
    layers = tuple(replace(layer, recordable=layer.replaced and records) for layer in architecture.layers)
    return replace(architecture, layers=layers)


def _files(folder: Path) -> tuple[FileSpec, ...]:
    return tuple(
        FileSpec(path.relative_to(folder).as_posix(), path.stat().st_size, file_to_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


__all__ = ["ExportSettings", "export_checkpoint"]
