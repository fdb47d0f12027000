"""Scores a model of the world with the oracle: generation, reconstruction and edits.

`python -m benchmarks.embedded.score --out FOLDER` scores the shipped bundle by the runtime, or with
`--checkpoint FOLDER` a pipeline folder in PyTorch: one JSON file for each row, all rows as Markdown
in `scores.md`, and a contact sheet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.embedded import figures, oracle, sheet, world
from benchmarks.embedded.editing import ALL_LAYERS, Editing, Method, TorchEditing
from benchmarks.embedded.verdict import GOOD_IOU, KINDS, Verdict, judge

HELD_OUT = (20_26, 2)
"""Seed of the scenes that figures are published on; training and settings never see them."""

VALIDATION = (20_26, 1)
"""Seed of the scenes that settings are chosen on."""

BATCH = 25

Table = dict[str, figures.Figure]


def default_methods(fraction: float = 1.0, guidance: float = 3.0) -> dict[str, Method]:
    """The methods of the published table by short name, all at the same guidance."""
    none: tuple[int, ...] = ()
    return {
        "none": Method("no replacement", guidance=guidance),
        "cross": Method("cross-attention", none, ALL_LAYERS, fraction, guidance),
        "both": Method("self- and cross-attention", ALL_LAYERS, ALL_LAYERS, fraction, guidance),
        "self": Method("self-attention (FPE)", ALL_LAYERS, none, fraction, guidance),
        "reused": Method("self-attention of the inversion", ALL_LAYERS, none, fraction, guidance, reuse=True),
    }


PARTS = ("generation", "reconstruction", "none", "self", "cross", "both", "sheet")
"""What is scored by default; "reused" is an approximation that PyTorch alone has."""


def edited_scene(scene: world.Scene, kind: str, rng: np.random.Generator) -> world.Scene:
    """The scene with another colour, shape or background, drawn uniformly from the others."""
    values = {
        "colour": tuple(world.COLOURS),
        "shape": world.SHAPES,
        "background": tuple(world.BACKGROUNDS),
    }[kind]
    others = [value for value in values if value != getattr(scene, kind)]
    change: dict[str, Any] = {kind: others[int(rng.integers(len(others)))]}
    return dataclasses.replace(scene, **change)


def batches(count: int) -> Iterator[slice]:
    """Slices of at most `BATCH` that cover `count`."""
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def score_generation(editing: Editing, scenes: Sequence[world.Scene], steps: int, guidance: float) -> Table:
    """Rates at which generated pictures show the colour, shape and background asked for."""
    seen: list[tuple[bool, bool, bool]] = []
    for part in batches(len(scenes)):
        asked = scenes[part]
        images = editing.generate([world.caption(scene) for scene in asked], steps, guidance)
        for scene, image in zip(asked, images):
            found = oracle.measure(image)
            seen.append(
                (
                    found.colour == scene.colour,
                    found.shape == scene.shape,
                    found.background == scene.background,
                )
            )
    return {
        "colour": figures.rate([row[0] for row in seen]),
        "shape": figures.rate([row[1] for row in seen]),
        "background": figures.rate([row[2] for row in seen]),
        "all right": figures.rate([all(row) for row in seen]),
    }


def score_reconstruction(editing: Editing, scenes: Sequence[world.Scene], steps: int) -> Table:
    """How well inversion with the empty prompt and denoising without guidance give back."""
    good: list[bool] = []
    overlaps: list[float] = []
    quality: list[float] = []
    for part in batches(len(scenes)):
        sources = world.render(scenes[part])
        for scene, source, image in zip(scenes[part], sources, editing.reconstruct(sources, steps)):
            found = oracle.measure(image)
            overlaps.append(oracle.iou(found.mask, oracle.true_mask(scene)))
            quality.append(oracle.psnr(source, image, np.ones(found.mask.shape, np.bool_)))
            good.append(found.colour == scene.colour and overlaps[-1] >= GOOD_IOU)
    return {
        "good": figures.rate(good),
        "IoU": figures.mean(overlaps),
        "PSNR": figures.mean(quality),
    }


def score_edits(
    editing: Editing,
    scenes: Sequence[world.Scene],
    steps: int,
    method: Method,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Table]:
    """Figures of one method for each kind of edit."""
    rng = np.random.default_rng(len(scenes))
    goals = [[edited_scene(scene, kind, rng) for kind in KINDS] for scene in scenes]
    verdicts: dict[str, list[Verdict]] = {kind: [] for kind in kinds}
    for part in batches(len(scenes)):
        sources, chosen = scenes[part], goals[part]
        images = world.render(sources)
        targets = [[goal[KINDS.index(kind)] for goal in chosen] for kind in kinds]
        edited = editing.edit(
            images,
            [world.caption(scene) for scene in sources],
            [[world.caption(scene) for scene in scenes_of_kind] for scenes_of_kind in targets],
            steps,
            method,
        )
        for kind, wanted, pictures in zip(kinds, targets, edited):
            for row in zip(sources, wanted, images, pictures):
                verdicts[kind].append(judge(kind, *row))
    return {
        kind: {
            "right": figures.rate([verdict.right for verdict in rows]),
            "reached": figures.rate([verdict.reached for verdict in rows]),
            "kept": figures.rate([verdict.kept for verdict in rows]),
            "in place": figures.rate([verdict.iou >= GOOD_IOU for verdict in rows]),
            "IoU": figures.mean([verdict.iou for verdict in rows]),
            "PSNR of the rest": figures.mean([verdict.unchanged for verdict in rows]),
        }
        for kind, rows in verdicts.items()
    }


def cell(name: str, figure: figures.Figure) -> str:
    """One cell of a Markdown table: value and 95 % interval."""
    if name in ("IoU",):
        return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    if name.startswith("PSNR"):
        return f"{figure.value:.1f} dB [{figure.low:.1f}, {figure.high:.1f}]"
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def markdown(rows: dict[str, Table]) -> str:
    """A Markdown table of named rows that have the same columns."""
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, table in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell(c, table[c]) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def keep(out: pathlib.Path, section: str, row: str, steps: int, table: Table) -> None:
    """Writes one row's figures to a file of its own, so that several processes can share work."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{section} {row} {steps}".lower()).strip("-")
    figures_of = {column: dataclasses.asdict(figure) for column, figure in table.items()}
    entry = {"section": section, "row": row, "steps": steps, "figures": figures_of}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def gather(out: pathlib.Path) -> str:
    """All rows that were kept, as Markdown."""
    sections: dict[str, dict[str, Table]] = {}
    for path in sorted(out.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        table = {name: figures.Figure(**values) for name, values in entry["figures"].items()}
        row = f"{entry['row']}, {entry['steps']} steps"
        sections.setdefault(entry["section"], {})[row] = table
    return "\n".join(f"### {name}\n\n{markdown(rows)}" for name, rows in sections.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="score it in PyTorch")
    parser.add_argument("--bundle", help='score this bundle ("demo": the shipped) by the runtime')
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: %(default)s")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of edits: %(default)s")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="not the held-out scenes")
    options = parser.parse_args()
    editing: Editing
    if options.checkpoint:
        torch.set_num_threads(options.threads)
        torch.set_flush_denormal(True)
        editing = TorchEditing.open(options.checkpoint)
    else:
        # Here, since training scores itself without the package.
        from benchmarks.embedded.runtime_editing import RuntimeEditing

        editing = RuntimeEditing.open(options.bundle or "demo", threads=options.threads)
    scenes = world.sample_scenes(options.scenes, VALIDATION if options.validation else HELD_OUT)
    steps, guidance, kinds = options.steps, options.guidance, options.kinds.split(",")
    methods = default_methods(options.fraction, guidance)
    for part in options.parts.split(","):
        if part == "generation":
            made = score_generation(editing, scenes, steps, guidance)
            keep(options.out, "Generation", f"guidance {guidance:g}", steps, made)
        elif part == "reconstruction":
            back = score_reconstruction(editing, scenes, steps)
            keep(options.out, "Reconstruction", "empty prompt", steps, back)
        elif part == "sheet":
            chosen = [m for name, m in methods.items() if options.checkpoint or name != "reused"]
            options.out.mkdir(parents=True, exist_ok=True)
            sheet.edits(editing, scenes[:8], steps, chosen).save(options.out / "sheet.png")
        else:
            method = methods[part]
            row = f"{method.name}, guidance {method.guidance:g}"
            if method.fraction:
                row += f", fraction {method.fraction:g}"
            for kind, table in score_edits(editing, scenes, steps, method, kinds).items():
                keep(options.out, f"Edits of {kind}", row, steps, table)
    (options.out / "scores.md").write_text(gather(options.out), encoding="utf-8")


if __name__ == "__main__":
    main()
