"""The command line: ``freeprompt COMMAND``.

A command is a module of ``freeprompt/cli/commands`` with ``register(subparsers)``, which adds a parser
and sets ``run`` on it: a function that takes the parsed arguments and raises FreePromptError when
it fails. It is found by its file name. Modules of commands import what is heavy inside ``run``:
``--help`` must not wait for NumPy and ONNX Runtime.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted by Ctrl-C (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises, nor prints a traceback unasked.

    Args:
        argv: the arguments; None: the program's own, and then the process belongs to this call.
    """
    # Every import is inside the handler of KeyboardInterrupt, since Ctrl-C may come at any of them.
    try:
        from freeprompt.cli import guard

        return guard.guarded(lambda: _run(argv), owns_process=argv is None)
    except KeyboardInterrupt:
        print("freeprompt: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. It raises UsageError where argparse would exit."""
    import argparse
    import importlib
    import pkgutil

    import freeprompt
    from freeprompt.cli import commands
    from freeprompt.contract.errors import UsageError

    class Parser(argparse.ArgumentParser):
        def __init__(self, **settings: object) -> None:
            # Abbreviations would break users' scripts whenever an option is added.
            super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

        def _print_message(self, message: str, file: Any = None) -> None:
            # argparse would pass over a full disk or a closed pipe in silence.
            print(message, end="", file=file)

        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message} (see {self.prog} --help)")

    parser = Parser(
        prog="freeprompt",
        description="Edit images by text: Free-Prompt-Editing through ONNX Runtime and TensorRT, without PyTorch.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted. FREEPROMPT_DEBUG=1 shows tracebacks.",
    )
    parser.add_argument("--version", action="version", version=f"freeprompt {freeprompt.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(module.name).register(subparsers)
    return parser
