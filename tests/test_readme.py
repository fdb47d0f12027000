"""What README.md shows works: its commands are parsed by the real parser, its Python runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freeprompt.cli import build_parser, main
from freeprompt.contract.errors import UsageError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str, text: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return [content for tag, content in BLOCK.findall(text) if tag == language]


def commands(text: str, program: str) -> Iterator[list[str]]:
    """Arguments of the calls of a program in ```bash blocks: continuations joined, prompts and comments removed."""
    for block in blocks("bash", text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == [program]:
                yield words[1:]


def readme() -> str:
    """Empty while there is none."""
    return README.read_text() if README.exists() else ""


def problem(arguments: list[str]) -> str | None:
    """Why the parser refuses a command, or None."""
    try:
        build_parser().parse_args(arguments)
    except UsageError as error:
        return f"freeprompt {shlex.join(arguments)}: {error}"
    except SystemExit:
        return None if arguments[-1] in ("--help", "--version") else "ended"
    return None


def test_every_command_is_one_that_the_parser_takes() -> None:
    text = readme()
    shown = list(commands(text, "freeprompt"))
    assert [message for arguments in shown if (message := problem(arguments))] == []
    if text:
        assert {"edit", "export", "inspect"} <= {arguments[0] for arguments in shown}


def test_every_make_target_exists() -> None:
    rules = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check"} <= rules
    for arguments in commands(readme(), "make"):
        targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
        assert set(targets) <= rules, f"README.md: make {shlex.join(arguments)}"


def test_every_picture_and_page_that_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", readme()) + re.findall(r"src=\"([^\"]+)\"", readme())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_its_picture_is_what_make_demo_makes(tmp_path: Path) -> None:
    options = re.findall(r"^DEMO_OPTIONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    examples = ROOT / "freeprompt" / "examples"
    image, prompt = min(examples.glob("*.png")), (examples / "prompt.txt").read_text().strip()
    outputs = ["-o", str(tmp_path / "edited.png"), "--side-by-side", str(tmp_path / "sheet.png"), "-q"]
    assert main(["edit", str(image), prompt, *options[0].split(), *outputs]) == 0
    with Image.open(tmp_path / "sheet.png") as made, Image.open(ROOT / "benchmarks/embedded/side-by-side.png") as shown:
        ours, theirs = np.asarray(made, int), np.asarray(shown.convert("RGB"), int)
    assert ours.shape == theirs.shape
    # Processors round differently, which moves a pixel by a level or two; another edit moves many by tens.
    assert np.abs(ours - theirs).mean() < 0.5


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = ROOT / "freeprompt" / "demo"
    examples = ROOT / "freeprompt" / "examples"
    monkeypatch.chdir(tmp_path)
    for block in blocks("python", readme()):
        code = compile(block, "README.md", "exec")
        if not (demo / "manifest.json").exists():
            continue
        # Pictures that it opens by a bare name stand for the user's own.
        for name in re.findall(r"\"([\w-]+\.(?:png|jpg))\"", block):
            (tmp_path / name).write_bytes(next(examples.glob("*.png")).read_bytes())
        exec(code, {"__name__": "readme"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nfreeprompt edit a.png 'x y' # why\n```\n", [["edit", "a.png", "x y"]]),
        ("```bash\n$ freeprompt inspect \\\n  demo\nls\n```\n", [["inspect", "demo"]]),
        ("```text\nfreeprompt paint\n```\n", []),
    ],
)
def test_reader_of_commands(text: str, expected: list[list[str]]) -> None:
    assert list(commands(text, "freeprompt")) == expected


def test_a_wrong_command_would_be_found() -> None:
    assert problem(["edit", "a.png", "x", "--steps", "3"]) is None
    assert problem(["edit", "a.png", "x", "--colour"]) is not None
