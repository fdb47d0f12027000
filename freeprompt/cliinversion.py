"""The source of an edit at the command line: a picture to invert, or an inversion saved before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freeprompt.cliprogress import Stages
    from freeprompt.editor import Editor
    from freeprompt.runtime.inversion import Inversion

SUFFIX = ".inversion"


def is_saved(path: Path) -> bool:
    """Whether ``path`` is named as a saved inversion."""
    return path.suffix.lower() == SUFFIX


def open_source(editor: Editor, arguments: argparse.Namespace, stages: Stages, record: str = "auto") -> Inversion:
    """Invert ``arguments.image``, or load it if it is a saved inversion.

    Raises:
        ImageError, InversionError: it cannot be read, or belongs to another bundle.
        UsageError: it is a saved inversion and options that shape an inversion were given.
    """
    from freeprompt.errors import InversionError, UsageError
    from freeprompt.runtime.inversion import Inversion

    if not is_saved(arguments.image):
        return editor.invert(
            arguments.image,
            arguments.steps,
            size=arguments.size,
            fit=arguments.fit,
            record=record,
            callback=stages.step,
        )
    if arguments.size is not None:
        raise UsageError("--size shapes an inversion; this one is saved: leave it out, or edit the picture")
    inversion = Inversion.load(arguments.image)
    if inversion.bundle_sha256 != editor.bundle.sha256:
        raise InversionError(
            f"{arguments.image} was made with another bundle; its latents mean nothing to this one: "
            "name that bundle, or invert the picture again"
        )
    return inversion
