"""Parity and timing of one backend on one bundle. Runs without PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import Backend, NumpyArray
from freeprompt.engines.comparison import seeded_inputs
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.runtime.plan.shapes import Batch

ROWS = (1, 2, 3, 4, 6, 8)
PROMPT = "a red cat"
PARITY_STEPS = 10
# Relative L2 against PyTorch in float32. One step: what the export allows. Ten steps with guidance 7.5 multiply the
# error of each; the bound is one that a wrong kernel exceeds.
STEP_BOUND = {"float32": 1e-3, "float16": 2e-2}
EDIT_BOUND = {"float32": 1e-2, "float16": 2e-1}


@dataclass(frozen=True)
class Effort:
    """How much is measured: samples of ``steps`` evaluations each, after ``warm`` evaluations."""

    samples: int = 20
    steps: int = 10
    warm: int = 5
    edit_steps: int = 50
    edits: int = 5
    rows: tuple[int, ...] = ROWS


DRY = Effort(samples=2, steps=2, warm=1, edit_steps=3, edits=1, rows=(1, 2, 3))


def step_sizes(bundle: Bundle, rows: int) -> dict[str, int]:
    """Sizes of a step at the native size, as an edit has them."""
    latents = bundle.manifest.latents
    count = Batch.parse(str(rows)).latents
    return {
        "rows": rows,
        "latents": count,
        "pinned": count,
        "texts": 3,
        "height": latents.height // latents.scale,
        "width": latents.width // latents.scale,
    }


def step_feeds(bundle: Bundle, backend: Backend, rows: int) -> dict[str, Any]:
    """Inputs of a step as an edit has them: tables on the host, all else on the device."""
    feeds: dict[str, Any] = dict(seeded_inputs(bundle.manifest, "step", step_sizes(bundle, rows)))
    for name in ("latents", "pinned_latents", "encoder_hidden_states"):
        feeds[name] = backend.upload(feeds[name])
    return feeds


def start_latents(bundle: Bundle) -> NumpyArray:
    """Clean latents for the edits, the same everywhere."""
    sizes = step_sizes(bundle, 1)
    shape = (1, bundle.manifest.latents.channels, sizes["height"], sizes["width"])
    return (np.random.default_rng(11).standard_normal(shape) * 0.8).astype(np.float32)


def step_parity(bundle: Bundle, backend: Backend, rows: int, folder: Path) -> dict[str, Any]:
    """One step against PyTorch in float32, whose result another process left in ``folder``."""
    session = backend.open(bundle, "step")
    inputs = seeded_inputs(bundle.manifest, "step", step_sizes(bundle, rows))
    for _ in range(3):  # captured CUDA graphs take over from the second run
        got = session.run(inputs)["next_latents"].numpy()
    return _compare(got, folder / f"reference-step-{rows}.npz", STEP_BOUND[bundle.manifest.precision])


def edit_parity(bundle: Bundle, backend: Backend, folder: Path, record: str) -> dict[str, Any]:
    """A whole edit of ten steps against the literal method in float32."""
    editor = Editor(bundle, backend)
    inversion = editor.pipeline.invert(backend.upload(start_latents(bundle)), PARITY_STEPS)
    got = editor.edit_latents(inversion, [PROMPT], record=record)
    return _compare(got, folder / "reference-edit.npz", EDIT_BOUND[bundle.manifest.precision])


def time_step(bundle: Bundle, backend: Backend, rows: int, effort: Effort) -> dict[str, Any]:
    """Milliseconds of one step, each sample the mean of several that follow each other as in a loop."""
    session = backend.open(bundle, "step")
    feeds = step_feeds(bundle, backend, rows)

    def run(count: int) -> None:
        for _ in range(count):
            result = session.run(feeds)["next_latents"]
        _finish(backend, result)

    run(effort.warm)
    samples = [_milliseconds(lambda: run(effort.steps)) / effort.steps for _ in range(effort.samples)]
    median = statistics.median(samples)
    return {"ms": median, "ms_per_row": median / rows, "samples": samples, "device_bytes": device_bytes()}


def time_edits(bundle: Bundle, backend: Backend, effort: Effort, record: str) -> dict[str, Any]:
    """Seconds from latents to latents: first edit (inversion and edit), further edit, plain generation."""
    editor = Editor(bundle, backend)
    steps = effort.edit_steps
    noise = start_latents(bundle)

    def first() -> Any:
        inversion = editor.pipeline.invert(backend.upload(noise), steps)
        editor.edit_latents(inversion, [PROMPT], record=record)
        return inversion

    kept = first()  # warms every shape
    results: dict[str, Any] = {"steps": steps, "record": record}
    results["first"] = [_seconds(first) for _ in range(effort.edits)]
    results["further"] = [
        _seconds(lambda: editor.edit_latents(kept, ["a blue dog"], record=record)) for _ in range(effort.edits)
    ]

    def generate() -> None:
        _ = editor.generate(PROMPT, seed=1, steps=steps).trajectory  # waits for the last step

    generate()
    results["generation"] = [_seconds(generate) for _ in range(effort.edits)]
    for name in ("first", "further", "generation"):
        results[f"{name}_median"] = statistics.median(results[name])
    results["device_bytes"] = device_bytes()
    return results


def device_bytes() -> int | None:
    """Device memory in use by everything on the GPU; None without one."""
    try:
        free, total = CudaRuntime().memory()
    except BackendError:
        return None
    return total - free


def measure_backend(
    once: Callable[[str, Callable[[], Any]], Any],
    bundle: Bundle,
    create: Callable[[], Backend],
    folder: Path,
    effort: Effort,
    records: Sequence[str] = ("none", "exact"),
) -> None:
    """Every parity and timing of one backend; ``once`` keeps each and skips what is there."""
    made: list[Backend] = []

    def backend() -> Backend:
        if not made:
            made.append(create())
        return made[0]

    modes = [mode for mode in records if mode == "none" or "record" in bundle.manifest.graphs]
    for rows in effort.rows:
        once(f"parity of a step, {rows} rows", partial(_on, step_parity, bundle, backend, rows, folder))
    for mode in modes:
        once(f"parity of an edit, record {mode}", partial(_on, edit_parity, bundle, backend, folder, mode))
    for rows in effort.rows:
        once(f"time of a step, {rows} rows", partial(_on, time_step, bundle, backend, rows, effort))
    for mode in modes:
        once(f"time of edits, record {mode}", partial(_on, time_edits, bundle, backend, effort, mode))


def _on(
    measure: Callable[..., dict[str, Any]], bundle: Bundle, backend: Callable[[], Backend], *args: Any
) -> dict[str, Any]:
    """A measurement on a backend that is made when it is first needed."""
    return measure(bundle, backend(), *args)


def save_reference(folder: Path, name: str, values: NumpyArray) -> None:
    np.savez(folder / f"reference-{name}.npz", values=values)


def _compare(got: NumpyArray, path: Path, bound: float) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        want = file["values"].astype(np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, the reference has {want.shape}")
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return {"relative_l2": error, "bound": bound, "passed": bool(error <= bound)}


def _finish(backend: Backend, array: Any) -> None:
    """Wait for the device, without a transfer where the backend can."""
    wait = getattr(backend, "synchronize", None)
    if wait is not None:
        wait()
    else:
        array.numpy()


def _milliseconds(run: Callable[[], Any]) -> float:
    return 1e3 * _seconds(run)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
