"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from freeprompt.contract import defaults

if TYPE_CHECKING:
    from freeprompt.contract.bundle import Bundle
    from freeprompt.editor import Editor

Subparsers = Any  # argparse's own class for these is private


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    description: str,
) -> argparse.ArgumentParser:
    """Add the parser of a command; ``run`` gets the parsed arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


class _Renamed(argparse.Action):
    """An option of an earlier version; ``const`` says what takes its place."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        raise argparse.ArgumentError(self, str(self.const))


def add_renamed_option(parser: argparse.ArgumentParser, old: str, message: str) -> None:
    """Let an option that has another name now be an error that says so. The parsed arguments do not have it."""
    parser.add_argument(
        old, nargs="?", action=_Renamed, const=message, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which bundle, on what."""
    parser.add_argument(
        "--bundle",
        default="demo",
        metavar="B",
        help="the bundle's folder (default: demo, the built-in one)",
    )
    parser.add_argument(
        "--backend",
        type=backend_name,
        default="auto",
        metavar="B",
        help="cpu, cuda, tensorrt, ort:NAME[,option=value,...] for any execution provider of ONNX Runtime, or auto: "
        "the fastest that works here (default: auto; see freeprompt doctor)",
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="CPU threads within an operator (default: every core)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """The size of the image, in the model."""
    parser.add_argument(
        "--size",
        type=width_and_height,
        metavar="WxH",
        help="size in pixels of the result (default: the model's native size)",
    )


def add_fit_option(parser: argparse.ArgumentParser, default: str | None = defaults.FIT) -> None:
    """How a picture is brought to that size. With None as its default, whoever reads it knows whether it was said."""
    parser.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        default=default,
        help="how IMAGE is brought to that size: cut what stands over, repeat the border, or "
        "change the aspect ratio (default: crop)",
    )


def add_steps_option(parser: argparse.ArgumentParser, default: int | None = defaults.STEPS) -> None:
    """The number of DDIM steps. With None as its default, whoever reads it knows whether it was said."""
    parser.add_argument(
        "--steps", type=int, default=default, metavar="N", help=f"DDIM steps (default: {defaults.STEPS})"
    )


def add_edit_options(
    parser: argparse.ArgumentParser, fraction: float, default_steps: int | None = defaults.STEPS
) -> None:
    """What an edit is made with."""
    add_steps_option(parser, default_steps)
    parser.add_argument(
        "--guidance",
        type=float,
        default=defaults.GUIDANCE,
        metavar="G",
        help="classifier-free guidance, from 0 on (default: %(default)s); up to 1 it is off, as in diffusers: a step "
        "costs each prompt a row less, and a negative prompt says nothing",
    )
    parser.add_argument(
        "--replace-fraction",
        type=float,
        default=fraction,
        metavar="F",
        help="share of the steps, from the first, that use the source's self-attention maps, "
        "0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--replace-layers",
        metavar="LAYERS",
        help="in which self-attention layers: numbers (7), ranges (3-13), levels (level:1-3), all, "
        "none, separated by commas (default: the bundle's; see freeprompt inspect)",
    )
    parser.add_argument("--negative-prompt", default="", metavar="P", help="what the result should not show")


def add_record_option(parser: argparse.ArgumentParser) -> None:
    """How the source's hidden states are come by."""
    parser.add_argument(
        "--record",
        choices=("auto", "exact", "none", "inversion"),
        default="auto",
        help="exact: record the source once, so that each further edit costs its own rows only; none: a "
        "source row in every step that replaces maps, the same result with one graph in memory; inversion: "
        "record while inverting, fewer rows, an approximate result; auto (default): none for a single "
        "prompt, else exact",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """How pictures are written."""
    add_force_option(parser)
    parser.add_argument(
        "--quality",
        type=percentage,
        metavar="N",
        help="of JPEG and WebP, 1 to 100 (default: 95 of JPEG, and WebP without loss)",
    )


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """Whether files may be replaced whose names were not typed."""
    parser.add_argument(
        "-f", "--force", action="store_true", help="replace files that exist, also where their names are the default"
    )


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """What an edit may use; ``load_editor`` reads them."""
    parser.add_argument(
        "--max-rows",
        type=positive_integer,
        metavar="N",
        help="most rows of one evaluation of the U-Net; more prompts than fit are edited in turn (default: 8)",
    )
    parser.add_argument(
        "--record-megabytes",
        type=natural_number,
        metavar="N",
        help="most memory for what is recorded of the source; steps that do not fit run a source row instead, "
        "with the same result (default: 2048)",
    )
    parser.add_argument(
        "--device-record-megabytes",
        type=natural_number,
        metavar="N",
        help="most of it that is in the GPU's memory; the rest waits in the host's and comes back while earlier "
        "steps run, with the same result (default: all of it)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="SECONDS",
        help="most seconds that the inversion may take, and each edit; looked at before each step (default: any)",
    )


def edit_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of ``add_edit_options`` as keywords of Editor.edit and Editor.plan, without the steps."""
    return {
        "guidance": arguments.guidance,
        "replace_fraction": arguments.replace_fraction,
        "negative_prompt": arguments.negative_prompt,
        "replace_layers": arguments.replace_layers,
    }


def backend_name(text: str) -> str:
    """A backend's name, as it was typed. Raises argparse.ArgumentTypeError."""
    from freeprompt.contract.errors import UsageError
    from freeprompt.engines.backend_name import parse_backend

    try:
        parse_backend(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def positive_integer(text: str) -> int:
    """A whole number from 1 on. Raises argparse.ArgumentTypeError."""
    return _whole_number(text, 1)


def natural_number(text: str) -> int:
    """A whole number from 0 on. Raises argparse.ArgumentTypeError."""
    return _whole_number(text, 0)


def percentage(text: str) -> int:
    """A whole number from 1 to 100. Raises argparse.ArgumentTypeError."""
    return _whole_number(text, 1, 100)


def _whole_number(text: str, least: int, most: float = math.inf) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        wanted = f"from {least} on" if most == math.inf else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected a whole number {wanted}, not {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """A number above 0. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, not {text!r}")
    return value


def width_and_height(text: str) -> tuple[int, int]:
    """ "512x768" as (512, 768). Raises argparse.ArgumentTypeError."""
    width, _, height = text.lower().partition("x")
    # A dozen digits are no size; int() of thousands of them would be an error of its own.
    if not (width.isdecimal() and height.isdecimal() and len(text) < 16):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, as 512x512, not {text!r}")
    return int(width), int(height)


def open_bundle(name: str, verify: bool = True) -> Bundle:
    """The bundle of that folder, or the built-in one, checked; ``verify``: file by file, or for presence only."""
    from freeprompt.contract.bundle import Bundle
    from freeprompt.editor import DEMO, demo_bundle

    return Bundle.open(demo_bundle() if name == DEMO else name, verify)


def bundle_to_line(bundle: Bundle) -> str:
    """Which bundle a command ran, for its report."""
    from freeprompt.editor import demo_bundle

    if bundle.path.resolve() == demo_bundle().resolve():
        return (
            "bundle: demo, the built-in model: it knows coloured shapes only; for photographs export your checkpoint "
            "with freeprompt export, and name it with --bundle"
        )
    return f"bundle: {bundle.path} (model {bundle.manifest.model})"


def load_editor(arguments: argparse.Namespace, verify: bool = True) -> Editor:
    """The editor that ``add_model_options`` describes."""
    from freeprompt.editor import Editor, Limits

    given: dict[str, Any] = {"rows": getattr(arguments, "max_rows", None)}
    given["seconds"] = getattr(arguments, "time_limit", None)
    for option, name in (("record_megabytes", "record_bytes"), ("device_record_megabytes", "device_record_bytes")):
        if getattr(arguments, option, None) is not None:
            given[name] = getattr(arguments, option) * 1_000_000
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    return Editor.load(arguments.bundle, arguments.backend, threads=arguments.threads, verify=verify, limits=limits)
