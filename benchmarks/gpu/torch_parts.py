"""What the measurement takes from PyTorch: references in float32, the literal method's time, the device's peak."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.peers.literal import LiteralReference, open_pipeline
from benchmarks.peers.torch_editor import TorchBackend
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.comparison import seeded_inputs


def refer_steps(bundle: Bundle, checkpoint: Path, device: str, rows: tuple[int, ...], out: Path) -> dict[str, Any]:
    """Write a step's result at every number of rows, in float32."""
    _without_tf32()
    session = TorchBackend(checkpoint, device, torch.float32).open(bundle, "step")
    for number in rows:
        inputs = seeded_inputs(bundle.manifest, "step", measure.step_sizes(bundle, number))
        measure.save_reference(out, f"step-{number}", session.run(inputs)["next_latents"].numpy())
    return {"rows": list(rows)}


def refer_edit(bundle: Bundle, checkpoint: Path, device: str, out: Path) -> dict[str, Any]:
    """Write the final latents of the literal method's edit, in float32."""
    _without_tf32()
    reference = load_literal(checkpoint, device, half=False)
    measure.save_reference(out, "edit", literal_edit(bundle, reference, measure.PARITY_STEPS))
    return {"steps": measure.PARITY_STEPS}


def _without_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def load_literal(checkpoint: Path, device: str, half: bool) -> LiteralReference:
    """The reference on ``device``; ``half`` runs the U-Net in float16 and everything around it in float32."""
    pipe = open_pipeline(checkpoint).to(device)
    reference = LiteralReference(pipe)
    if half:
        pipe.unet.half()
        pipe.unet.register_forward_pre_hook(_to_half, with_kwargs=True)
        pipe.unet.register_forward_hook(_to_float)
    return reference


def literal_edit(bundle: Bundle, reference: LiteralReference, steps: int) -> Any:
    """Final latents of one edit."""
    start = torch.from_numpy(measure.start_latents(bundle)).to(reference.pipe.device)
    layers = bundle.manifest.replaced_layers
    return reference.edit(reference.invert(start, steps), [measure.PROMPT], layers=layers).cpu().numpy()


def time_literal(bundle: Bundle, checkpoint: Path, device: str, effort: measure.Effort) -> dict[str, Any]:
    """Seconds of a whole edit; there is no cheaper further edit."""
    reference = load_literal(checkpoint, device, half=device != "cpu")
    literal_edit(bundle, reference, 2)
    samples = []
    for _ in range(effort.edits):
        start = time.perf_counter()
        literal_edit(bundle, reference, effort.edit_steps)
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


def matrix_peak(device: str) -> float:
    """Operations a second of a large float16 matrix product on random data: what the chip gives a library."""
    size = 8192
    a = torch.randn(size, size, device=device, dtype=torch.float16)
    b = torch.randn(size, size, device=device, dtype=torch.float16)
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return 2.0 * size**3 / sorted(times)[len(times) // 2]
