"""The oracle: what a picture of the world shows, measured from its pixels without any learning."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt

from benchmarks.embedded import world

BORDER = 2
"""Width in pixels of the frame that no object reaches; the background is measured there."""

COLOUR_TOLERANCE = 62.0
"""Largest distance in RGB at which a measured colour still has a name (nearest neighbours in the
world are at least 85 apart)."""

MIN_AREA = 60
"""Smallest object in pixels; the world's smallest, a star of radius 13, covers about 250."""

AGREEMENT = 0.7
"""Part of an object's pixels that must agree on its colour; edges may not."""

SHAPE_FIT = 0.8
"""Smallest overlap with its template at which a mask has a shape's name."""

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """What the oracle saw in one picture.

    Attributes:
        shape: name of the shape, or None if no template fits.
        colour: name of the object's colour, or None if it is far from all.
        background: name of the background, or None if it is far from all.
        mask: [64, 64] bool, pixels of the object.
        fit: overlap (IoU) of the mask with the best template, 0..1.
        ink: mean RGB of the object, 0..255.
    """

    shape: str | None
    colour: str | None
    background: str | None
    mask: Mask
    fit: float
    ink: Floats


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    union = int(np.count_nonzero(first | second))
    return float(np.count_nonzero(first & second)) / union if union else 0.0


def psnr(first: world.ByteArray, second: world.ByteArray, where: Mask) -> float:
    """Peak signal-to-noise ratio in dB of [H, W, 3] uint8 pictures over the pixels of a mask.

    Returns 99 where the pictures are equal there or the mask is empty.
    """
    difference = first[where].astype(np.float64) - second[where]
    error = float(np.mean(difference**2)) if difference.size else 0.0
    return 99.0 if error < 1e-5 else float(10 * np.log10(255.0**2 / error))


def true_mask(scene: world.Scene) -> Mask:
    """[64, 64] bool: pixels that the object of a scene covers by half or more."""
    mask: Mask = world.coverage([scene])[0] >= 0.5
    return mask


def nearest(colour: Floats, names: dict[str, tuple[int, int, int]]) -> str | None:
    """Name of the nearest known colour, or None beyond `COLOUR_TOLERANCE`."""
    distance = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in names.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= COLOUR_TOLERANCE else None


def colour_inside(image: world.ByteArray, mask: Mask) -> str | None:
    """Name of the object colour that most pixels of `image` within `mask` are nearest to.

    None if the mask is empty, if less than `AGREEMENT` of its pixels agree, or if those are far
    from the colour: an object of two colours has no colour.
    """
    pixels = image[mask].astype(np.float64)
    if not len(pixels):
        return None
    table = np.array(list(world.COLOURS.values()), np.float64)
    votes = np.linalg.norm(pixels[:, None] - table, axis=2).argmin(1)
    count = np.bincount(votes, minlength=len(table))
    best = int(count.argmax())
    name = tuple(world.COLOURS)[best]
    mean = pixels[votes == best].mean(0)
    agree = count[best] >= AGREEMENT * len(pixels)
    return name if agree and nearest(mean, world.COLOURS) == name else None


def largest_component(mask: Mask) -> Mask:
    """The largest 4-connected part of a mask (all of it False if it is empty)."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # The highest label floods its component; pixels outside stay 0.
        padded = np.pad(labels, 1)
        grown = np.maximum.reduce([labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        grown[~mask] = 0
        if np.array_equal(grown, labels):
            break
        labels = grown
    count = np.bincount(labels.ravel())
    count[0] = 0
    largest: Mask = mask & (labels == count.argmax())
    return largest


def background_model(image: world.ByteArray) -> Floats:
    """Background colour at every pixel, [64, 64, 3]: a plane fitted to the picture's frame."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    frame = np.ones((height, width), np.bool_)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    terms = np.stack([np.ones_like(x), x, y], -1)
    pixels = image[frame].astype(np.float64)
    # One robust round: what is far from the frame's median is not background.
    keep = np.linalg.norm(pixels - np.median(pixels, 0), axis=1) < 60
    if np.count_nonzero(keep) < 20:
        keep[:] = True
    plane = np.linalg.lstsq(terms[frame][keep], pixels[keep], rcond=None)[0]
    model: Floats = terms @ plane
    return model


def object_mask(image: world.ByteArray, background: Floats) -> tuple[Mask, Floats]:
    """Mask [64, 64] and mean RGB of the object before a background.

    Pixels nearer to some object colour than to the background give the object's own colour;
    the mask is then what lies nearer to that than to the background, so that a blurred or
    anti-aliased edge is cut in its middle.
    """
    pixels = image.astype(np.float64)
    table = np.array(list(world.COLOURS.values()), np.float64)
    to_ink = np.linalg.norm(pixels[:, :, None] - table, axis=3).min(2)
    to_paper = np.linalg.norm(pixels - background, axis=2)
    seed = largest_component(to_ink < to_paper)
    if np.count_nonzero(seed) < MIN_AREA:
        return np.zeros(image.shape[:2], np.bool_), np.full(3, -1e3)
    ink = np.median(pixels[seed], axis=0)
    mask = largest_component(np.linalg.norm(pixels - ink, axis=2) < to_paper)
    return mask, pixels[mask].mean(0) if mask.any() else ink


def _unit_shape(shape: str) -> tuple[float, float]:
    """Area over radius squared, and height of the centroid over radius (downwards)."""
    grid = np.linspace(-1.6, 1.6, 321, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    inside = world.signed_distance(shape, x, y, np.float32(1)) < 0
    return float(inside.mean()) * 3.2**2, float(y[inside].mean())


_UNITS = {shape: _unit_shape(shape) for shape in world.SHAPES}


def shape_fits(mask: Mask) -> dict[str, float]:
    """Overlap (IoU) of a mask with each shape; for the likely ones the best nearby overlap.

    A template's size and place follow from the mask's area and centroid; the two shapes that fit
    best are then tried at neighbouring sizes and places.
    """
    area = int(np.count_nonzero(mask))
    if area < MIN_AREA:
        return dict.fromkeys(world.SHAPES, 0.0)
    rows, columns = np.nonzero(mask)
    grids: world.FloatArray = np.indices(mask.shape, np.float32)

    def fit(shape: str, scale: float, shift_x: float, shift_y: float) -> float:
        unit_area, unit_y = _UNITS[shape]
        size = np.float32(scale * math.sqrt(area / unit_area))
        x: world.FloatArray = grids[1] - float(columns.mean() + shift_x)
        y: world.FloatArray = grids[0] - float(rows.mean() - unit_y * size + shift_y)
        return iou(mask, world.signed_distance(shape, x, y, size) < 0)

    fits = {shape: fit(shape, 1.0, 0.0, 0.0) for shape in world.SHAPES}
    for shape in sorted(fits, key=lambda name: fits[name])[-2:]:
        nearby = itertools.product((0.95, 1.0, 1.06), (-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0))
        fits[shape] = max(fit(shape, *change) for change in nearby)
    return fits


def measure(image: world.ByteArray) -> Measurement:
    """Measures one picture, [64, 64, 3] uint8."""
    background = background_model(image)
    mask, ink = object_mask(image, background)
    fits = shape_fits(mask)
    shape = max(fits, key=lambda name: fits[name])
    return Measurement(
        shape=shape if fits[shape] >= SHAPE_FIT else None,
        colour=colour_inside(image, mask),
        background=nearest(background.mean((0, 1)), world.BACKGROUNDS),
        mask=mask,
        fit=fits[shape],
        ink=ink,
    )
