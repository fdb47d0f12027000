"""Scores a model of the world with the oracle: generation, reconstruction and edits.

`python -m benchmarks.embedded.score --checkpoint FOLDER --out FOLDER` writes `scores.json`,
`scores.md` and a contact sheet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.embedded import figures, oracle, sheet, world
from benchmarks.embedded.editing import ALL_LAYERS, Editing, Method, TorchEditing

HELD_OUT = (20_26, 2)
"""Seed of the scenes that figures are published on; training and settings never see them."""

VALIDATION = (20_26, 1)
"""Seed of the scenes that settings are chosen on."""

KINDS = ("colour", "shape", "background")
GOOD_IOU = 0.8
BATCH = 25

Table = dict[str, figures.Figure]


def default_methods(fraction: float = 1.0, guidance: float = 3.0) -> tuple[Method, ...]:
    """The methods of the published table, all at the same guidance."""
    return (
        Method("no replacement", guidance=guidance),
        Method("cross-attention", cross_layers=ALL_LAYERS, fraction=fraction, guidance=guidance),
        Method("both", ALL_LAYERS, ALL_LAYERS, fraction, guidance),
        Method("self-attention (FPE)", ALL_LAYERS, (), fraction, guidance),
        Method("self-attention, reused", ALL_LAYERS, (), fraction, guidance, reuse=True),
    )


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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the oracle says about one edit.

    Attributes:
        reached: the target attribute is there.
        kept: the two other attributes are the source's.
        iou: overlap of the edited object with the target scene's object (which for colour and
            background edits is the source's).
        unchanged: PSNR in dB over the pixels that the edit should not touch.
    """

    reached: bool
    kept: bool
    iou: float
    unchanged: float

    @property
    def right(self) -> bool:
        """Target reached, the rest kept, object in its place."""
        return self.reached and self.kept and self.iou >= GOOD_IOU


def judge(
    kind: str,
    source: world.Scene,
    target: world.Scene,
    before: world.ByteArray,
    after: world.ByteArray,
) -> Verdict:
    """Judges one edit of a picture by the parameters of source and target scene.

    For colour edits the colour is measured inside the source's mask; for shape edits the overlap
    is with the target's shape at the source's place and size.
    """
    found = oracle.measure(after)
    old, new = oracle.true_mask(source), oracle.true_mask(target)
    colour = oracle.colour_inside(after, new) if kind != "shape" else found.colour
    checks = {
        "colour": colour == target.colour,
        "shape": found.shape == target.shape,
        "background": found.background == target.background,
    }
    others = [checks[other] for other in KINDS if other != kind]
    # Edges are blurred by the autoencoder: keep two pixels away from them.
    inside = old & _eroded(old)
    outside = ~(_grown(old) | _grown(new))
    untouched = inside if kind == "background" else outside
    return Verdict(
        reached=checks[kind],
        kept=all(others),
        iou=oracle.iou(found.mask, new),
        unchanged=oracle.psnr(before, after, untouched),
    )


def _grown(mask: oracle.Mask, by: int = 2) -> oracle.Mask:
    out = mask.copy()
    for _ in range(by):
        padded = np.pad(out, 1)
        out = out | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return out


def _eroded(mask: oracle.Mask, by: int = 2) -> oracle.Mask:
    return ~_grown(~mask, by)


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


def score_all(
    editing: Editing,
    scenes: Sequence[world.Scene],
    steps: int,
    methods: Sequence[Method],
    guidance: float,
) -> tuple[dict[str, dict[str, Table]], str]:
    """Every figure, by section and row, and the same as Markdown."""
    sections: dict[str, dict[str, Table]] = {
        "Generation": {f"guidance {guidance:g}": score_generation(editing, scenes, steps, guidance)},
        "Reconstruction": {"empty prompt": score_reconstruction(editing, scenes, steps)},
    }
    for method in methods:
        for kind, table in score_edits(editing, scenes, steps, method).items():
            sections.setdefault(f"Edits of {kind}", {})[method.name] = table
    text = "\n".join(f"### {name}\n\n{markdown(rows)}" for name, rows in sections.items())
    return sections, text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="score it in PyTorch")
    parser.add_argument("--bundle", help='score this bundle ("demo": the shipped) by the runtime')
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="not the held-out scenes")
    options = parser.parse_args()
    start = time.time()
    editing: Editing
    if options.checkpoint:
        torch.set_num_threads(options.threads)
        editing = TorchEditing.open(options.checkpoint)
    else:
        # Here, since training scores itself without the package.
        from benchmarks.embedded.runtime_editing import RuntimeEditing

        editing = RuntimeEditing.open(options.bundle or "demo", threads=options.threads)
    seed = VALIDATION if options.validation else HELD_OUT
    scenes = world.sample_scenes(options.scenes, seed)
    methods = [
        method
        for method in default_methods(options.fraction, options.guidance)
        if options.checkpoint or not method.reuse
    ]
    sections, text = score_all(editing, scenes, options.steps, methods, options.guidance)
    plain = {
        section: {
            row: {column: dataclasses.asdict(figure) for column, figure in table.items()} for row, table in rows.items()
        }
        for section, rows in sections.items()
    }
    settings = {
        "scenes": options.scenes,
        "seed": list(seed),
        "steps": options.steps,
        "methods": [dataclasses.asdict(method) for method in methods],
        "seconds": round(time.time() - start),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scores.json").write_text(
        json.dumps({"settings": settings, "figures": plain}, indent=1) + "\n", encoding="utf-8"
    )
    (options.out / "scores.md").write_text(text, encoding="utf-8")
    pictures = sheet.edits(editing, scenes[:8], options.steps, methods)
    pictures.save(options.out / "sheet.png")


if __name__ == "__main__":
    main()
