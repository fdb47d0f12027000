"""The drawn world: captioned scenes of one object on a background, made from parameters.

Everything that is measured on the embedded model is measured against these parameters, so the
drawing must be a pure function of them: a `Scene` always gives the same pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 64
"""Side of a scene in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "heart")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 75, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 185),
    "cyan": (40, 200, 220),
}
"""Colours of objects, 8-bit sRGB."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (238, 238, 238),
    "gray": (135, 135, 135),
    "black": (24, 24, 24),
    "pink": (245, 180, 205),
    "brown": (110, 75, 50),
}
"""Colours of backgrounds, 8-bit sRGB: at least 85 away from every object colour."""

TEMPLATES = (
    "a {colour} {shape} on a {background} background",
    "a photo of a {colour} {shape} on a {background} background",
    "a picture of a {colour} {shape} on a {background} background",
    "a {colour} {shape} on {background}",
    "a drawing of a {colour} {shape} on {background}",
)
SHORT_TEMPLATE = "a {colour} {shape}"

KINDS = ("colour", "shape", "background")
"""Attributes that an edit can change."""

HELD_OUT = (20_26, 2)
"""Seed of the scenes that figures are published on; training and settings never see them."""

VALIDATION = (20_26, 1)
"""Seed of the scenes that settings are chosen on."""

MIN_RADIUS, MAX_RADIUS = 13.0, 21.0
MAX_SHIFT = 4.0
COLOUR_JITTER = 7.0
GRADIENT = 9.0
NOISE = 4.0

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene: what a caption can say (shape, colour, background) and what it does not.

    Attributes:
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        background: a key of `BACKGROUNDS`.
        radius: size of the object in pixels, `MIN_RADIUS` to `MAX_RADIUS`.
        x, y: centre of the object in pixels; (32, 32) is the middle.
        jitter: seed of colour jitter, background gradient and pixel noise.
    """

    shape: str
    colour: str
    background: str
    radius: float
    x: float
    y: float
    jitter: int


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draws the parameters of one scene, each attribute independent and uniform."""
    middle = (SIZE - 1) / 2
    return Scene(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        colour=tuple(COLOURS)[int(rng.integers(len(COLOURS)))],
        background=tuple(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))],
        radius=float(rng.uniform(MIN_RADIUS, MAX_RADIUS)),
        x=middle + float(rng.uniform(-MAX_SHIFT, MAX_SHIFT)),
        y=middle + float(rng.uniform(-MAX_SHIFT, MAX_SHIFT)),
        jitter=int(rng.integers(2**31)),
    )


def sample_scenes(count: int, seed: int | Sequence[int]) -> list[Scene]:
    """Draws `count` scenes; the same seed always gives the same scenes."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def caption(scene: Scene, template: str = TEMPLATES[0]) -> str:
    """Describes a scene in the words of `template`."""
    return template.format(colour=scene.colour, shape=scene.shape, background=scene.background)


def sample_caption(scene: Scene, rng: np.random.Generator, drop: float, short: float) -> str:
    """Draws a caption: empty with probability `drop`, without background with `short`."""
    draw = rng.uniform()
    choice = int(rng.integers(len(TEMPLATES)))
    if draw < drop:
        return ""
    return caption(scene, SHORT_TEMPLATE if draw < drop + short else TEMPLATES[choice])


def edited_scene(scene: Scene, kind: str) -> Scene:
    """The scene with another colour, shape or background, drawn uniformly from the others.

    A pure function of the scene, so that whoever has the scenes edits them into the same.
    """
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "background": tuple(BACKGROUNDS)}[kind]
    others = [value for value in values if value != getattr(scene, kind)]
    rng = np.random.default_rng([scene.jitter, KINDS.index(kind)])
    change: dict[str, Any] = {kind: others[int(rng.integers(len(others)))]}
    return dataclasses.replace(scene, **change)


def signed_distance(shape: str, x: FloatArray, y: FloatArray, radius: FloatArray | np.float32) -> FloatArray:
    """Signed distance (negative inside) to the outline of a shape, exact near straight edges.

    Args:
        shape: one of `SHAPES`.
        x, y: offsets from the object's centre in pixels, y downwards, any broadcastable shape.
        radius: size of the object in pixels, broadcastable.

    Returns:
        Distances in pixels, float32, of the broadcast shape.
    """
    distance: Any
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88) * radius
    elif shape == "triangle":
        # Three half planes around the centroid; the inradius is half the circumradius 1.24 r.
        # Shifted down by 0.18 r so that its bounding box is about centred.
        down = y - np.float32(0.18) * radius
        sides = np.maximum(down, np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * down)
        distance = sides - np.float32(0.62) * radius
    elif shape == "star":
        # Fold the five-fold symmetry into one wedge, then one line from outer tip to inner corner.
        outer, inner = np.float32(1.25), np.float32(0.56)
        sector = np.float32(2 * np.pi / 5)
        angle = np.arctan2(x, -y)
        angle = np.abs(np.mod(angle + sector / 2, sector) - sector / 2)
        length = np.hypot(x, y)
        along, across = length * np.cos(angle), length * np.sin(angle)
        corner_x = inner * np.float32(np.cos(np.pi / 5))
        corner_y = inner * np.float32(np.sin(np.pi / 5))
        norm = np.hypot(outer - corner_x, corner_y)
        edge: FloatArray = (along - outer * radius) * (corner_y / norm) + across * ((outer - corner_x) / norm)
        return edge.astype(np.float32)
    elif shape == "heart":
        # A square standing on its corner, with a half circle on each of its upper sides.
        side = np.float32(0.72) * radius
        down = y - np.float32(0.18) * radius
        diamond = (np.abs(x) + np.abs(down)) * np.float32(0.70710678) - side
        lift = side * np.float32(0.70710678)
        lobes = np.hypot(np.abs(x) - lift, down + lift) - side
        distance = np.minimum(diamond, lobes)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    result: FloatArray = np.asarray(distance, np.float32)
    return result


def coverage(scenes: Sequence[Scene]) -> FloatArray:
    """Part of each pixel that the object covers: [N, 64, 64] float32 in 0..1, anti-aliased."""
    grid = np.arange(SIZE, dtype=np.float32)
    out = np.empty((len(scenes), SIZE, SIZE), np.float32)
    for shape in {scene.shape for scene in scenes}:
        rows = [row for row, scene in enumerate(scenes) if scene.shape == shape]
        params = np.array([(scenes[r].x, scenes[r].y, scenes[r].radius) for r in rows], np.float32)
        x = grid[None, None, :] - params[:, 0, None, None]
        y = grid[None, :, None] - params[:, 1, None, None]
        distance = signed_distance(shape, x, y, params[:, 2, None, None])
        out[rows] = np.clip(np.float32(0.5) - distance, 0, 1)
    return out


def render(scenes: Sequence[Scene]) -> ByteArray:
    """Draws scenes: [N, 64, 64, 3] uint8 sRGB."""
    count = len(scenes)
    grid = np.linspace(-1, 1, SIZE, dtype=np.float32)
    ink = np.empty((count, 3), np.float32)
    paper = np.empty((count, 3), np.float32)
    slope = np.empty((count, 2), np.float32)
    noise = np.empty((count, SIZE, SIZE, 3), np.float32)
    for row, scene in enumerate(scenes):
        # A generator per scene, so that a scene looks the same whatever it is drawn together with.
        rng = np.random.default_rng(scene.jitter)
        ink[row] = COLOURS[scene.colour] + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
        paper[row] = BACKGROUNDS[scene.background] + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
        angle = rng.uniform(0, 2 * np.pi)
        slope[row] = rng.uniform(0, GRADIENT) * np.array([np.cos(angle), np.sin(angle)])
        rng.standard_normal(out=noise[row], dtype=np.float32)
    shade = slope[:, 0, None, None] * grid[None, None, :] + slope[:, 1, None, None] * grid[:, None]
    cover = coverage(scenes)[..., None]
    ground = paper[:, None, None, :] + shade[..., None]
    image = ground + cover * (ink[:, None, None, :] - ground) + np.float32(NOISE) * noise
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
