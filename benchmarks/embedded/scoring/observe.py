"""What the oracle says about each scene: the rows from which every table is made.

Scenes are looked at one by one or in batches, in any process; only `table` puts them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.embedded import oracle, world
from benchmarks.embedded.scoring import figures
from benchmarks.embedded.scoring.editing import Editing, Method
from benchmarks.embedded.verdict import GOOD_IOU, judge
from benchmarks.embedded.world import KINDS, edited_scene

Outcome = dict[str, bool | float]
"""One scene's values by column: booleans become rates, numbers means."""

Sections = dict[str, list[Outcome]]
"""Outcomes of the scenes, in their order, by section of the report."""

Table = dict[str, figures.Figure]

BATCH = 25

GENERATION, RECONSTRUCTION, EDITS, DIFFERENCE = "generation", "reconstruction", "edits", "difference"


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the scores: a row in one section, or in one for each kind of edit.

    Attributes:
        what: `GENERATION`, `RECONSTRUCTION`, `EDITS`, or `DIFFERENCE`: how far a method's pictures
            are from those of the same method without `reuse`.
        method: of edits; of generation its guidance alone counts.
        steps: denoising steps.
        kinds: of edits.
    """

    what: str
    method: Method
    steps: int
    kinds: tuple[str, ...] = KINDS

    @property
    def row(self) -> str:
        """Name of the row in its tables."""
        if self.what == RECONSTRUCTION:
            return "empty prompt"
        if self.what == GENERATION:
            return f"guidance {self.method.guidance:g}"
        parts = [self.method.name, f"guidance {self.method.guidance:g}"]
        if self.method.self_layers or self.method.cross_layers:
            parts.append(f"fraction {self.method.fraction:g}")
        return ", ".join(parts)


def observe(editing: Editing, part: Part, scenes: Sequence[world.Scene], first: int = 0) -> Sections:
    """Looks at scenes that start at number `first` of all: that is the seed of what is generated."""
    out: Sections = {}
    for cut in batches(len(scenes)):
        for section, outcomes in _observe_batch(editing, part, scenes[cut], first + cut.start).items():
            out.setdefault(section, []).extend(outcomes)
    return out


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _observe_batch(editing: Editing, part: Part, scenes: Sequence[world.Scene], first: int) -> Sections:
    if part.what == GENERATION:
        prompts = [world.caption(scene) for scene in scenes]
        made = editing.generate(prompts, part.steps, part.method.guidance, first)
        return {"Generation": [_generated(*pair) for pair in zip(scenes, made)]}
    sources = world.render(scenes)
    if part.what == RECONSTRUCTION:
        back = editing.reconstruct(sources, part.steps)
        return {"Reconstruction": [_reconstructed(*row) for row in zip(scenes, sources, back)]}
    goals = {kind: [edited_scene(scene, kind) for scene in scenes] for kind in part.kinds}
    prompts = [world.caption(scene) for scene in scenes]
    targets = [[world.caption(goal) for goal in wanted] for wanted in goals.values()]
    latents = editing.edit_latents(sources, prompts, targets, part.steps, part.method)
    if part.what == DIFFERENCE:
        exact_method = dataclasses.replace(part.method, reuse=False)
        exact = editing.edit_latents(sources, prompts, targets, part.steps, exact_method)
        return {
            f"Difference to the exact edit of {kind}": [
                _different(*row) for row in zip(mine, true, editing.decode_latents(mine), editing.decode_latents(true))
            ]
            for kind, mine, true in zip(part.kinds, latents, exact)
        }
    out: Sections = {}
    for (kind, wanted), mine in zip(goals.items(), latents):
        rows = zip(scenes, wanted, sources, editing.decode_latents(mine))
        out[f"Edits of {kind}"] = [_edited(kind, *row) for row in rows]
    return out


def _generated(scene: world.Scene, image: world.ByteArray) -> Outcome:
    found = oracle.measure(image)
    out: Outcome = {name: getattr(found, name) == getattr(scene, name) for name in KINDS}
    return {**out, "all right": all(out.values())}


def _reconstructed(scene: world.Scene, source: world.ByteArray, image: world.ByteArray) -> Outcome:
    found = oracle.measure(image)
    overlap = oracle.iou(found.mask, oracle.true_mask(scene))
    everywhere = np.ones(found.mask.shape, np.bool_)
    return {
        "good": found.colour == scene.colour and overlap >= GOOD_IOU,
        "IoU": overlap,
        "PSNR": oracle.psnr(source, image, everywhere),
    }


def _edited(
    kind: str, source: world.Scene, target: world.Scene, before: world.ByteArray, after: world.ByteArray
) -> Outcome:
    verdict = judge(kind, source, target, before, after)
    return {
        "right": verdict.right,
        "reached": verdict.reached,
        "kept": verdict.kept,
        "in place": verdict.iou >= GOOD_IOU,
        "IoU": verdict.iou,
        "PSNR of the rest": verdict.unchanged,
    }


def _different(
    mine: world.FloatArray, exact: world.FloatArray, picture: world.ByteArray, exact_picture: world.ByteArray
) -> Outcome:
    everywhere = np.ones(picture.shape[:2], np.bool_)
    return {
        "relative L2 of latents": float(np.linalg.norm(mine - exact) / np.linalg.norm(exact)),
        "PSNR of pictures": oracle.psnr(exact_picture, picture, everywhere),
    }


def table(outcomes: Sequence[Outcome]) -> Table:
    """Rates of what is true or false, means of what is a number, each with its interval."""
    out: Table = {}
    for column, first in outcomes[0].items():
        values = [outcome[column] for outcome in outcomes]
        if isinstance(first, bool):
            out[column] = figures.rate([bool(value) for value in values])
        else:
            out[column] = figures.mean([float(value) for value in values])
    return out
