"""Images in and out, against independent computations."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from freeprompt.contract.errors import ImageError, UsageError
from freeprompt.runtime.inputs import image as module
from freeprompt.runtime.inputs.image import fit_image, open_image

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def values(image: Image.Image) -> Array:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    lossless = {"webp": {"lossless": True}}.get(suffix, {})
    pixels = np.kron(PIXELS, np.ones((8, 8, 1), np.uint8))
    path = saved(Image.fromarray(pixels), tmp_path / f"x.{suffix}", **lossless)
    got = values(open_image(path))
    with Image.open(path) as image:
        np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))
    if suffix not in ("gif", "jpg"):
        np.testing.assert_array_equal(got, pixels)
    np.testing.assert_array_equal(values(open_image(str(path))), got)


# What the tag says about the stored rows and columns, and so how the stored picture has to be turned for viewing.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(PIXELS), tmp_path / f"x.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(values(open_image(path)), TURNS[orientation](PIXELS))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(PIXELS), tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(values(open_image(path)), PIXELS)


def over_white(colour: Array, alpha: Array) -> Array:
    a = alpha.astype(np.float64)[..., None] / 255.0
    return np.asarray(colour * a + 255.0 * (1.0 - a))


def test_alpha_over_white(tmp_path: Path) -> None:
    rgba = RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    path = saved(Image.fromarray(rgba), tmp_path / "x.png")
    for source in (path, Image.fromarray(rgba), rgba):
        got = values(open_image(source)).astype(np.float64)
        # The library composes in integers: within one level of the exact mixture.
        assert np.abs(got - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1.0
        assert (got[0] == 255).all() and (got[1] == rgba[1, :, :3]).all()


def test_grey_with_alpha_over_white(tmp_path: Path) -> None:
    la = RNG.integers(0, 256, (8, 8, 2)).astype(np.uint8)
    path = saved(la_image(la), tmp_path / "x.png")
    got = values(open_image(path)).astype(np.float64)
    want = over_white(la[..., :1].repeat(3, axis=2), la[..., 1])
    assert np.abs(got - want).max() <= 1.0


def la_image(la: Array) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(la[..., 0]), Image.fromarray(la[..., 1])])


@pytest.mark.parametrize("transparency", [2, bytes([0, 128, 255, 64])], ids=["index", "table"])
def test_palette_with_transparency(tmp_path: Path, transparency: Any) -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 99, 199]], np.uint8)
    index = RNG.integers(0, 4, (8, 8)).astype(np.uint8)
    image = Image.frombytes("P", (8, 8), index.tobytes())
    image.putpalette(palette.tobytes())
    path = saved(image, tmp_path / "x.png", transparency=transparency)
    alpha = np.full(4, 255)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    else:
        alpha[:] = list(transparency)
    want = over_white(palette[index], alpha[index])
    assert np.abs(values(open_image(path)) - want).max() <= 1.0


def test_key_colour_is_transparent(tmp_path: Path) -> None:
    pixels = PIXELS.copy()
    pixels[0, 0] = (1, 2, 3)
    path = saved(Image.fromarray(pixels), tmp_path / "x.png", transparency=(1, 2, 3))
    got = values(open_image(path))
    assert (got[0, 0] == 255).all()
    np.testing.assert_array_equal(got[1:], pixels[1:])


def test_cmyk(tmp_path: Path) -> None:
    cmyk = RNG.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    path = saved(Image.frombytes("CMYK", (8, 8), cmyk.tobytes()), tmp_path / "x.tiff")
    c = cmyk.astype(np.float64)
    want = (255.0 - c[..., :3]) * (255.0 - c[..., 3:]) / 255.0
    assert np.abs(values(open_image(path)) - want).max() <= 1.0


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    path = saved(Image.fromarray(ramp), tmp_path / f"x.{suffix}")
    want = np.rint(ramp / 257.0)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(values(open_image(path)), want)


def test_sixteen_bit_big_endian() -> None:
    ramp = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    image = Image.frombytes("I;16B", (8, 8), ramp.tobytes())
    want = np.rint(ramp / 257.0)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(values(open_image(image)), want)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode '{mode}' has no defined range"):
        open_image(Image.new(mode, (4, 4)))


def test_float_tiff_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(Image.new("F", (4, 4)), tmp_path / "x.tiff")
    with pytest.raises(ImageError, match=r"x\.tiff: the image's mode 'F'"):
        open_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "RGBa", "PA", "LAB"])
def test_other_modes(mode: str) -> None:
    base = Image.new("RGB", (4, 4), (200, 200, 200))
    image = Image.new(mode, (4, 4)) if mode in ("RGBa", "PA", "LAB") else base.convert(mode)
    assert values(open_image(image)).shape == (4, 4, 3)


def test_a_mode_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ImageError, match="La"):
        open_image(Image.new("La", (4, 4)))


def test_icc_profile_is_applied(tmp_path: Path) -> None:
    """Twice the gamma makes mid-greys darker; what is expected comes from the definition of the two curves."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([grey] * 3, axis=-1)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = values(open_image(saved(Image.fromarray(pixels), tmp_path / "s.png", icc_profile=srgb)))
    assert np.abs(same.astype(int) - pixels).max() <= 1
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    broken = saved(Image.fromarray(pixels), tmp_path / "b.png", icc_profile=b"not a profile")
    np.testing.assert_array_equal(values(open_image(broken)), pixels)
    other = saved(Image.fromarray(pixels), tmp_path / "x.png", icc_profile=xyz)
    assert values(open_image(other)).shape == pixels.shape


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (values(open_image(path)) == (255, 0, 0)).all()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image at .*none\.png"):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"text", b"\xff\xd8\xff", b"GIF89a"])
def test_files_that_are_no_image(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp", "gif"])
def test_cut_file(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    data = saved(noise, tmp_path / f"w.{suffix}").read_bytes()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=f"x.{suffix}"):
        open_image(path)


def test_cut_file_that_the_caller_has_opened(tmp_path: Path) -> None:
    """The library reads pixels when they are first used, here."""
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    data = saved(noise, tmp_path / "x.png").read_bytes()
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image, pytest.raises(ImageError):
        open_image(image)


def test_empty_image() -> None:
    with pytest.raises(ImageError, match=r"empty \(0x4\)"):
        open_image(Image.new("RGB", (0, 4)))


def test_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(PIXELS), tmp_path / "x.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 9 * 6 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"x\.png: the image has 9x6 pixels, at most 53"):
        open_image(path)
    monkeypatch.setattr(module, "MAX_PIXELS", 9 * 6)
    monkeypatch.undo()
    assert open_image(path).size == (9, 6)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fit_of_the_right_size_changes_nothing(fit: str) -> None:
    np.testing.assert_array_equal(values(fit_image(Image.fromarray(PIXELS), 9, 6, fit)), PIXELS)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_fit_of_extreme_shapes(fit: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    assert (values(fit_image(image, 64, 32, fit)) == (10, 20, 30)).all()
    assert fit_image(image, 64, 32, fit).size == (64, 32)


@pytest.mark.parametrize("fit", ["", "CROP", "fill", None])
def test_unknown_fit(fit: Any) -> None:
    with pytest.raises(UsageError, match="unknown fit"):
        fit_image(Image.fromarray(PIXELS), 9, 6, fit)
