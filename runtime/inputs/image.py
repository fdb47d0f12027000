"""Images in and out: any size and mode to the model's pixels, and back."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from freeprompt.contract.errors import ImageCroppedWarning, ImageError, UsageError
from freeprompt.contract.session import NumpyArray
from freeprompt.runtime.inputs.image_file import check_decoder, opened_image

# Eight times the area of a 4K frame; decoding more takes gigabytes and is a mistake or an attack.
MAX_PIXELS = 64 << 20
FITS = ("crop", "pad", "stretch")
# Cameras' 3:2 on a square keeps 67 %, which everyone who crops expects; 16:9 keeps 56 %, a scan or a panorama less.
LEAST_CROP = 0.6

# What the library warns of is kept in one list of the process, which two threads must not exchange at once.
_WARNINGS = threading.Lock()

ImageSource = str | Path | BinaryIO | Image.Image | NumpyArray


def read_image(source: ImageSource, width: int, height: int, fit: str) -> NumpyArray:
    """An image as a model takes it: [1, 3, height, width] float32 in [-1, 1].

    Warns ImageCroppedWarning, to the caller's caller, where ``fit`` "crop" leaves a large part of it out.

    Raises:
        ImageError: see ``open_image``.
        UsageError: unknown ``fit``.
    """
    image = open_image(source)
    if fit == "crop":
        _warn_of_crop(image.width, image.height, (width, height))
    return image_to_tensor(fit_image(image, width, height, fit))


def open_image(source: ImageSource) -> Image.Image:
    """Read an image as 8-bit sRGB: EXIF orientation applied, alpha over white, the first frame of an animation.

    Args:
        source: a path of a regular file or an open binary file, of a format in ``imagefile.FORMATS``; a PIL image; or
            an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, or floating in [0, 1].

    Raises:
        ImageError: it cannot be read, is of another format, damaged, empty, larger than ``MAX_PIXELS``, or of a mode
            without a defined range.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_array_to_image(source))
    name = str(source) if isinstance(source, (str, bytes, os.PathLike)) else "the image"
    try:
        with _WARNINGS, warnings.catch_warnings():
            # The library warns of suspicious sizes and damaged metadata; sizes are checked here, and pixels decide.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):  # one opened from a file may not be decoded yet
                _check_size(source.width, source.height)
                check_decoder(source)
                return _to_rgb(source)
            with opened_image(source) as image:
                _check_size(image.width, image.height)
                return _to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: the image has too many pixels, at most {MAX_PIXELS} are read") from error
    except FileNotFoundError as error:
        raise ImageError(f"no image at {name}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image") from error
    except PermissionError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # decoders of the many formats raise whatever their parsing meets
        raise ImageError(f"{name} cannot be read as an image: {error}") from error


def fit_image(image: Image.Image, width: int, height: int, fit: str = "crop") -> Image.Image:
    """Bring an image to exactly ``width`` x ``height`` with an antialiasing Lanczos filter.

    Args:
        image: RGB.
        width, height: pixels.
        fit: "crop" scales until the frame is covered and cuts what stands over, centred; "pad" scales until all is
            inside and repeats the border's colour; "stretch" ignores the aspect ratio.

    Raises:
        UsageError: unknown ``fit``.
    """
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}; known are {', '.join(FITS)}")
    size, whole = (width, height), (0.0, 0.0, float(image.width), float(image.height))
    if image.size == size:
        return image
    if fit == "stretch":
        return _resize(image, size, whole)
    if fit == "crop":
        return _resize(image, size, _centred_box(image.size, size))
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(_resize(image, inner, whole))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    around = ((top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="edge"))


def _centred_box(size: tuple[int, int], frame: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest rectangle of the frame's shape in the middle of an image: left, top, right, bottom, in pixels.

    It may begin between pixels. Computed as ``PIL.ImageOps.fit`` does, whose results these are to be.
    """
    width, height = size
    wide, ratio = width / height, frame[0] / frame[1]
    across, down = float(width), float(height)
    if wide > ratio:
        across = ratio * height
    elif wide < ratio:
        down = width / ratio
    left, top = (width - across) * 0.5, (height - down) * 0.5
    return left, top, left + across, top + down


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """Resample a box of an image, along the rows and then along the columns, rounding to 8 bits in between.

    In which order the library would do both depends on its version (before Pillow 13 the rows were always first) and
    changes results, so that each is asked for on its own. Columns go first only where what lies between would be
    larger than any image that is read; then it is not the other way round.
    """
    (width, height), (left, top, right, bottom) = size, box
    lanczos = Image.Resampling.LANCZOS
    if width * image.height <= MAX_PIXELS:
        image = image.resize((width, image.height), lanczos, box=(left, 0, right, image.height))
        return image.resize(size, lanczos, box=(0, top, width, bottom))
    image = image.resize((image.width, height), lanczos, box=(0, top, image.width, bottom))
    return image.resize(size, lanczos, box=(left, 0, right, height))


def image_to_tensor(image: Image.Image) -> NumpyArray:
    """RGB image to [1, 3, H, W] float32 in [-1, 1]."""
    pixels = np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def tensor_to_images(tensor: NumpyArray) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] (values outside are clipped) to RGB images.

    Raises:
        ImageError: a value is not finite: the model overflowed, and the picture would be black.
    """
    if not np.isfinite(tensor).all():
        raise ImageError(
            "the decoded image has values that are not finite; a half-precision model overflowed: "
            "export it with float32 weights"
        )
    pixels = np.clip(np.rint((tensor.astype(np.float32) + 1.0) * 127.5), 0.0, 255.0)
    return [Image.fromarray(p) for p in pixels.astype(np.uint8).transpose(0, 2, 3, 1)]


def _warn_of_crop(width: int, height: int, frame: tuple[int, int]) -> None:
    """Warn ImageCroppedWarning if cropping to the shape of ``frame`` keeps less than ``LEAST_CROP`` of an image.

    Args:
        width, height: of the image, in pixels.
        frame: (width, height) of what it is brought to.
    """
    kept = min(width * frame[1], frame[0] * height) / max(width * frame[1], frame[0] * height)
    if kept < LEAST_CROP:
        warnings.warn(
            f"fit='crop' keeps {100 * kept:.0f} % of the picture ({width}x{height} to {frame[0]}x{frame[1]}); "
            "fit='pad' keeps all of it",
            ImageCroppedWarning,
            stacklevel=4,
        )


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the image is empty ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image has {width}x{height} pixels, at most {MAX_PIXELS} are read; make it smaller first")


def _array_to_image(array: NumpyArray) -> Image.Image:
    values: NumpyArray = array
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ImageError(f"an image array must be [H, W], [H, W, 3] or [H, W, 4], not {list(array.shape)}")
    _check_size(values.shape[1], values.shape[0])
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0.0 or values.max() > 1.0:
            raise ImageError("a floating-point image array must be within [0, 1]")
        values = np.rint(values * 255.0).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"an image array must be uint8, or floating within [0, 1], not {values.dtype}")
    return Image.fromarray(values)


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # A plain conversion clips at 255: a 16-bit picture would come out white.
        image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"the image's mode {image.mode!r} has no defined range; convert it to 8 bits first")
    image = _to_srgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image.alpha_composite(layer)
    return image.convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    profile: Any = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    # A profile that cannot be read is ignored, as viewers do.
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if converted is not None:
            return converted
    return image
