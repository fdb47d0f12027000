"""The report and its plots, from the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freeprompt.benchplot import draw_timeline, import_pyplot

ROOT = Path(__file__).parents[1]
# What the project set out to reach, by title of the ratio.
GOALS = {
    "first edit / literal reference": (5.0, 8.0),
    "further edit / literal reference, whole edit": (10.0, 15.0),
    "same plan: ONNX Runtime / torch, fused attention": (1.8, 2.5),
}
Results = Mapping[str, Any]


def write_report(results: Results) -> str:
    """Markdown."""
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = {name: part["result"] for name, part in results["parts"].items()}
    load = [part[key] for part in results["parts"].values() for key in ("load_before", "load_after")]
    busy = (
        "Something else was running beside it: wall times are too long and spread; ratios within a round suffer less."
        if max(load) > 1.5 * settings["threads"] + 0.5
        else "Little else was running."
    )
    lines = [
        "# CPU benchmarks",
        "",
        "Written by `make bench` (`python -m benchmarks.run`); the data are in `results/cpu.json`.",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}; {versions}. "
        f"float32, the embedded model with "
        f"{settings['weights']} weights. Load average, this suite included, between {min(load):.1f} and "
        f"{max(load):.1f} at the start and end of the parts. {busy}",
        "",
    ]
    for name, write in (
        ("contest", _contest),
        ("rows", _rows),
        ("scaling", _scaling),
        ("cold", _cold),
        ("memory", _memory),
        ("soak", _soak),
        ("timeline", _timeline),
    ):
        if name in parts:
            part = {**settings, **results["parts"][name]}
            lines += [
                *write(parts[name]),
                "",
                f"*{part['when']}: {part['threads']} threads, {part['steps']} steps where "
                f"nothing else is said; load {part['load_before']:.1f} before, {part['load_after']:.1f} after.*",
                "",
            ]
    lines += [*_quality(), *_full_size()]
    return "\n".join(lines).rstrip() + "\n"


def _contest(part: Results) -> list[str]:
    lines = [
        "## Against peers",
        "",
        "All alternate in one process on the same threads, in rounds whose order is reversed every other time, after "
        "a warm-up. A ratio is taken within a round. All start from pixels and end in pixels, and the "
        "final latents of contenders that do the same work are compared (last line). The literal reference "
        "materialises every attention map, six rows a step (300 at 50). The goals are for 50 steps on two threads. "
        "`torch: same plan` "
        "executes freeprompt's one-engine plan, row for row, in PyTorch with "
        "`scaled_dot_product_attention`, so that the engine alone differs. CPU time counts every thread, those that "
        "spin while they wait too.",
        "",
        "| times faster | median | least - most | spread (MAD) | by CPU time | by rows alone | goal (stretch) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in part["ratios"]:
        goal = GOALS.get(one["title"])
        reached = ""
        if goal:
            reached = f"{goal[0]:g} ({goal[1]:g}): " + ("reached" if one["median"] >= goal[0] else "missed")
        lines.append(
            f"| {one['title']} | {one['median']:.2f} | {one['least']:.2f} - {one['most']:.2f} | {one['mad']:.2f} "
            f"| {one['cpu_median']:.2f} | {one['rows']:.2f} | {reached} |"
        )
    lines += ["", "![ratios](results/contest.png)", "", "| contender | rows | median s | MAD | median CPU s | n |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    from freeprompt.benchstats import summarise

    for name, each in part["seconds"].items():
        wall, cpu = summarise(each["wall"]), summarise(each["cpu"])
        rows = f"{each['rows']:.1f}".removesuffix(".0")
        lines.append(f"| {name} | {rows} | {wall.p50:.3f} | {wall.mad:.3f} | {cpu.p50:.3f} | {wall.count} |")
    errors = ", ".join(f"{name} {error:.1e}" for name, error in part["errors"].items())
    lines += ["", f"Relative L2 of final latents to the contender it must equal (at most 1e-3): {errors}."]
    return lines


def _rows(part: list[Results]) -> list[str]:
    lines = [
        "## Rows",
        "",
        "Counted where graphs are run, against the plan.",
        "",
        "| record | | executed | predicted | whole rows' worth |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in part:
        graphs = ", ".join(f"{graph} {rows}" for graph, rows in one["executed"].items())
        lines.append(
            f"| {one['record']} | {one['what']} | {one['total']} = {graphs} | {one['predicted']} "
            f"| {one['row_equivalents']:.1f} |"
        )
    return lines


def _scaling(part: Results) -> list[str]:
    lines = ["## Scaling", "", "![time against rows](results/scaling.png)", ""]
    for name in ("steps", "prompts"):
        line = part[name]["line"]
        lines.append(
            f"- over {name}: {line['ms_per_row']:.2f} ms a row and {line['offset_ms']:.0f} ms beside; largest residual "
            f"{line['largest_residual']:.1%} of the longest time, R2 {line['r_squared']:.4f}"
        )
    sizes = ", ".join(f"{one['size'][0]}x{one['size'][1]} {one['ms_per_row']:.2f} ms" for one in part["sizes"])
    threads = ", ".join(f"{one['threads']}: {one['ms_per_row']:.2f} ms" for one in part["threads"])
    return [*lines, f"- a row by size: {sizes}", f"- a row by threads: {threads}"]


def _cold(part: Results) -> list[str]:
    lines = ["## Cold start", "", "| whole process | median s | most |", "| --- | --- | --- |"]
    lines += [f"| {name} | {each['p50']:.3f} | {each['most']:.3f} |" for name, each in part["wholes"].items()]
    lines += ["", f"One edit of {part['steps']} steps from the start of its process:", ""]
    lines += ["| until | median s | most |", "| --- | --- | --- |"]
    lines += [f"| {name} | {each['p50']:.3f} | {each['most']:.3f} |" for name, each in part["parts"].items()]
    slow = ", ".join(f"{one['module']} {one['ms']:.0f} ms" for one in part["slowest_imports"])
    return [*lines, "", f"Slowest imports (own time): {slow}."]


def _memory(part: Results) -> list[str]:
    return [
        "## Memory",
        "",
        f"Record of one inversion of 20 steps: predicted {part['predicted_record_bytes'] / 1e6:.3f} MB, held "
        f"{part['held_record_bytes'] / 1e6:.3f} MB. Resident memory grew by "
        f"{part['resident_growth_per_inversion'] / 1e6:.3f} MB for each further recorded inversion that was kept "
        f"(predicted with its latents: {part['predicted_growth_per_inversion'] / 1e6:.3f} MB).",
    ]


def _soak(part: Results) -> list[str]:
    return [
        "## Soak",
        "",
        "![resident memory](results/soak.png)",
        "",
        f"{part['edits']} edits over {part['inversions']} inversions (made anew now and then) of {part['steps']} "
        f"steps: {part['after_warm_up_bytes'] / 1e6:.1f} MB after {part['warm_up']} edits, "
        f"{part['last_bytes'] / 1e6:.1f} MB at the end; "
        f"trend {part['growth_bytes_per_edit']:.0f} bytes an edit.",
    ]


def _timeline(part: Results) -> list[str]:
    lines = [
        "## One edit",
        "",
        "![timeline](results/timeline.png)",
        "",
        "As `freeprompt bench` prints it: seconds.",
        "",
        "| | p50 | p90 | p99 | MAD | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in part["summary"].items():
        values = " | ".join(f"{each[key]:.4f}" for key in ("p50", "p90", "p99", "mad"))
        lines.append(f"| {name} | {values} | {each['count']} |")
    return lines


def _quality() -> list[str]:
    found = sorted((ROOT / "benchmarks" / "embedded").rglob("scores.md"))
    if not found:
        return [
            "## Quality",
            "",
            "No scores of the embedded model here yet (`python -m benchmarks.embedded.score`).",
            "",
        ]
    text = found[-1].read_text(encoding="utf-8").replace("\n### ", "\n#### ")
    return ["## Quality", "", f"From `{found[-1].relative_to(ROOT)}`:", "", text.strip(), ""]


def _full_size() -> list[str]:
    found = sorted((ROOT / "benchmarks").rglob("sd15*.json"))
    if not found:
        return []
    result = json.loads(found[-1].read_text(encoding="utf-8"))
    seconds = ", ".join(f"{name} {value} s" for name, value in result.get("seconds", {}).items())
    return ["## Stable Diffusion 1.5's size", "", f"From `{found[-1].relative_to(ROOT)}`: {seconds}.", ""]


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
    if "soak" in parts:
        from benchmarks.soak import plot

        plot(parts["soak"], folder / "soak.png")
    plt.close("all")
