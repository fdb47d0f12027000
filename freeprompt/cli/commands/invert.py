"""``freeprompt invert``: the latents of a picture at every noise level."""

from __future__ import annotations

import argparse
from pathlib import Path

from freeprompt.cli import options, writing
from freeprompt.cli.source import check_exists
from freeprompt.cli.stages import Stages

DESCRIPTION = """\
Invert IMAGE with DDIM and the empty prompt, and write its latents at every noise level, level 0
(clean) first: a NumPy file [steps+1,1,channels,height,width] of float32. A file of that name is
replaced. Without -o it is IMAGE's name with "-trajectory.npy" for its suffix, in the current
folder, and a file of that name is replaced with --force only."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "invert", run, "invert an image and keep its latents", DESCRIPTION)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture to invert")
    parser.add_argument(
        "-o",
        "--output",
        metavar="F.npy",
        type=Path,
        help="default: IMAGE-trajectory.npy, see above",
    )
    options.add_steps_option(parser)
    options.add_size_options(parser)
    options.add_fit_option(parser)
    options.add_force_option(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    output = arguments.output or Path(f"{arguments.image.stem}-trajectory.npy")
    writing.check_outputs([], [output], [arguments.image])
    writing.check_free([output], arguments.force or arguments.output is not None)
    check_exists(arguments.image)

    stages = Stages(arguments.quiet)
    with stages.stage("loading"):
        editor = options.load_editor(arguments)
    with stages.stage("inversion"):
        inversion = editor.invert(
            arguments.image,
            arguments.steps,
            size=arguments.size,
            fit=arguments.fit,
            callback=stages.step,
        )
    with stages.stage("writing"):
        writing.write_array(inversion.trajectory, output)
    shape = "x".join(str(n) for n in inversion.trajectory.shape)
    stages.report(f"{output}: {shape} float32", options.bundle_to_line(editor.bundle))
