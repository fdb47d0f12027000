"""``freeprompt synthesize``: a generated picture and its edits, from one noise."""

from __future__ import annotations

import argparse
from pathlib import Path

from freeprompt.cli import options, prompts, writing
from freeprompt.cli.stages import Stages
from freeprompt.contract import defaults

DESCRIPTION = f"""\
Generate a picture of SOURCE and, from the same noise and with its self-attention maps, one of each
TARGET.

{prompts.RULES}

The source goes to OUT-source.png, the target to OUT; several targets give OUT-1.png, OUT-2.png, ...
in their order. Files of these names are replaced. Without -o, OUT is synthesized.png in the
current folder, and files of these names are replaced with --force only."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(
        subparsers, "synthesize", run, "generate an image and its edits from one noise", DESCRIPTION
    )
    parser.add_argument("source", metavar="SOURCE", help="prompt of the source")
    parser.add_argument("targets", metavar="TARGET", nargs="+", help="prompts of the edits")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: synthesized.png, see above")
    prompts.add_many_option(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise, from 0 on (default: 0)")
    options.add_edit_options(parser, fraction=defaults.SYNTHETIC_FRACTION)
    options.add_size_options(parser)
    options.add_output_options(parser)
    options.add_model_options(parser)
    parser.add_argument(
        "--side-by-side",
        metavar="FILE",
        type=Path,
        help="also write one picture of all results; those under 256 pixels are magnified on it by a whole factor",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    prompts.check_prompts([arguments.source, *arguments.targets], arguments.many)
    output = arguments.output or Path("synthesized.png")
    source = output.with_name(f"{output.stem}-source{output.suffix}")
    outputs = [source, *writing.numbered(output, len(arguments.targets))]
    sheet = arguments.side_by_side
    pictures = [*outputs, *([sheet] if sheet else [])]
    writing.check_quality(arguments.quality, pictures)
    writing.check_outputs(pictures)
    writing.check_free(outputs, arguments.force or arguments.output is not None)

    stages = Stages(arguments.quiet)
    with stages.stage("loading"):
        editor = options.load_editor(arguments)
        noise = editor.noise(arguments.seed, arguments.size)
    with stages.stage("synthesis"):
        latents = editor.synthesize_latents(
            arguments.source,
            arguments.targets,
            noise,
            steps=arguments.steps,
            callback=stages.step,
            **options.edit_settings(arguments),
        )
    with stages.stage("decoding"):
        results = editor.decode(latents)
    with stages.stage("writing"):
        writing.write_images(results, outputs, arguments.quality)
        if sheet:
            writing.write_image(writing.side_by_side(results), sheet, arguments.quality)
    named = [f"{path}: {prompt}" for prompt, path in zip((arguments.source, *arguments.targets), outputs)]
    stages.report(*named, *filter(None, [sheet]), options.bundle_to_line(editor.bundle))
