"""``freeprompt bench``: how long edits take here, and whether that has changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeprompt.cli import options, writing
from freeprompt.cli.guard import check_interrupted, say_error
from freeprompt.cli.stages import Stages

if TYPE_CHECKING:
    from freeprompt.editor import Editor

DESCRIPTION = """\
Measure edits of a made-up picture: load the bundle, warm up once, then N times invert, edit (the first
edit), edit again (a further edit), and edit by K prompts in one call. Prints percentiles and spread of each
stage, rows of the U-Net executed (counted where graphs are run) against predicted, and peak memory.

"first edit" is from picture to picture, inversion included; "further edit" is of the same inversion;
"row" is the time of one row of a further edit. --compare calls a figure slower or faster if a Mann-Whitney
test over all figures has a false-alarm rate of at most 1 %, and the medians differ by more than 3 % and by
more than twice the drift within either run. That takes 7 edits in both runs at least; 10 find a change of
10 % nearly always where runs are steady."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "bench", run, "measure how long edits take", DESCRIPTION)
    parser.add_argument(
        "--edits", type=options.positive_integer, default=10, metavar="N", help="repetitions (default: 10)"
    )
    parser.add_argument(
        "--prompts",
        type=options.positive_integer,
        default=4,
        metavar="K",
        help="prompts of the call with several (default: 4; 1: leave it out)",
    )
    parser.add_argument(
        "--record",
        choices=("exact", "none", "inversion"),
        help="how the source's hidden states are come by (default: exact where the bundle allows it, else none)",
    )
    options.add_edit_options(parser, fraction=0.8)
    options.add_size_options(parser)
    options.add_model_options(parser)
    parser.add_argument(
        "--json", metavar="F.json", type=Path, help="write every sample, settings, machine and versions"
    )
    parser.add_argument("--plot", metavar="F.png", type=Path, help="draw samples and one edit's timeline (matplotlib)")
    parser.add_argument("--compare", metavar="OLD.json", type=Path, help="compare with a file that --json wrote")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from freeprompt.bench.report import comparison_to_text, read_report, report_to_text, too_few, write_report
    from freeprompt.contract.errors import UsageError

    writing.check_outputs([arguments.plot] if arguments.plot else [])
    if arguments.json:
        if arguments.json.suffix.lower() != ".json":
            raise UsageError(f"the output {arguments.json} must end in .json")
        writing.check_folder_output(arguments.json)
    old = read_report(arguments.compare) if arguments.compare else None
    if old is not None and (problem := too_few(old, arguments.edits)):
        say_error(f"warning: {problem}")

    from freeprompt.bench import measure

    stages = Stages(arguments.quiet)
    edit: dict[str, Any] = {
        "guidance": arguments.guidance,
        "replace_fraction": arguments.replace_fraction,
        "negative_prompt": arguments.negative_prompt,
        "replace_layers": arguments.replace_layers,
    }

    def load() -> Editor:
        return options.load_editor(arguments)

    # A wrong setting is told now.
    editor = load()
    editor.plan("", steps=arguments.steps, size=arguments.size, **edit)
    record = editor.record_mode(arguments.record or "auto", **edit)
    del editor
    settings = measure.BenchSettings(arguments.edits, arguments.steps, arguments.prompts, record, arguments.size, edit)
    report = measure.run_bench(load, settings, arguments.threads, stages.line, check_interrupted)
    print(report_to_text(report))
    if arguments.json:
        write_report(report, arguments.json)
        print(arguments.json)
    if arguments.plot:
        from freeprompt.bench.plot import plot_report

        plot_report(report, arguments.plot)
        print(arguments.plot)
    if old is not None:
        print(comparison_to_text(old, report))
