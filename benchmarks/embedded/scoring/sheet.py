"""Contact sheets: what the figures look like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.embedded import world
from benchmarks.embedded.scoring.editing import Editing, Method, edit
from benchmarks.embedded.world import KINDS, edited_scene

ZOOM = 2
GAP = 4


def grid(rows: Sequence[Sequence[world.ByteArray]]) -> Image.Image:
    """Lays [64, 64, 3] uint8 pictures out in rows, enlarged, on white."""
    side = world.SIZE * ZOOM + GAP
    height, width = len(rows) * side + GAP, max(len(row) for row in rows) * side + GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            y, x = top * side + GAP, left * side + GAP
            large = picture.repeat(ZOOM, 0).repeat(ZOOM, 1)
            canvas[y : y + large.shape[0], x : x + large.shape[1]] = large
    return Image.fromarray(canvas)


def samples(editing: Editing, scenes: Sequence[world.Scene], steps: int) -> Image.Image:
    """Generated pictures for the scenes' captions: one row without, one with guidance."""
    prompts = [world.caption(scene) for scene in scenes]
    rows = [list(editing.generate(prompts, steps, guidance)) for guidance in (1.0, 3.0)]
    return grid([list(world.render(scenes)), *rows])


def edits(editing: Editing, scenes: Sequence[world.Scene], steps: int, methods: Sequence[Method]) -> Image.Image:
    """Sources and reconstructions on top, then colour edits, one row for each method.

    Below them shape and background edits by the first method that replaces self-attention alone.
    """
    images = world.render(scenes)
    goals = [[edited_scene(scene, kind) for scene in scenes] for kind in KINDS]
    sources = [world.caption(scene) for scene in scenes]
    targets = [[world.caption(goal) for goal in row] for row in goals]
    rows = [list(images), list(editing.reconstruct(images, steps))]
    rows += [list(edit(editing, images, sources, targets[:1], steps, method)[0]) for method in methods]
    exact = [method for method in methods if method.self_layers and not method.cross_layers and not method.reuse][:1]
    for method in exact:
        rows += [list(part) for part in edit(editing, images, sources, targets[1:], steps, method)]
    return grid(rows)
