"""From the parts' files: one JSON with everything, and a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.kinds import NAMES
from benchmarks.gpu.measure import ROWS

LONGEST = 8


def merge(folder: Path) -> dict[str, Any]:
    """All parts by name."""
    paths = sorted(p for p in folder.glob("part-*.json"))
    return {path.stem[len("part-") :]: json.loads(path.read_text()) for path in paths}


def table(parts: dict[str, Any], macs: int) -> Iterator[str]:
    """Milliseconds per row with percent of the measured peak, whole edits, parity: a line for each backend."""
    peak = parts.get("machine", {}).get("matrix peak", {}).get("operations_per_second")
    head = ["backend", *(f"{rows} rows" for rows in ROWS), "first s", "further s", "generate s", "step err", "edit err"]
    lines = [head]
    for name, items in parts.items():
        steps = [items.get(f"time of a step, {rows} rows") for rows in ROWS]
        edits = _best(items, "time of edits")
        if not any(steps) and not edits:
            continue
        cells = [_step_cell(step, macs, peak) for step in steps]
        medians = [_number(edits, f"{kind}_median") for kind in ("first", "further", "generation")]
        worst = [_worst(items, "parity of a step"), _worst(items, "parity of an edit")]
        lines.append([name, *cells, *medians, *worst])
    yield from _columns(lines)
    yield ""
    yield "steps: ms per row (percent of the measured matrix peak); edits: seconds, latents to latents"
    for name, items in parts.items():
        for item, value in items.items():
            if isinstance(value, dict) and "error" in value:
                yield f"failed: {name}: {item}: {value['error'][:300]}"
            elif isinstance(value, dict) and value.get("passed") is False:
                yield f"WRONG: {name}: {item}: {value['relative_l2']:.1e}, {value['bound']:.0e} is allowed"


def cuda_form_table(parts: dict[str, Any]) -> Iterator[str]:
    """What is fused in each graph's form for CUDA, and whether it is used."""
    items = {name: v for name, v in parts.get("cuda-build", {}).items() if "operators" in v}
    if not items:
        return
    yield ""
    yield "forms for CUDA"
    for name, value in items.items():
        operators = ", ".join(f"{count} {kind}" for kind, count in value["operators"].items())
        fused, cuda = (sum(t[form] for t in value["timings"]) for form in ("fused_ms", "cuda_ms"))
        error = max((p["relative_l2"] for p in value["parity"]), default=float("nan"))
        measured = f"; {cuda:.3g} ms, {fused:.3g} by the fused form; error {error:.1e}" if value["timings"] else ""
        yield f"  {name}: {operators}{measured}"
        if value["refused"]:
            yield f"    not used: {value['refused']}"


def profile_table(parts: dict[str, Any]) -> Iterator[str]:
    """Where a step's time goes: by kind on every backend, then each backend's longest layers."""
    items = {name: v for name, v in parts.get("profile", {}).items() if "kinds" in v}
    if not items:
        return
    yield ""
    yield "where a step of 2 rows spends its time: ms (percent); sums of layers, without gaps between them"
    kinds = [kind for kind in NAMES if any(v["kinds"].get(kind) for v in items.values())]
    lines = [["backend", "total", *kinds]]
    for name, value in items.items():
        total = value["total_ms"] or 1.0
        cells = [f"{value['kinds'].get(k, 0.0):.3f} ({100 * value['kinds'].get(k, 0.0) / total:.0f} %)" for k in kinds]
        lines.append([name, f"{value['total_ms']:.3f}", *cells])
    yield from _columns(lines)
    for name, value in items.items():
        yield f"longest in {name} ({value['method']}; {value['of']} in all):"
        for layer in value["layers"][:LONGEST]:
            label = f"{layer['name'][:80]} {layer.get('about', '')[:40]}"
            yield f"  {layer['ms']:8.4f} ms  {layer['calls']:5.1f} x  {layer['kind']:<14} {label}"


def _columns(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths))


def _step_cell(step: Any, macs: int, peak: float | None) -> str:
    if not step or "error" in step:
        return "-" if not step else "failed"
    cell = f"{step['ms_per_row']:.2f}"
    if peak and macs:
        cell += f" ({100 * 2 * macs / (step['ms_per_row'] / 1e3) / peak:.0f} %)"
    return cell


def _best(items: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The fastest of a backend's ways to edit."""
    good = [v for k, v in items.items() if k.startswith(prefix) and "error" not in v]
    return min(good, key=lambda v: float(v["first_median"]), default={})


def _number(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:.3f}" if name in values else "-"


def _worst(items: dict[str, Any], prefix: str) -> str:
    errors = [v["relative_l2"] for k, v in items.items() if k.startswith(prefix) and "relative_l2" in v]
    return f"{max(errors):.1e}" if errors else "-"
