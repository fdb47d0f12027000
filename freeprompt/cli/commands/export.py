"""``freeprompt export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from freeprompt.cli import options, writing
from freeprompt.cli.stages import Stages
from freeprompt.contract.errors import ExportError, OutputError

DESCRIPTION = """\
Export a diffusers checkpoint of Stable Diffusion 1.x or 2.x (a folder or a hub id, weights as
safetensors) as a bundle: ONNX graphs, tokenizer and manifest in one folder. Every graph is
compared with PyTorch; where one does not agree, nothing is written. Needs the extra "export":
pip install 'freeprompt[export]'."""
# What the extra brings; any other module that is missing is a fault of freeprompt.
_EXTRA = {"torch", "diffusers", "transformers", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "sympy"}


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "export", run, "turn a diffusers checkpoint into a bundle", DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a diffusers folder or a hub id")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "float16"),
        help="of the weights (default: float32)",
    )
    parser.add_argument(
        "--float32",
        action="append",
        default=[],
        metavar="NAME",
        help="keep this graph (such as vae_decoder), or the maps of this attention layer (such as 'unet.*.attn1'), in "
        "float32 in a float16 bundle, besides what is found to need it; may be repeated",
    )
    parser.add_argument(
        "--spacing",
        default="auto",
        choices=("auto", "checkpoint", "leading", "trailing", "linspace"),
        help="of the timesteps: auto is the method's (leading, or trailing for models trained for it), checkpoint what "
        "its saved scheduler has (default: auto)",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="of the checkpoint's weights, such as fp16 (default: those without, or the only one there is)",
    )
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX operator set (default: 18)")
    parser.add_argument(
        "--graphs",
        default="latency",
        choices=("memory", "latency"),
        help="latency: also the graphs that record and reuse a source; memory: the one step "
        "graph only (default: latency)",
    )
    options.add_renamed_option(parser, "--profile", "it is called --graphs now: --graphs memory or --graphs latency")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace BUNDLE if it exists, once the new one is whole",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.output.exists() and not arguments.overwrite:
        raise OutputError(f"{arguments.output} exists already; choose another name or give --overwrite")
    writing.check_folder_output(arguments.output)

    # Made before the libraries of the export silence the standard error.
    stages = Stages(arguments.quiet)
    with stages.stage("loading PyTorch"):
        try:
            from freeprompt.export.exporter import ExportSettings, export_checkpoint
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            raise ExportError(
                f"export needs {error.name}, which is not installed: pip install 'freeprompt[export]'"
            ) from error
    settings = ExportSettings(
        arguments.precision,
        arguments.opset,
        arguments.graphs,
        tuple(arguments.float32),
        arguments.spacing,
        arguments.variant,
    )
    with stages.stage("export"), stages.ticking():
        bundle = export_checkpoint(arguments.checkpoint, arguments.output, settings, arguments.overwrite, stages.line)
    size = sum(file.bytes for file in bundle.manifest.files)
    stages.report(f"{arguments.output}: {len(bundle.manifest.graphs)} graphs, {size / 1e6:.1f} MB")
