"""Prompts on the command line: slips that are told, and messages in the words of the options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freeprompt.cli.message import in_options
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.text import escaped, one_line
from freeprompt.runtime.inputs.prompt import load_tokenizer, prompts_to_ids
from tests.cli.runner import assert_fails, call, names, picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that holds in.png alone."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "a red cat", "in.png"], ("no file 'a red cat'", "'in.png' is one")),
        (["edit", "in.png", "a cat", "in.png"], ("'in.png' is the name of a file", "--many")),
        (["edit", "in.png", "a", "red", "cat"], ("3 prompts of one word each", "'a red cat'", "--many")),
        (["edit", "in.png", *(f"cat number {n}" for n in range(9))], ("9 prompts, more than 8", "--many")),
        (["edit", "in.png", ""], ("the prompt is empty", "variable", "single space")),
        (["edit", "in.png", "a cat", "", "--many"], ("prompt 2 of 2 is empty",)),
        (["edit", "in.png", "", "--plan"], ("the prompt is empty",)),
        (["synthesize", "a", "red", "cat"], ("3 prompts of one word each",)),
        (["synthesize", "", "a cat"], ("prompt 1 of 2 is empty",)),
        (["synthesize", "a cat", "in.png"], ("'in.png' is the name of a file",)),
    ],
)
def test_slips_are_told_before_a_bundle_is_opened(
    folder: Path, arguments: list[str], words: tuple[str, ...], capsys: Capture
) -> None:
    assert_fails(call(capsys, *arguments, "--bundle", "absent"), 2, *words)
    assert names(folder) == ["in.png"]


@pytest.mark.parametrize(
    "prompts",
    [
        ["cat", "dog"],
        ["a red", "cat", "dog"],
        ["x" * 5000],
        [f"cat number {n}" for n in range(8)],
        ["a", "red", "cat", "--many"],
        ["in.png", "--many"],
        [*(f"cat number {n}" for n in range(20)), "--many"],
        [" "],
    ],
    ids=lambda prompts: f"{len(prompts)} {prompts[0][:9]}",
)
def test_prompts_as_they_may_be(folder: Path, tiny_bundle: Path, prompts: list[str], capsys: Capture) -> None:
    outcome = call(capsys, "edit", "in.png", *prompts, "--bundle", tiny_bundle, "--plan", "--steps", 5)
    assert outcome.code == 0, outcome.err
    assert "total:" in outcome.out


def test_a_single_space_is_the_empty_prompt(tiny_bundle: Path) -> None:
    """As the message about an empty prompt says."""
    bundle = Bundle.open(tiny_bundle, verify=False)
    tokenizer = load_tokenizer(bundle.read(bundle.manifest.tokenizer))
    empty, space = prompts_to_ids(tokenizer, bundle.manifest.text, ("", " "))
    np.testing.assert_array_equal(empty, space)


@pytest.mark.parametrize("command", [["edit", "in.png", "a cat"], ["synthesize", "a dog", "a cat"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replace-fraction", 2], ("--replace-fraction must be from 0 to 1", "2.0")),
        (["--guidance", -1], ("--guidance must be 0 or more", "goes into --negative-prompt")),
        (["--steps", 0], ("--steps must be from 1",)),
        (["--size", "9x9"], ("--size must be",)),
    ],
)
def test_errors_name_options(
    folder: Path, tiny_bundle: Path, command: list[str], options: list[object], words: tuple[str, ...], capsys: Capture
) -> None:
    outcome = call(capsys, *command, "--bundle", tiny_bundle, *options)
    assert_fails(outcome, 2, *words)
    assert "replace_fraction" not in outcome.err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("replace_fraction must be from 0 to 1", "--replace-fraction must be from 0 to 1"),
        (
            "invert with record='inversion', or raise record_bytes",
            "invert with --record inversion, or raise --record-megabytes",
        ),
        ("device_record_bytes must be 0", "--device-record-megabytes must be 0"),
        ("fit='crop' keeps 33 %; fit='pad' keeps all", "--fit crop keeps 33 %; --fit pad keeps all"),
        ("seed must be 0; the seed must be 0", "--seed must be 0; the seed must be 0"),
        ("the prompt 'a replace_fraction' is", "the prompt 'a replace_fraction' is"),
        ("the encoder's replace_layers' width", "the encoder's --replace-layers' width"),
        ("no image at replace_fraction.png", "no image at replace_fraction.png"),
        ("no image at dir/max_rows", "no image at dir/max_rows"),
        ("set max_rows.", "set --max-rows."),
    ],
)
def test_arguments_of_the_api_by_their_options(message: str, expected: str) -> None:
    assert in_options(message) == expected


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert escaped("a\x1b[31m\tb\u202e\ud800 \u00e9\u732b") == "a\\x1b[31m\\tb\\u202e\\ud800 \u00e9\u732b"
    assert one_line("a\n  b\x07") == "a b\\x07"


def test_prompts_and_paths_are_escaped_in_what_is_printed(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    prompt, path = "a cat\x1b]0;title\x07\nb", "o\x1b[2J.png"
    outcome = call(capsys, "edit", "in.png", prompt, "--bundle", tiny_bundle, "--steps", 1, "-o", path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "o\\x1b[2J.png: a cat\\x1b]0;title\\x07\\nb"
    assert "\x1b" not in outcome.out + outcome.err


def test_a_prompt_that_is_cut_or_cannot_be_encoded_is_told_before_the_inversion(
    folder: Path, tiny_bundle: Path, capsys: Capture
) -> None:
    steps = ("--bundle", tiny_bundle, "--steps", 2)
    outcome = call(capsys, "edit", "in.png", "cat " * 100, *steps)
    assert outcome.code == 0, outcome.err
    first, second = outcome.err.splitlines()[:2]
    assert first.startswith("freeprompt: warning: the prompt has 102 tokens")
    assert second == "inversion: step 1/2"
    assert outcome.err.count("warning") == 1
    outcome = call(capsys, "edit", "in.png", "a \ud800", *steps, "-o", "x.png")
    assert_fails(outcome, 2, "cannot be encoded")
    outcome = call(capsys, "synthesize", "a cat", "cat " * 100, *steps)
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("freeprompt: warning: the prompt has 102 tokens")
    assert outcome.err.count("warning") == 1


def test_a_negative_prompt_without_guidance_and_a_large_crop_are_told_once(
    folder: Path, tiny_bundle: Path, capsys: Capture
) -> None:
    picture(folder / "wide.png", 300, 100)
    options = ("--guidance", 0, "--negative-prompt", "dog", "--steps", 1, "--quiet")
    outcome = call(capsys, "edit", "wide.png", "a cat", "--bundle", tiny_bundle, *options)
    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        "freeprompt: warning: --negative-prompt says nothing at guidance 0: up to 1, guidance is off",
        "freeprompt: warning: --fit crop keeps 33 % of the picture (300x100 to 64x64); --fit pad keeps all of it",
    ]


def test_a_picture_that_is_not_there_is_told_before_a_bundle_is_opened(folder: Path, capsys: Capture) -> None:
    for command in (["edit", "gone.png", "a cat"], ["invert", "gone.png"], ["shell", "gone.png"]):
        assert_fails(call(capsys, *command, "--bundle", "absent"), 1, "no image at gone.png")


@pytest.mark.parametrize("option", [["--steps", "50"], ["--fit", "crop"], ["--size", "64x64"]])
@pytest.mark.parametrize(
    "command", [["edit", "a.inversion", "a cat"], ["edit", "a.inversion", "a cat", "--plan"], ["shell", "a.inversion"]]
)
def test_options_that_shape_an_inversion_are_refused_with_a_saved_one(
    folder: Path, option: list[str], command: list[str], capsys: Capture
) -> None:
    """Also where they say what the default is."""
    assert_fails(call(capsys, *command, *option, "--bundle", "absent"), 2, f"{option[0]} shapes an inversion", "saved")
