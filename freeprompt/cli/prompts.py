"""Prompts at the command line: what a shell made of an unquoted sentence, pattern or variable is told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from freeprompt.contract.errors import UsageError

# Two words may be two prompts ("cat" "dog"); three are "a red circle" without its quotes.
LEAST_WORDS = 3
# As many as fit into an evaluation or two; each costs a whole edit, and a pattern (*) gives any number.
MOST_PROMPTS = 8

RULES = f"""\
A prompt is one argument: put quotes around it. Refused are an empty prompt (for the reconstruction that
it gives, write a single space), and, unless --many is given, what looks like a forgotten quote: more than
{MOST_PROMPTS} prompts, {LEAST_WORDS} or more that are all single words, and one that is the name of a file."""


def add_many_option(parser: argparse.ArgumentParser) -> None:
    """The option that takes prompts as they are."""
    parser.add_argument(
        "--many", action="store_true", help="take every prompt as it is, however many there are and whatever they name"
    )


def check_prompts(prompts: Sequence[str], many: bool, image: Path | None = None) -> None:
    """Refuse what looks like a slip.

    Args:
        prompts: as they were given.
        many: ``--many`` was given.
        image: what stands before them, where that is a file's name.

    Raises:
        UsageError: see ``RULES``.
    """
    if "" in prompts:
        place = prompts.index("") + 1
        which = f"prompt {place} of {len(prompts)} is" if len(prompts) > 1 else "the prompt is"
        raise UsageError(f"{which} empty: is a variable of the shell unset? For the empty prompt write a single space")
    if many:
        return
    files = [prompt for prompt in prompts if _is_file(Path(prompt))]
    if files and image is not None and not _is_file(image):
        raise UsageError(f"there is no file {str(image)!r}, but the prompt {files[0]!r} is one: IMAGE is first")
    if files:
        raise UsageError(
            f"the prompt {files[0]!r} is the name of a file: one picture is edited at a time, and a prompt is put in "
            "quotes; --many takes it as a prompt"
        )
    if len(prompts) >= LEAST_WORDS and all(len(prompt.split()) == 1 for prompt in prompts):
        raise UsageError(
            f"{len(prompts)} prompts of one word each: put quotes around a prompt, as in "
            f"'{' '.join(prompts)[:60]}'; --many takes each word as a prompt"
        )
    if len(prompts) > MOST_PROMPTS:
        raise UsageError(f"{len(prompts)} prompts, more than {MOST_PROMPTS}: is a quote missing? --many takes them all")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a sentence may be too long for a name
        return False
