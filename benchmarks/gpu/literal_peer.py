"""The published method with materialised maps on a GPU: the reference of the parity, and the slowest peer."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Effort, start_latents
from freeprompt.bundle import Bundle
from freeprompt.export.checkpoint import quiet
from tests.literal import LiteralReference


def load_literal(checkpoint: Path, device: str, half: bool) -> LiteralReference:
    """The reference on ``device``; ``half`` runs the U-Net in float16 and everything around it in float32."""
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32).to(device)
    with torch.device(device):
        reference = LiteralReference(pipe)
    if half:
        pipe.unet.half()
        pipe.unet.register_forward_pre_hook(_to_half, with_kwargs=True)
        pipe.unet.register_forward_hook(_to_float)
    return reference


def literal_edit(bundle: Bundle, reference: LiteralReference, steps: int, device: str) -> Any:
    """Final latents of one edit."""
    with torch.device(device):
        levels = reference.invert(torch.from_numpy(start_latents(bundle)).to(device), steps)
        layers = bundle.manifest.replaced_layers
        return reference.edit(levels, [measure.PROMPT], layers=layers).cpu().numpy()


def time_literal(bundle: Bundle, checkpoint: Path, device: str, effort: Effort) -> dict[str, Any]:
    """Seconds of a whole edit; there is no cheaper further edit."""
    reference = load_literal(checkpoint, device, half=device != "cpu")
    literal_edit(bundle, reference, 2, device)
    samples = []
    for _ in range(effort.edits):
        start = time.perf_counter()
        literal_edit(bundle, reference, effort.edit_steps, device)
        samples.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else None
    median = statistics.median(samples)
    return {"steps": effort.edit_steps, "first": samples, "first_median": median, "device_bytes": peak}


def _to_half(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return value.half() if floating else value

    return tuple(cast(a) for a in args), {k: cast(v) for k, v in kwargs.items()}


def _to_float(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    output.sample = output.sample.float()
    return output
