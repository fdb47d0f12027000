"""The report and its plots, from the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.cpu.reportplots import RESULTS, read_sweep
from benchmarks.full_size.engine_table import engine_table
from freeprompt.bench.statistics import summarise

SCORES = RESULTS / "embedded" / "scores.md"
Results = Mapping[str, Any]


def write_report(results: Results) -> str:
    """Markdown."""
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = {name: part["result"] for name, part in results["parts"].items()}
    load = [part[key] for part in results["parts"].values() for key in ("load_before", "load_after")]
    lines = [
        "# CPU benchmarks",
        "",
        "Written by `make bench` (`python -m benchmarks.cpu.run`); the data are in `results/cpu.json`.",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}; {versions}. "
        f"float32, the embedded model. Load average, this suite included, between {min(load):.1f} and {max(load):.1f} "
        "at the start and end of the parts.",
        "",
    ]
    for name, write in (
        ("contest", _contest),
        ("rows", _rows),
        ("scaling", _scaling),
        ("profile", _profile),
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
        "materialises every attention map, six rows a step (300 at 50). `torch: same plan` executes freeprompt's "
        "one-engine plan, row for row, in PyTorch with `scaled_dot_product_attention`, so that the engine alone "
        "differs. CPU time counts every thread, those that spin while they wait too.",
        "",
        "| times faster | median | least - most | spread (MAD) | by CPU time | by rows alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['title']} | {one['median']:.2f} | {one['least']:.2f} - {one['most']:.2f} | {one['mad']:.2f} "
        f"| {one['cpu_median']:.2f} | {one['rows']:.2f} |"
        for one in part["ratios"]
    ]
    lines += ["", "![ratios](results/contest.png)", "", "| contender | rows | median s | MAD | median CPU s | n |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
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


def _profile(part: Results) -> list[str]:
    fused, standard = part["profile"], part["standard"]
    total, floor = fused["kernels_ms"], part["floor_ms"]
    lines = [
        "## Where a step's time goes",
        "",
        f"A replacing step of {part['rows']} rows by ONNX Runtime's own profile: {total:.2f} ms in operators (the "
        f"standard form of the graph: {standard['kernels_ms']:.2f} ms). Its multiply-adds alone would take "
        f"{floor:.2f} ms at the {part['product_gflops']:.0f} GFLOP/s that a 1024^3 product in float32 reaches here on "
        "the same threads: no engine could run it faster than that.",
        "",
        "| operator | nodes | ms | share |",
        "| --- | --- | --- | --- |",
    ]
    rows = (f"| {o['op']} | {o['nodes']} | {o['ms']:.2f} | {o['ms'] / total:.0%} |" for o in fused["operators"][:14])
    return [*lines, *rows]


def _memory(part: Results) -> list[str]:
    lines = [
        "## Memory",
        "",
        f"Record of one inversion of 20 steps: predicted {part['predicted_record_bytes'] / 1e6:.3f} MB, held "
        f"{part['held_record_bytes'] / 1e6:.3f} MB. Resident memory grew by "
        f"{part['resident_growth_per_inversion'] / 1e6:.3f} MB for each further recorded inversion that was kept "
        f"(predicted with its latents: {part['predicted_growth_per_inversion'] / 1e6:.3f} MB).",
    ]
    if "peaks" not in part:
        return lines
    base = part["peaks"][0]["peak_bytes"]
    width, height = part["peaks"][0]["size"]
    lines += [
        "",
        f"Peak of a process that edits one picture of {width}x{height}, all graphs open, by its budget of recorded "
        "bytes. Beyond the record it holds one pass of source rows while that is computed.",
        "",
        "| record | budget MB | held MB | peak MB | more than without MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in part["peaks"]:
        values = (one["budget"], one["held_bytes"], one["peak_bytes"], one["peak_bytes"] - base)
        lines.append(f"| {one['record']} | " + " | ".join(f"{value / 1e6:.1f}" for value in values) + " |")
    return lines


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
    text = "\n" + SCORES.read_text(encoding="utf-8").strip()
    lines = [
        "## Quality",
        "",
        "By `python -m benchmarks.embedded.score` (`results/embedded/scores.md`):",
        text.replace("\n### ", "\n#### "),
        "",
        "Quality against cost, colour edits:",
        "",
        "![quality against cost](results/quality.png)",
        "",
        "| steps | fraction | record | U-Net rows | right | IoU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in read_sweep():
        right, iou = one["right"], one["IoU"]
        lines.append(
            f"| {one['steps']} | {one['fraction']:g} | {one['record']} | {one['unet_rows']:.1f} "
            f"| {right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}] | {iou['value']:.3f} |"
        )
    return [*lines, ""]


def _full_size() -> list[str]:
    paths = (RESULTS / "sd15_export.json", RESULTS / "sd15_rows.json")
    export, rows = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    seconds = ", ".join(f"{name} {value} s" for name, value in export["seconds"].items())
    lines = [
        "## Stable Diffusion 1.5's size",
        "",
        f"Export in float16 (`python -m benchmarks.full_size.sd15_export`): {seconds}.",
        "",
        f"Rows in float32 (`python -m benchmarks.full_size.sd15_rows`, {rows['when']}, {rows['threads']} threads; "
        "contenders in processes that took turns):",
        "",
        "| one replacing step | rows | s a row, 256x256 | s a row, 512x512 | peak GB, 256x256 | peak GB, 512x512 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, by_size in rows["seconds_per_row"].items():
        peaks = rows["peak_gigabytes"][name]
        lines.append(
            f"| {name} | {rows['rows'][name]} | {by_size['256']:.2f} | {by_size['512']:.2f} "
            f"| {peaks['256']:.1f} | {peaks['512']:.1f} |"
        )
    worst = max(rows["relative_l2_to_literal"].values())
    lines += ["", f"Guided noise_pred against the literal reference's: at most {worst:.1e} (relative L2).", ""]
    return [*lines, *_full_size_engines()]


def _full_size_engines() -> list[str]:
    """Engines that were built ahead of time, where that was measured."""
    path = RESULTS / "sd15_rtx.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [
        f"Engines built without a GPU (`python -m benchmarks.full_size.sd15_rtx`, {found['precision']}, "
        f"TensorRT-RTX {found['tensorrt_rtx']}, {found['cores']} cores):",
        "",
        *engine_table(found["engines"]),
        "",
    ]
