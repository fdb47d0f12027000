"""The plots of the report, from the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freeprompt.bench.plot import draw_timeline, import_pyplot

RESULTS = Path(__file__).parents[1] / "results"
SWEEP = RESULTS / "embedded" / "sweep.json"
Results = Mapping[str, Any]


def read_sweep() -> list[Results]:
    """Figures of the embedded model by setting (``benchmarks.embedded.sweep``)."""
    rows: list[Results] = json.loads(SWEEP.read_text(encoding="utf-8"))["rows"]
    return rows


def write_plots(results: Results, folder: Path) -> None:
    """PNG files of the parts that are there."""
    plt = import_pyplot()
    parts = {name: part["result"] for name, part in results["parts"].items()}
    if "contest" in parts:
        ratios = parts["contest"]["ratios"]
        figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
        places = range(len(ratios))
        axes.barh(places, [one["median"] for one in ratios], color="#66ccee", label="median")
        axes.plot([one["rows"] for one in ratios], places, "|", color="black", markersize=18, label="rows alone")
        for place, one in enumerate(ratios):
            axes.plot(one["each"], [place] * len(one["each"]), "o", color="#4477aa", markersize=4)
        axes.set_yticks(places, [one["title"] for one in ratios], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.set_xlabel("times faster; dots are rounds")
        axes.legend()
        figure.savefig(folder / "contest.png", dpi=110)
    if "scaling" in parts:
        figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for axes, name in zip(both, ("steps", "prompts")):
            part = parts["scaling"][name]
            for rows, samples in zip(part["rows"], part["samples"]):
                axes.plot([rows] * len(samples), samples, "o", color="#4477aa", markersize=4)
            line = part["line"]
            ends = [0, max(part["rows"])]
            axes.plot(ends, [(line["offset_ms"] + line["ms_per_row"] * r) / 1e3 for r in ends], color="#ee6677")
            axes.set(xlabel=f"rows, by {name}", ylabel="seconds, further edit", xlim=(0, None), ylim=(0, None))
        figure.savefig(folder / "scaling.png", dpi=110)
    if "timeline" in parts:
        figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
        draw_timeline(axes, parts["timeline"]["timeline"])
        figure.savefig(folder / "timeline.png", dpi=110)
    _plot_quality(plt, folder / "quality.png")
    if "soak" in parts:
        part = parts["soak"]
        figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
        axes.plot([value / 1e6 for value in part["resident_bytes"]], color="#4477aa")
        axes.axvline(part["warm_up"], color="grey", linestyle=":")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"edits, over {part['inversions']} inversions of {part['steps']} steps")
        axes.set_ylabel("resident memory, MB")
        figure.savefig(folder / "soak.png", dpi=110)
    plt.close("all")


def _plot_quality(plt: Any, path: Path) -> None:
    """Right edits and overlap over the rows they cost; whiskers are 95 % intervals."""
    rows = read_sweep()
    series = {
        "steps, fraction 1": [r for r in rows if r["fraction"] == 1 and r["record"] != "inversion"],
        "fraction, 25 steps": [r for r in rows if r["steps"] == 25 and r["record"] != "inversion"],
        "approximate mode": [r for r in rows if r["record"] == "inversion"],
    }
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, name in zip(both, ("right", "IoU")):
        for (label, found), colour in zip(series.items(), ("#4477aa", "#ee6677", "#228833")):
            found = sorted(found, key=lambda r: (r["unet_rows"], r["fraction"]))
            values = [r[name]["value"] for r in found]
            spread = [
                [r[name]["value"] - r[name]["low"] for r in found],
                [r[name]["high"] - r[name]["value"] for r in found],
            ]
            at = [r["unet_rows"] for r in found]
            axes.errorbar(at, values, spread, fmt="o-", color=colour, label=label, markersize=4, capsize=2)
            for r, x, y in zip(found, at, values):
                note = f"{r['steps']}" if label.startswith("steps") else f"{r['fraction']:g}"
                axes.annotate(note, (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7, color=colour)
        axes.set(xlabel="U-Net rows of a first edit", ylabel=f"{name}, colour edits", xlim=(0, None))
    both[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
