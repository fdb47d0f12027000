"""From the parts' files: one JSON with everything, and a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from benchmarks.gpu.measure import ROWS

# Of issue 5: on an H100, for Stable Diffusion 1.5's size at 512x512.
GOALS = {"ms_per_row at 2 rows": 2.5, "first edit, s": 0.5, "further edit, s": 0.28}


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
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    for line in lines:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths))
    yield ""
    yield "steps: ms per row (percent of the measured matrix peak); edits: seconds, latents to latents"
    for name, items in parts.items():
        for item, value in items.items():
            if isinstance(value, dict) and "error" in value:
                yield f"failed: {name}: {item}: {value['error'][:300]}"
            elif isinstance(value, dict) and value.get("passed") is False:
                yield f"WRONG: {name}: {item}: {value['relative_l2']:.1e}, {value['bound']:.0e} is allowed"


def _step_cell(step: Any, macs: int, peak: Optional[float]) -> str:
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
