"""How cost scales: rows measured against predicted, time against rows, memory against what the plan says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from freeprompt import Editor
from freeprompt.bench.machine import peak_bytes, resident_bytes
from freeprompt.bench.measure import picture
from freeprompt.bench.meter import MeteredBackend, rows_by_graph
from freeprompt.editor import Limits, check_size

STEPS = (5, 10, 20, 30, 50)
PROMPTS = (1, 2, 3, 4, 6, 8)


def open_metered(bundle: Path, threads: int | None, limits: Limits | None = None) -> tuple[Editor, MeteredBackend]:
    """An editor on the CPU with a meter around its backend."""
    editor = Editor.load(bundle, "cpu", threads=threads, limits=limits)
    meter = MeteredBackend(editor.pipeline.graphs.backend)
    editor.pipeline.graphs.backend = meter
    return editor, meter


def count_rows(bundle: Path, threads: int | None, steps: int) -> list[dict[str, Any]]:
    """Rows executed against rows predicted, by mode."""
    editor, meter = open_metered(bundle, threads)
    latents = editor.manifest.latents
    image = picture(latents.width, latents.height)
    cases = []
    for record in ("none", "exact", "inversion"):
        inversion = editor.invert(image, steps, record=record)
        inverted = meter.take()
        for name, prompts in (("first edit", ["a"]), ("further edit", ["b"]), ("four further", ["a", "b", "c", "d"])):
            whole = name == "first edit"
            plans = editor.plan(prompts, steps=steps, record=record, inversion=None if whole else inversion)
            editor.edit_latents(inversion, prompts, record=record)
            executed = rows_by_graph([*inverted, *meter.take()] if whole else meter.take())
            cases.append(
                {
                    "record": record,
                    "what": name,
                    "executed": executed,
                    "total": sum(executed.values()),
                    "predicted": sum(sum(plan.rows_by_kind.values()) for plan in plans),
                    "row_equivalents": sum(plan.rows for plan in plans),
                }
            )
    return cases


def fit_line(rows: list[float], seconds: list[float]) -> dict[str, float]:
    """seconds = slope * rows + offset by least squares, and the residuals."""
    slope, offset = np.polyfit(rows, seconds, 1)
    residuals = np.asarray(seconds) - (slope * np.asarray(rows) + offset)
    total = np.asarray(seconds) - np.mean(seconds)
    return {
        "ms_per_row": 1e3 * float(slope),
        "offset_ms": 1e3 * float(offset),
        "largest_residual": float(np.max(np.abs(residuals)) / np.max(seconds)),
        "r_squared": 1 - float(np.sum(residuals**2) / np.sum(total**2)),
    }


def sweep(bundle: Path, threads: int | None, repeats: int = 3) -> dict[str, Any]:
    """Time of further edits over steps and prompts, with the line through each; over sizes and threads by row."""
    editor, meter = open_metered(bundle, threads, Limits(rows=16))
    result: dict[str, Any] = {}
    for name, cases in (("steps", [(s, 1) for s in STEPS]), ("prompts", [(10, k) for k in PROMPTS])):
        kept = {steps: editor.invert(_picture(editor), steps) for steps in {s for s, _ in cases}}
        times: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
        rows: dict[tuple[int, int], int] = {}
        # All cases once in each repetition, so that what else the machine does falls on all alike.
        for repetition in range(repeats + 1):
            for steps, count in cases:
                prompts = [f"number {repetition} {i}" for i in range(count)]
                meter.take()
                start = time.perf_counter()
                editor.edit_latents(kept[steps], prompts, record="exact")
                seconds = time.perf_counter() - start
                rows[steps, count] = sum(rows_by_graph(meter.take()).values())
                if repetition:
                    times[steps, count].append(seconds)
        medians = [median(times[case]) for case in cases]
        counts = [float(rows[case]) for case in cases]
        result[name] = {
            "cases": [list(case) for case in cases],
            "rows": counts,
            "seconds": medians,
            "samples": [times[case] for case in cases],
            "line": fit_line(counts, medians),
        }
    native = editor.manifest.latents
    sizes = [(native.width * k // 4, native.height * k // 4) for k in (4, 6, 8)]
    result["sizes"] = [{"size": list(size), **_row_time(editor, meter, size, repeats)} for size in sizes]
    result["threads"] = []
    for count in (1, 2):
        one, one_meter = open_metered(bundle, count)
        result["threads"].append({"threads": count, **_row_time(one, one_meter, None, repeats)})
    return result


def _row_time(
    editor: Editor, meter: MeteredBackend, size: tuple[int, int] | None, repeats: int, steps: int = 5
) -> dict[str, Any]:
    inversion = editor.invert(_picture(editor, size), steps, size=size)
    samples = []
    for repetition in range(repeats + 1):
        meter.take()
        editor.edit_latents(inversion, f"number {repetition}", record="exact")
        done = [e for e in meter.take() if e.rows and e.graph != "record"]
        samples.append(1e3 * sum(e.seconds for e in done) / sum(e.rows for e in done))
    return {"ms_per_row": median(samples[1:]), "samples": samples[1:]}


def _picture(editor: Editor, size: tuple[int, int] | None = None) -> Any:
    width, height = check_size(editor.manifest.latents, size)
    return picture(width, height)


# In a process of its own: what an allocator keeps of earlier work would hide what the record takes.
_MEMORY = """
import json, sys
from benchmarks.cpu import scaling
print(json.dumps(getattr(scaling, sys.argv[1])(sys.argv[2], *(json.loads(each) for each in sys.argv[3:]))))
"""
# Larger than native by this factor: there the activations are what counts.
_ENLARGED = 3


def memory(bundle: Path, steps: int, inversions: int = 8) -> dict[str, Any]:
    """Bytes of record held, predicted and seen as resident memory, and the peak of one edit by its budget."""
    result = _elsewhere("memory_here", bundle, steps, inversions)
    most = _elsewhere("peak_here", bundle, steps, "exact", 1 << 40)
    cases = [("none", 0), ("exact", 0), ("exact", most["held_bytes"] // 2), ("exact", most["held_bytes"])]
    result["peaks"] = [_elsewhere("peak_here", bundle, steps, record, budget) for record, budget in cases]
    return result


def _elsewhere(function: str, bundle: Path, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", _MEMORY, function, str(bundle), *(json.dumps(each) for each in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def peak_here(bundle: str, steps: int, record: str, budget: int) -> dict[str, Any]:
    """Peak memory of this process after one edit of an enlarged picture within a budget of recorded bytes."""
    editor = Editor.load(bundle, "cpu", threads=1, limits=Limits(record_bytes=budget))
    native = editor.manifest.latents
    size = (native.width * _ENLARGED, native.height * _ENLARGED)
    # Every graph that an exact edit opens, in each case: weights are no record.
    for graph in ("vae_encoder", "text_encoder", "step", "record", "step_recorded", "vae_decoder"):
        editor.pipeline.graphs[graph]
    opened = peak_bytes() or 0
    inversion = editor.invert(_picture(editor, size), steps, size=size)
    editor.edit_latents(inversion, "a", record=record)
    return {
        "record": record,
        "budget": budget,
        "size": list(size),
        "held_bytes": inversion.record_bytes,
        "opened_bytes": opened,
        "peak_bytes": peak_bytes() or 0,
    }


def memory_here(bundle: str, steps: int, inversions: int) -> dict[str, Any]:
    """See ``memory``; in this process."""
    editor = Editor.load(bundle, "cpu", threads=1)
    predicted = max(plan.total_record_bytes for plan in editor.plan("a", steps=steps, record="exact"))
    kept = []
    resident = []
    for _ in range(inversions + 2):
        inversion = editor.invert(_picture(editor), steps)
        editor.edit_latents(inversion, "a", record="exact")
        kept.append(inversion)
        resident.append(resident_bytes())
    # The first two fill the allocators.
    grown = (resident[-1] - resident[1]) / inversions
    trajectory = kept[0].trajectory.nbytes * 2  # the levels, and their copy on the host
    return {
        "predicted_record_bytes": predicted,
        "held_record_bytes": kept[-1].record_bytes,
        "resident_growth_per_inversion": grown,
        "predicted_growth_per_inversion": predicted + trajectory,
        "resident_bytes": resident,
    }
