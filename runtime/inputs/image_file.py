"""Opening image files: regular ones, of a bounded size, in the formats that pictures from anywhere have."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from freeprompt.contract.errors import ImageError

# The library opens some forty formats by their content, whatever the file's name. Among them are programs (EPS starts
# Ghostscript), text that takes seconds to parse (XPM) and formats nobody has looked at for years.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "AVIF")
# Twice what the largest picture that is read (``image.MAX_PIXELS``) takes uncompressed, four channels of 16 bits.
MAX_FILE_BYTES = 1 << 30

# How files begin that people take for pictures: (place, bytes, what it is).
_OTHERS = (
    (0, b"%!PS", "PostScript or EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"/* XPM */", "XPM"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML, perhaps SVG"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"DDS ", "DDS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
)


def formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def opened_image(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image by its path, or from a binary file that can be sought; its pixels are not decoded yet.

    Raises:
        ImageError: a path that is no regular file or is larger than ``MAX_FILE_BYTES``, or another format.
        Exception: whatever the library raises for a damaged one.
    """
    with contextlib.ExitStack() as stack:
        by_path = isinstance(source, (str, bytes, os.PathLike))
        file: Any = stack.enter_context(_open_regular(source)) if by_path else source
        taken = formats()
        try:
            image = Image.open(file, formats=taken)
        except UnidentifiedImageError as error:
            raise ImageError(
                f"cannot be read as an image: {_kind(file)}; pictures are read as {', '.join(taken)}"
            ) from error
        yield stack.enter_context(image)


def check_decoder(image: Image.Image) -> None:
    """Refuse an image that the caller has opened from a file of another format and whose pixels are not decoded yet.

    Raises:
        ImageError: as the file itself would be refused.
    """
    waiting = isinstance(image, ImageFile.StubImageFile) or bool(getattr(image, "tile", None))
    if waiting and image.format not in FORMATS:
        raise ImageError(
            f"it is {image.format}, not decoded yet; pictures are read as {', '.join(formats())}: "
            "if you trust it, load() it first"
        )


def _open_regular(path: Any) -> BinaryIO:
    # A FIFO would be waited for, and a device read for ever: opened without waiting, and looked at before it is read.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(os.fspath(path), flags)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is no regular file but a device, pipe or socket")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"the file has {status.st_size} bytes, at most {MAX_FILE_BYTES} are read")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _kind(file: BinaryIO) -> str:
    """What a file that was refused seems to be."""
    file.seek(0)
    start = file.read(32)
    if not start:
        return "it is empty"
    for place, mark, name in _OTHERS:
        if start[place:].startswith(mark):
            return f"it is {name}"
    return "it is damaged or of a format that is not known"
