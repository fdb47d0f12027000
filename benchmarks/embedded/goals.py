"""What is edited into what: scenes by seed, and for each the same three changes in every run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.embedded import world
from benchmarks.embedded.verdict import KINDS

HELD_OUT = (20_26, 2)
"""Seed of the scenes that figures are published on; training and settings never see them."""

VALIDATION = (20_26, 1)
"""Seed of the scenes that settings are chosen on."""


def edited_scene(scene: world.Scene, kind: str) -> world.Scene:
    """The scene with another colour, shape or background, drawn uniformly from the others.

    A pure function of the scene, so that processes that share the scenes agree on the goals.
    """
    values = {
        "colour": tuple(world.COLOURS),
        "shape": world.SHAPES,
        "background": tuple(world.BACKGROUNDS),
    }[kind]
    others = [value for value in values if value != getattr(scene, kind)]
    rng = np.random.default_rng([scene.jitter, KINDS.index(kind)])
    change: dict[str, Any] = {kind: others[int(rng.integers(len(others)))]}
    return dataclasses.replace(scene, **change)
