"""``freeprompt shell``: invert a picture once, then edit it at every line typed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeprompt.cli import guard, options, writing
from freeprompt.cli.stages import Stages
from freeprompt.contract import defaults
from freeprompt.contract.errors import Cancelled, FreePromptError
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.editor import Editor
    from freeprompt.runtime.source.inversion import Inversion

DESCRIPTION = """\
Invert IMAGE once (or open a saved inversion), then read prompts, one a line, and edit at each.

The results are OUT-1.png, OUT-2.png, ...; a number whose file exists is passed over, or with --force its
file replaced. Without -o, OUT is IMAGE's name with "-edited.png" for its suffix, in the current folder. The
source is recorded at the first edit, so that the others cost their own rows only.

An empty line is passed over; "quit" or the end of the input ends. Ctrl-C cancels an edit after the step
that runs (pressed again: at once), and the next prompt is read; where none runs it ends. Lines that could
not be edited are told; if there were any, the exit code is 1."""

_ENDS = frozenset({"quit", "exit", ":q"})


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(
        subparsers, "shell", run, "invert an image once and edit it at every line typed", DESCRIPTION
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture, or a file of --save-inversion")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: IMAGE-edited.png, see above")
    options.add_edit_options(parser, fraction=defaults.REAL_FRACTION, default_steps=None)
    options.add_limit_options(parser)
    options.add_size_options(parser)
    options.add_fit_option(parser, default=None)
    options.add_output_options(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from freeprompt.cli.source import check_exists, check_source, is_saved, open_source

    check_source(arguments)
    if arguments.output is None:
        arguments.output = Path(f"{arguments.image.stem}-edited.png")
    first = _numbered(arguments, 1)[1]
    writing.check_quality(arguments.quality, [first])
    writing.check_outputs([first], [], [arguments.image])
    check_exists(arguments.image)

    stages = Stages(arguments.quiet)
    with stages.stage("loading"):
        editor = options.load_editor(arguments)
        settings = options.edit_settings(arguments)
        known = open_source(editor, arguments, stages) if is_saved(arguments.image) else None
        # A wrong setting is told now, not at the first line.
        editor.plan("", steps=arguments.steps, inversion=known, **settings)
    with stages.stage("inversion"):
        inversion = known or open_source(editor, arguments, stages)
    stages.report(options.bundle_to_line(editor.bundle))
    sys.stdout.flush()
    _edit_lines(editor, inversion, settings, arguments, stages)


def _edit_lines(
    editor: Editor, inversion: Inversion, settings: dict[str, Any], arguments: argparse.Namespace, stages: Stages
) -> None:
    from freeprompt.runtime.source.recording import Record

    def abandon() -> None:
        """Record anew: the pass that ran may be half kept."""
        inversion.records.update({mode: Record() for mode in inversion.records})

    number = lines = failed = 0
    for prompt in _lines():
        lines += 1
        start = time.perf_counter()
        try:
            with guard.cancellable(abandon), stages.stage("editing"):
                image = editor.edit(inversion, prompt, **settings, callback=stages.step)[0]
                number, path = _numbered(arguments, number + 1)
                writing.write_image(image, path, arguments.quality)
                stages.clear()
                print(f"{escaped(str(path))}: {escaped(prompt)} ({time.perf_counter() - start:.2f} s)", flush=True)
        except Cancelled:
            guard.say_error("cancelled; the next prompt is read, Ctrl-C there ends")
        except FreePromptError as error:
            # The next line may do better; what was inverted is worth keeping.
            guard.say_failure(error)
            failed += 1
    if failed:
        raise FreePromptError(f"{failed} of {lines} edits failed")


def _numbered(arguments: argparse.Namespace, number: int) -> tuple[int, Path]:
    """The number of the next result, ``number`` or the first after it that is free, and its file."""
    output: Path = arguments.output
    while True:
        path = output.with_name(f"{output.stem}-{number}{output.suffix}")
        if not os.path.lexists(path) or (arguments.force and not _same(path, arguments.image)):
            return number, path
        number += 1


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _lines() -> Iterator[str]:
    """Prompts from the standard input; on a terminal it asks for them."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    while sys.stdin is not None:
        if terminal:
            print("prompt> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip().lower() in _ENDS:
            return
        if line.strip():
            yield line.strip()
