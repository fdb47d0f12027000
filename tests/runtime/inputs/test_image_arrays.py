"""Images from arrays and to arrays: what is taken, what is refused, what survives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from freeprompt.contract.errors import ImageError
from freeprompt.runtime.inputs.image import image_to_tensor, open_image, tensor_to_images
from tests.runtime.inputs.test_image import PIXELS, Array


def values(image: Image.Image) -> Array:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (PIXELS, PIXELS),
        (PIXELS[::-1, ::2], PIXELS[::-1, ::2]),
        (np.asfortranarray(PIXELS), PIXELS),
        (PIXELS[..., 0], PIXELS[..., :1].repeat(3, axis=2)),
        (PIXELS[..., :1], PIXELS[..., :1].repeat(3, axis=2)),
        (PIXELS / 255.0, PIXELS),
        ((PIXELS / 255.0).astype(np.float32), PIXELS),
        (np.zeros((2, 2, 3), np.float16), np.zeros((2, 2, 3))),
        (np.ones((2, 2)), np.full((2, 2, 3), 255)),
        (np.full((1, 1), 0.5), np.full((1, 1, 3), 128)),
        (PIXELS[:, ::-1, ::-1], PIXELS[:, ::-1, ::-1]),
        (PIXELS.transpose(1, 0, 2)[::-1], PIXELS.transpose(1, 0, 2)[::-1]),
        (PIXELS[::-1, ::-2, 0], PIXELS[::-1, ::-2, :1].repeat(3, axis=2)),
        ((PIXELS / 255.0)[::-1, ::-1], PIXELS[::-1, ::-1]),
        ((PIXELS / 255.0).astype(">f4"), PIXELS),
        (np.broadcast_to(PIXELS[:1], PIXELS.shape), np.broadcast_to(PIXELS[:1], PIXELS.shape)),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays(array: Array, want: Array) -> None:
    np.testing.assert_array_equal(values(open_image(array)), want)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4,), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.float32),
        np.zeros((4, 4, 0), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), np.complex64),
        np.zeros((4, 4), "M8[s]"),
        np.full((4, 4), "a"),
        np.full((4, 4), None),
        np.full((4, 4), np.nan),
        np.full((4, 4, 3), np.nan, np.float16),
        np.zeros((0, 0), np.uint8),
        np.zeros((0, 0, 3), np.float32),
        np.broadcast_to(np.float32(np.nan), (1 << 20, 1 << 20, 3)),
        np.broadcast_to(np.uint8(0), (1 << 40, 1)),
        np.full((4, 4), np.inf),
        np.full((4, 4), 1.001),
        np.full((4, 4), -0.001),
        np.full((4, 4, 3), 255.0),
        np.broadcast_to(np.uint8(0), (1 << 13, (1 << 13) + 1)),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_that_are_no_image(array: Array) -> None:
    with pytest.raises(ImageError):
        open_image(array)


@pytest.mark.parametrize("source", [None, 5, 1.5, b"bytes", [1, 2], "", ".", "/", "no\0file", {}])
def test_sources_that_are_no_image(source: Any) -> None:
    with pytest.raises(ImageError):
        open_image(source)


def test_every_value_survives_the_round_trip() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([ramp, ramp[::-1], ramp.T], axis=-1)
    tensor = image_to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor.min() == -1.0 and tensor.max() == 1.0
    # Two roundings of single precision at a magnitude of up to 2.
    want = pixels.astype(np.float64).transpose(2, 0, 1)[None] / 127.5 - 1.0
    assert np.abs(tensor - want).max() < 2.4e-7
    np.testing.assert_array_equal(np.asarray(tensor_to_images(tensor)[0]), pixels)


def test_tensor_to_images_rounds_and_clips() -> None:
    tensor = np.array([-1e30, -1.1, -1.0, -0.999, 0.0, 0.999, 1.0, 1.1, 1e30], np.float32)
    image = tensor_to_images(np.broadcast_to(tensor, (2, 3, 1, 9)))
    assert len(image) == 2
    assert np.asarray(image[1])[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255, 255, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    tensor = np.zeros((1, 3, 4, 4), np.float32)
    tensor[0, 1, 2, 3] = bad
    with pytest.raises(ImageError, match="not finite"):
        tensor_to_images(tensor)


def test_the_callers_image_is_not_changed() -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    assert open_image(image).size == (6, 9)
    assert image.size == (9, 6) and ImageOps.exif_transpose(image).size == (6, 9)
