"""Files that a command writes: named by a rule, checked before the work, whole or absent."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeprompt.cli.guard import hold_interrupts
from freeprompt.contract.errors import OutputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from freeprompt.contract.session import NumpyArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy",)
INVERSION_SUFFIXES = (".inversion",)  # by which a saved inversion is told from a picture
QUALITY_SUFFIXES = (".jpg", ".jpeg", ".webp")  # those that can leave something out
# Beside white, so that the pictures of a sheet do not run into each other.
_GAP = 8
# Smaller pictures are magnified on a sheet: it is looked at.
_SHEET_PIXELS = 256


def numbered(path: Path, count: int) -> list[Path]:
    """``path`` for one result; OUT-1.png, OUT-2.png, ... for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, count + 1)]


def check_outputs(
    images: Iterable[Path],
    arrays: Iterable[Path] = (),
    inputs: Iterable[Path] = (),
    inversions: Iterable[Path] = (),
) -> None:
    """Check, before anything is computed, that every output can be written.

    Raises:
        UsageError: an unknown suffix, two outputs of one name, or an input's name.
        OutputError: its folder cannot be written, or something other than a file has its name.
    """
    taken = {_identity(path): "is an input; it would be replaced" for path in inputs}
    pairs = [(p, IMAGE_SUFFIXES) for p in images] + [(p, ARRAY_SUFFIXES) for p in arrays]
    pairs += [(p, INVERSION_SUFFIXES) for p in inversions]
    for path, suffixes in pairs:
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"the output {path} must end in one of: {', '.join(suffixes)}")
        identity = _identity(path)
        if identity in taken:
            raise UsageError(f"the output {path} {taken[identity]}; choose another name")
        taken[identity] = "is named twice"
    for path, _ in pairs:
        _check_writable(path)


def check_free(paths: Iterable[Path], force: bool) -> None:
    """Refuse to replace files whose names nobody typed. Raises OutputError."""
    for path in () if force else paths:
        with _as_output_error(path):
            if os.path.lexists(path):
                raise OutputError(f"{path} exists already: choose a name with -o, or replace it with --force")


def check_quality(quality: int | None, paths: Iterable[Path]) -> None:
    """Raises UsageError if no picture takes a quality."""
    if quality is not None and not any(path.suffix.lower() in QUALITY_SUFFIXES for path in paths):
        raise UsageError(f"--quality is for outputs that end in one of: {', '.join(QUALITY_SUFFIXES)}")


def check_folder_output(path: Path) -> None:
    """Check that a folder can be made at ``path``, whose parents may be missing too.

    Raises:
        OutputError: it cannot.
    """
    parent = path.absolute().parent
    with _as_output_error(path):
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        with tempfile.TemporaryDirectory(prefix=".freeprompt-", dir=parent):
            pass


def write_image(image: Image.Image, path: Path, quality: int | None = None) -> None:
    """Write in the format of the suffix.

    Args:
        quality: of JPEG and WebP, 1 to 100; None: 95 of JPEG, and WebP without loss.

    Raises:
        OutputError: it cannot be written.
    """
    from freeprompt.contract.files import atomic_path

    settings: dict[str, Any] = {}
    if path.suffix.lower() in (".jpg", ".jpeg"):
        # Chroma subsampling would blur what the model drew at this size.
        settings = {"quality": 95 if quality is None else quality, "subsampling": 0}
    elif path.suffix.lower() == ".webp":
        settings = {"lossless": True} if quality is None else {"quality": quality}
    try:
        with hold_interrupts(), atomic_path(path) as temporary:
            image.save(temporary, **settings)
    except (ValueError, KeyError) as error:  # a size that the format lacks, a codec not built in
        raise OutputError(f"cannot write {path}: {error}") from error


def write_images(images: Iterable[Image.Image], paths: Iterable[Path], quality: int | None = None) -> None:
    """Write each under its name. Raises OutputError."""
    for image, path in zip(images, paths):
        write_image(image, path, quality)


def write_array(array: NumpyArray, path: Path) -> None:
    """Write in NumPy's format. Raises OutputError."""
    import numpy as np

    from freeprompt.contract.files import atomic_path

    with hold_interrupts(), atomic_path(path) as temporary, temporary.open("wb") as file:
        # Not np.save(path): it writes in buffers of its own, and a full disk would pass unseen.
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size from left to right on white; small ones are magnified by a whole factor, to at most 256."""
    from PIL import Image

    width = sum(image.width for image in images) + _GAP * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + _GAP
    factor = max(1, _SHEET_PIXELS // max(*images[0].size))
    return sheet.resize((factor * sheet.width, factor * sheet.height), Image.Resampling.NEAREST)


def _check_writable(path: Path) -> None:
    from freeprompt.contract.files import check_writable

    with _as_output_error(path):
        if not path.parent.exists():
            raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"cannot write {path}: it exists and is not a file")
        with hold_interrupts():
            check_writable(path)


def _identity(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL
        return path


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise OutputError(f"cannot write {path}: {reason or error}") from error
