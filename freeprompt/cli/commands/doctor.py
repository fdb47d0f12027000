"""``freeprompt doctor``: what is installed, what would be used, what is missing."""

from __future__ import annotations

import argparse

from freeprompt.cli import options
from freeprompt.cli.json_text import value_to_json
from freeprompt.contract.text import escaped

DESCRIPTION = """\
Say which backends can be used here: installed packages, ONNX Runtime's execution providers and
plug-ins with their devices, GPU and driver, what --backend auto takes and why not the others. Of
BUNDLE: whether it is whole (every file is read), what it is, which TensorRT engines and forms for
CUDA of it fit this machine, and what memory its weights take. Changes nothing. The exit code is 1 if
BUNDLE cannot be used."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "doctor", run, "say what is installed, chosen and missing", DESCRIPTION)
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="also look at this bundle, or demo")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from freeprompt.contract.errors import BundleError
    from freeprompt.engines.bundle_report import BundleReport
    from freeprompt.engines.doctor import examine, report_to_lines

    bundle, failure, damaged = None, None, None
    if arguments.bundle is not None:
        try:
            bundle = options.open_bundle(arguments.bundle)
        except BundleError as error:
            failure, damaged = error, BundleReport(arguments.bundle, str(error))
    report = examine(bundle, damaged)
    if arguments.json:
        print(value_to_json(report))
    else:
        print("\n".join(escaped(line) for line in report_to_lines(report)))
    if failure is not None:
        raise failure
