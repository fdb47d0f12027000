"""Damaged image files: each is an ImageError or an RGB image of a sane size, never anything else."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from freeprompt.contract.errors import ImageError
from freeprompt.runtime.inputs.image import MAX_PIXELS, open_image

CASES_PER_FILE = 90


def _seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((4, 4, 1))).astype(np.uint8))
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray(rng.integers(0, 256, (24, 20)).astype(np.uint8)))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 20)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extra: dict[str, Any] = {"exif": exif, "icc_profile": icc}
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, extra),
        "alpha.png": (rgba, {}),
        "palette.png": (rgb.quantize(8), {"transparency": bytes([0, 128])}),
        "deep.png": (deep, {}),
        "rgb.jpg": (rgb, extra),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "lossy.webp": (rgb, extra),
        "lossless.webp": (rgba, {"lossless": True}),
        "animated.gif": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)], "transparency": 1}),
        "rgb.tiff": (rgb, {"exif": exif}),
        "packed.tiff": (deep, {"compression": "tiff_adobe_deflate"}),
        "rgb.bmp": (rgb, {}),
    }
    data = {}
    for name, (image, options) in files.items():
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG", "tiff": "TIFF"}.get(name.split(".")[1], name.split(".")[1].upper())
        image.save(buffer, kind, **options)
        data[name] = buffer.getvalue()
    return data


SEEDS = _seeds()


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def flip_early_bit(data: bytes, rng: np.random.Generator) -> bytes:
    """Headers are where the meaning is."""
    return flip_bits(data[:64], rng) + data[64:]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]


def drop(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + data[at + int(rng.integers(1, 40)) :]


def duplicate(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(int(n) for n in rng.integers(len(data), size=2))
    return data[:end] + data[start:]


def enlarge(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a 16- or 32-bit field of the first part by a large number, in either byte order."""
    order, at = "<>"[int(rng.integers(2))], int(rng.integers(min(200, len(data) - 4)))
    large = [0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 60000, 100000][int(rng.integers(6))]
    field = struct.pack(order + ("H" if large <= 0xFFFF else "I"), large)
    return data[:at] + field + data[at + len(field) :]


def swap_tail(data: bytes, rng: np.random.Generator) -> bytes:
    other = list(SEEDS.values())[int(rng.integers(len(SEEDS)))]
    at = int(rng.integers(len(data)))
    return data[:at] + other[at:]


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes(min(32, len(data) - at)) + data[at + 32 :]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flip_bits,
    flip_early_bit,
    cut,
    insert,
    drop,
    duplicate,
    enlarge,
    swap_tail,
    zero,
)


def outcome(path: Path) -> str:
    """ "image" or "error"; anything else is raised."""
    try:
        image = open_image(path)
    except ImageError as error:
        message = str(error)
        assert path.name in message and len(message) < 2000
        return "error"
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return "image"


@pytest.mark.parametrize("name", SEEDS)
def test_seed_is_an_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SEEDS[name])
    assert outcome(tmp_path / name) == "image"


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_file(tmp_path: Path, name: str) -> None:
    outcomes = []
    for case in range(CASES_PER_FILE):
        rng = np.random.default_rng([case, *name.encode()])
        data = MUTATIONS[case % len(MUTATIONS)](SEEDS[name], rng)
        path = tmp_path / f"{case}-{name}"
        path.write_bytes(data)
        outcomes.append(outcome(path))
        path.unlink()
    assert len(outcomes) == CASES_PER_FILE
    # Both must occur, or the mutations are too harmless or too coarse to test anything.
    assert 5 < outcomes.count("error") < CASES_PER_FILE


def test_there_are_a_thousand() -> None:
    assert CASES_PER_FILE * len(SEEDS) >= 1000


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def chunks_to_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", [name for name in SEEDS if name.endswith("png")])
def test_png_chunks_edited_with_right_checksums(tmp_path: Path, name: str) -> None:
    """Checksums that are right let the damage pass to the decoder of each chunk."""
    chunks = png_chunks(SEEDS[name])
    assert chunks_to_png(chunks) == SEEDS[name]
    variants = []
    for index, (kind, body) in enumerate(chunks):
        rest = chunks[:index], chunks[index + 1 :]
        variants += [[*rest[0], *rest[1]], [*rest[0], (kind, body), (kind, body), *rest[1]]]
        variants += [[*rest[0], (kind, changed), *rest[1]] for changed in (b"", body * 2, body[:1])]
        for byte in range(min(len(body), 13)):
            for bit in (0, 3, 7):
                flipped = bytearray(body)
                flipped[byte] ^= 1 << bit
                variants.append([*rest[0], (kind, bytes(flipped)), *rest[1]])
    path = tmp_path / "x.png"
    for variant in variants:
        path.write_bytes(chunks_to_png(variant))
        outcome(path)
    assert len(variants) > 50


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (0x7FFFFFFF, 1), (8193, 8192), (0, 20)])
def test_png_header_of_another_size(tmp_path: Path, width: int, height: int) -> None:
    (_, header), *rest = png_chunks(SEEDS["rgb.png"])
    data = chunks_to_png([(b"IHDR", struct.pack(">II", width, height) + header[8:]), *rest])
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png"):
        open_image(tmp_path / "x.png")
