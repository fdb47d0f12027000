"""``freeprompt edit``: a picture and what it should become."""

from __future__ import annotations

import argparse
from pathlib import Path

from freeprompt import clioptions, clioutput
from freeprompt.cliprogress import Stages

DESCRIPTION = """\
Edit IMAGE: invert it, then denoise it once for each PROMPT with the self-attention maps of the
source.

The result goes to OUT; several prompts give OUT-1.png, OUT-2.png, ... in their order. Files of
these names are replaced. Without -o, OUT is IMAGE's name with "-edited.png" for its suffix, in the
current folder."""


def register(subparsers: clioptions.Subparsers) -> None:
    """Add the command."""
    parser = clioptions.add_command(subparsers, "edit", run, "edit an image by one prompt or several", DESCRIPTION)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture to edit")
    parser.add_argument("prompts", metavar="PROMPT", nargs="+", help="what the result should show")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: IMAGE-edited.png, see above")
    clioptions.add_edit_options(parser, fraction=0.8)
    clioptions.add_size_options(parser)
    clioptions.add_fit_option(parser)
    clioptions.add_model_options(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what would be computed, with its number of U-Net rows, and stop; IMAGE is not read",
    )
    parser.add_argument(
        "--save-latents",
        metavar="F.npy",
        type=Path,
        help="also write the final latents of the targets, before they are decoded: "
        "[prompts,channels,height,width] of float32",
    )
    parser.add_argument(
        "--side-by-side",
        metavar="FILE",
        type=Path,
        help="also write one picture of IMAGE, as it was fitted, and every result",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    output = arguments.output or Path(f"{arguments.image.stem}-edited.png")
    outputs = clioutput.numbered(output, len(arguments.prompts))
    sheet, latents_file = arguments.side_by_side, arguments.save_latents
    if not arguments.plan:
        clioutput.check_outputs(
            [*outputs, *([sheet] if sheet else [])],
            [latents_file] if latents_file else [],
            [arguments.image],
        )

    from freeprompt.editor import check_size
    from freeprompt.runtime.image import fit_image, open_image
    from freeprompt.runtime.plan import plan_to_text

    stages = Stages(arguments.quiet or arguments.plan)
    settings = {
        "guidance": arguments.guidance,
        "replace_fraction": arguments.replace_fraction,
        "negative_prompt": arguments.negative_prompt,
        "replace_layers": arguments.replace_layers,
    }
    with stages.stage("loading"):
        editor = clioptions.load_editor(arguments, verify=not arguments.plan)
        # Also where nothing is printed: a wrong argument is told now, not after the inversion.
        plans = editor.plan(arguments.prompts, steps=arguments.steps, **settings)
        width, height = check_size(editor.manifest.latents, arguments.size)
    if arguments.plan:
        print(plan_to_text(plans))
        return
    with stages.stage("reading"):
        image = fit_image(open_image(arguments.image), width, height, arguments.fit)
    with stages.stage("inversion"):
        inversion = editor.invert(image, arguments.steps, size=(width, height), callback=stages.step)
    with stages.stage("editing"):
        latents = editor.edit_latents(inversion, arguments.prompts, **settings, callback=stages.step)
    if latents_file:
        clioutput.write_array(latents, latents_file)
    with stages.stage("decoding"):
        results = editor.decode(latents)
    with stages.stage("writing"):
        for result, path in zip(results, outputs):
            clioutput.write_image(result, path)
        if sheet:
            clioutput.write_image(clioutput.side_by_side([image, *results]), sheet)
    if not arguments.quiet:
        for prompt, path in zip(arguments.prompts, outputs):
            print(f"{path}: {prompt}")
        for path in filter(None, (latents_file, sheet)):
            print(path)
        print(stages.summary())
