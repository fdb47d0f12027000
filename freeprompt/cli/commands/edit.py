"""``freeprompt edit``: a picture and what it should become."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from freeprompt.cli import guard, options, prompts, writing
from freeprompt.cli.source import check_exists, check_source, is_saved, open_source
from freeprompt.cli.stages import Stages
from freeprompt.contract import defaults

if TYPE_CHECKING:
    from PIL import Image

    from freeprompt.editor import Editor
    from freeprompt.runtime.source.inversion import Inversion

DESCRIPTION = f"""\
Edit IMAGE: invert it, then denoise it once for each PROMPT with the self-attention maps of the
source. IMAGE may also be a file that --save-inversion wrote (its name ends in .inversion): then it is
not inverted again, and --steps, --size and --fit are its own.

{prompts.RULES}

The result goes to OUT; several prompts give OUT-1.png, OUT-2.png, ... in their order. Files of
these names are replaced. Without -o, OUT is IMAGE's name with "-edited.png" for its suffix, in the
current folder, and a file of that name is replaced with --force only."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "edit", run, "edit an image by one prompt or several", DESCRIPTION)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture to edit, or a saved inversion")
    parser.add_argument("prompts", metavar="PROMPT", nargs="+", help="what the result should show")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: IMAGE-edited.png, see above")
    prompts.add_many_option(parser)
    options.add_edit_options(parser, fraction=defaults.REAL_FRACTION, default_steps=None)
    options.add_record_option(parser)
    options.add_limit_options(parser)
    options.add_size_options(parser)
    options.add_fit_option(parser, default=None)
    options.add_output_options(parser)
    options.add_model_options(parser)
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
        "--save-inversion",
        metavar="F.inversion",
        type=Path,
        help="also write the inversion, with what was recorded of the source, for further edits",
    )
    parser.add_argument(
        "--side-by-side",
        metavar="FILE",
        type=Path,
        help="also write one picture of IMAGE, as it was fitted, and every result; pictures under 256 pixels are "
        "magnified on it by a whole factor",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    prompts.check_prompts(arguments.prompts, arguments.many, arguments.image)
    check_source(arguments)
    output = arguments.output or Path(f"{arguments.image.stem}-edited.png")
    outputs = writing.numbered(output, len(arguments.prompts))
    sheet, latents_file, saved = arguments.side_by_side, arguments.save_latents, arguments.save_inversion
    pictures = [*outputs, *([sheet] if sheet else [])]
    writing.check_quality(arguments.quality, pictures)
    if not arguments.plan:
        writing.check_outputs(
            pictures,
            [latents_file] if latents_file else [],
            [arguments.image],
            [saved] if saved else [],
        )
        writing.check_free(outputs, arguments.force or arguments.output is not None)
        check_exists(arguments.image)

    from freeprompt.runtime.plan.plan import APPROXIMATE, plan_to_text

    stages = Stages(arguments.quiet or arguments.plan)
    settings = options.edit_settings(arguments)
    with stages.stage("loading"):
        editor = options.load_editor(arguments, verify=not arguments.plan)
        # Also where nothing is printed: a wrong argument is told now, not after the inversion.
        known = open_source(editor, arguments, stages) if is_saved(arguments.image) else None
        settings["record"] = editor.record_mode(arguments.record, _edited_again(arguments), **settings)
        plans = editor.plan(arguments.prompts, steps=arguments.steps, size=arguments.size, inversion=known, **settings)
    if arguments.plan:
        print(plan_to_text(plans))
        return
    with stages.stage("inversion"):
        inversion = known or open_source(editor, arguments, stages, settings["record"])
    with stages.stage("editing", sum(len(plan.steps) for plan in plans if plan.name == "edit")):
        latents = editor.edit_latents(inversion, arguments.prompts, **settings, callback=stages.step)
    if saved:
        with guard.hold_interrupts():
            inversion.save(saved, records=True)
    if latents_file:
        writing.write_array(latents, latents_file)
    with stages.stage("decoding"):
        results = editor.decode(latents)
    with stages.stage("writing"):
        writing.write_images(results, outputs, arguments.quality)
        if sheet:
            joined = writing.side_by_side([_source(editor, inversion, arguments), *results])
            writing.write_image(joined, sheet, arguments.quality)
    named = [f"{path}: {prompt}" for prompt, path in zip(arguments.prompts, outputs)]
    notes = [APPROXIMATE] if any(plan.approximate for plan in plans) else []
    notes.append(options.bundle_to_line(editor.bundle))
    stages.report(*named, *filter(None, (latents_file, saved, sheet)), *notes)


def _edited_again(arguments: argparse.Namespace) -> bool:
    """Whether this edit's record serves another one: several prompts, or an inversion that was kept or is to be."""
    return len(arguments.prompts) > 1 or arguments.save_inversion is not None or is_saved(arguments.image)


def _source(editor: Editor, inversion: Inversion, arguments: argparse.Namespace) -> Image.Image:
    """The picture as it was fitted; of a saved inversion, what its clean latents decode to."""
    if is_saved(arguments.image):
        return editor.decode(inversion.trajectory[0])[0]
    from freeprompt.runtime.inputs.image import fit_image, open_image

    spec = editor.manifest.latents
    height, width = inversion.size
    image = open_image(arguments.image)
    return fit_image(image, width * spec.scale, height * spec.scale, arguments.fit)
