"""The source of an edit at the command line: a picture to invert, or an inversion saved before."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from freeprompt.contract import defaults
from freeprompt.contract.errors import ImageError, InversionError, UsageError

if TYPE_CHECKING:
    from freeprompt.cli.stages import Stages
    from freeprompt.editor import Editor
    from freeprompt.runtime.source.inversion import Inversion

SUFFIX = ".inversion"


def is_saved(path: Path) -> bool:
    """Whether ``path`` is named as a saved inversion."""
    return path.suffix.lower() == SUFFIX


def check_source(arguments: argparse.Namespace) -> None:
    """Check what can be checked of the source before a bundle is opened; fills in ``steps`` and ``fit``.

    Raises:
        UsageError: it is a saved inversion and options that shape an inversion were given.
    """
    given = [name for name in ("steps", "size", "fit") if getattr(arguments, name) is not None]
    if is_saved(arguments.image) and given:
        raise UsageError(f"--{given[0]} shapes an inversion; this one is saved: leave it out, or edit the picture")
    arguments.steps = defaults.STEPS if arguments.steps is None else arguments.steps
    arguments.fit = arguments.fit or defaults.FIT


def check_exists(image: Path) -> None:
    """Raises ImageError if there is no such picture: it need not wait for the model."""
    with contextlib.suppress(OSError, ValueError):  # told when it is opened, with the reason
        if not is_saved(image) and not image.exists():
            raise ImageError(f"no image at {image}")


def open_source(editor: Editor, arguments: argparse.Namespace, stages: Stages, record: str = "auto") -> Inversion:
    """Invert ``arguments.image``, or load it if it is a saved inversion.

    Raises:
        ImageError, InversionError: it cannot be read, or belongs to another bundle.
    """
    from freeprompt.runtime.source.inversion import Inversion

    if not is_saved(arguments.image):
        return editor.invert(
            arguments.image,
            arguments.steps,
            size=arguments.size,
            fit=arguments.fit,
            record=record,
            callback=stages.step,
        )
    inversion = Inversion.load(arguments.image)
    if inversion.bundle_sha256 != editor.bundle.sha256:
        raise InversionError(
            f"{arguments.image} was made with another bundle; its latents mean nothing to this one: "
            "name that bundle, or invert the picture again"
        )
    return inversion
