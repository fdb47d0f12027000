"""``freeprompt shell``: invert a picture once, then edit it at every line typed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from freeprompt import clioptions, clioutput, defaults
from freeprompt.cliprogress import Stages

DESCRIPTION = """\
Invert IMAGE once (or open a saved inversion), then read prompts, one a line, and edit at each.

The results are OUT-1.png, OUT-2.png, ...; files of these names are replaced. Without -o, OUT is IMAGE's
name with "-edited.png" for its suffix, in the current folder. An empty line is passed over; "quit" or the
end of the input ends. The source is recorded at the first edit, so that the others cost their own rows only."""

_ENDS = frozenset({"quit", "exit", ":q"})


def register(subparsers: clioptions.Subparsers) -> None:
    """Add the command."""
    parser = clioptions.add_command(
        subparsers, "shell", run, "invert an image once and edit it at every line typed", DESCRIPTION
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture, or a file of --save-inversion")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: IMAGE-edited.png, see above")
    clioptions.add_edit_options(parser, fraction=defaults.REAL_FRACTION)
    clioptions.add_limit_options(parser)
    clioptions.add_size_options(parser)
    clioptions.add_fit_option(parser)
    clioptions.add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    output = arguments.output or Path(f"{arguments.image.stem}-edited.png")
    clioutput.check_outputs([_numbered(output, 1)], [], [arguments.image])

    from freeprompt.cliinversion import open_source
    from freeprompt.errors import LimitError, OutputError, UsageError

    stages = Stages(arguments.quiet)
    with stages.stage("loading"):
        editor = clioptions.load_editor(arguments)
        # A wrong setting is told now, not at the first line.
        settings = clioptions.edit_settings(arguments)
        editor.plan("", steps=arguments.steps, **settings)
    with stages.stage("inversion"):
        inversion = open_source(editor, arguments, stages)
    if not arguments.quiet:
        print(stages.summary(), flush=True)
    number = 0
    for prompt in _lines():
        number += 1
        path = _numbered(output, number)
        start = time.perf_counter()
        try:
            image = editor.edit(inversion, prompt, **settings, callback=stages.step)[0]
            clioutput.write_image(image, path)
        except (UsageError, LimitError, OutputError) as error:
            # The next line may do better; what was inverted is worth keeping.
            stages.clear()
            print(f"freeprompt: error: {error}", file=sys.stderr, flush=True)
            number -= 1
            continue
        stages.clear()
        print(f"{path}: {prompt} ({time.perf_counter() - start:.2f} s)", flush=True)


def _numbered(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}-{number}{output.suffix}")


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
