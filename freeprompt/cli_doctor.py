"""``freeprompt doctor``: what is installed, what would be used, what is missing."""

from __future__ import annotations

import argparse

from freeprompt import clioptions

DESCRIPTION = """\
Say which backends can be used here: installed packages, GPU and driver, what --backend auto takes
and why not the others, and which TensorRT engines and prepared CUDA graphs of BUNDLE fit this
machine. Changes nothing."""


def register(subparsers: clioptions.Subparsers) -> None:
    """Add the command."""
    parser = clioptions.add_command(subparsers, "doctor", run, "say what is installed, chosen and missing", DESCRIPTION)
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="also look at the engines of this bundle, or demo")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from freeprompt.engines.doctor import examine, report_to_lines

    # Presence is enough: hashing gigabytes is inspect's work.
    bundle = None if arguments.bundle is None else clioptions.open_bundle(arguments.bundle, verify=False)
    report = examine(bundle)
    if arguments.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        print("\n".join(report_to_lines(report)))
