"""How images are brought to a size, against Lanczos resampling written out in NumPy; Pillow's versions differ in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from freeprompt.runtime.inputs import image as module
from freeprompt.runtime.inputs.image import fit_image

Array = np.ndarray[Any, Any]
# Of the fixed-point coefficients: 32 bits, of which 8 are the pixel's and 2 room for sums outside its range.
BITS = 22
SHAPES = [
    ((320, 240), (128, 128)),
    ((240, 320), (128, 128)),
    ((150, 100), (128, 256)),
    ((377, 133), (128, 64)),
    ((133, 377), (128, 64)),
    ((64, 64), (96, 96)),
    ((65, 64), (64, 64)),
    ((64, 65), (64, 64)),
    ((9, 6), (27, 12)),
    ((9, 6), (4, 4)),
    ((40, 3), (8, 8)),
    ((3, 40), (8, 8)),
    ((1000, 10), (64, 64)),
    ((10, 1000), (64, 64)),
    ((1, 5000), (64, 32)),
    ((5000, 1), (64, 32)),
    ((1, 1), (16, 8)),
]


def noise(size: tuple[int, int]) -> Array:
    """Any difference in order or rounding shows on noise."""
    width, height = size
    return np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3)).astype(np.uint8)


def lanczos(x: float) -> float:
    if x == 0.0:
        return 1.0
    if not -3.0 <= x < 3.0:
        return 0.0
    x *= math.pi
    return math.sin(x) / x * (math.sin(x / 3.0) / (x / 3.0))


def resampled(pixels: Array, size: int, start: float, end: float) -> Array:
    """The first axis of [n, ...] uint8 resampled from [start, end] to ``size``, as a matrix of fixed-point numbers."""
    length, first, last = len(pixels), np.float32(start), np.float32(end)
    scale = float(last - first) / size
    stretch = max(scale, 1.0)
    matrix = np.zeros((size, length), np.int64)
    for row in range(size):
        centre = float(first) + (row + 0.5) * scale
        low = max(int(centre - 3.0 * stretch + 0.5), 0)
        high = min(int(centre + 3.0 * stretch + 0.5), length)
        weights = [lanczos((n - centre + 0.5) * (1.0 / stretch)) for n in range(low, high)]
        total = 0.0
        for weight in weights:
            total += weight
        for n, weight in zip(range(low, high), weights):
            share = weight * (1.0 / total) * (1 << BITS)
            matrix[row, n] = int(share - 0.5 if share < 0 else share + 0.5)
    sums = np.tensordot(matrix, pixels.astype(np.int64), 1) + (1 << (BITS - 1))
    return np.asarray(np.clip(sums >> BITS, 0, 255).astype(np.uint8))


def rows_then_columns(pixels: Array, size: tuple[int, int], box: tuple[float, float, float, float]) -> Array:
    wide = resampled(pixels.swapaxes(0, 1), size[0], box[0], box[2]).swapaxes(0, 1)
    return resampled(wide, size[1], box[1], box[3])


def expected(pixels: Array, target: tuple[int, int], fit: str) -> Array:
    height, width = pixels.shape[:2]
    whole = (0.0, 0.0, width, height)
    if fit == "stretch":
        return rows_then_columns(pixels, target, whole)
    if fit == "crop":
        # The largest rectangle of the target's shape, in the middle; it may begin between pixels.
        ratio = target[0] / target[1]
        wide, high = (ratio * height, height) if width / height > ratio else (width, width / ratio)
        left, top = (width - wide) / 2, (height - high) / 2
        return rows_then_columns(pixels, target, (left, top, left + wide, top + high))
    scale = min(target[0] / width, target[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    small = rows_then_columns(pixels, inner, whole)
    x = np.clip(np.arange(target[0]) - (target[0] - inner[0]) // 2, 0, inner[0] - 1)
    y = np.clip(np.arange(target[1]) - (target[1] - inner[1]) // 2, 0, inner[1] - 1)
    return np.asarray(small[y][:, x])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("size", "target"), SHAPES, ids=lambda pair: "x".join(map(str, pair)))
def test_every_bit_is_that_of_rows_first(size: tuple[int, int], target: tuple[int, int], fit: str) -> None:
    pixels = noise(size)
    got = np.asarray(fit_image(Image.fromarray(pixels), *target, fit))
    np.testing.assert_array_equal(got, expected(pixels, target, fit))


def test_the_order_shows() -> None:
    """Columns first would be another picture: else the tests above would show nothing."""
    pixels = noise((3, 40))
    columns = resampled(pixels, 8, 0, 40).swapaxes(0, 1)
    columns_first = resampled(columns, 8, 0, 3).swapaxes(0, 1)
    difference = np.abs(columns_first.astype(int) - expected(pixels, (8, 8), "stretch"))
    assert difference.max() > 1


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_what_lies_between_is_bounded(monkeypatch: pytest.MonkeyPatch, fit: str) -> None:
    """A picture one pixel wide and as long as is read: 64 columns of it would be 64 times as large."""
    monkeypatch.setattr(module, "MAX_PIXELS", 20_000)
    sizes: list[tuple[int, int]] = []
    real = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *arguments: Any, **keywords: Any) -> Image.Image:
        sizes.append(size)
        return real(self, size, *arguments, **keywords)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for size in ((2, 5000), (5000, 2), (141, 141)):
        assert fit_image(Image.fromarray(noise(size)), 64, 64, fit).size == (64, 64)
    assert sizes and max(width * height for width, height in sizes) <= 20_000


def test_columns_first_where_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise((2, 500))
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    got = np.asarray(fit_image(Image.fromarray(pixels), 16, 8, "stretch"))
    columns = resampled(pixels, 8, 0, 500).swapaxes(0, 1)
    np.testing.assert_array_equal(got, resampled(columns, 16, 0, 2).swapaxes(0, 1))
