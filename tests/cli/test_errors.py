"""Wrong arguments, pictures and outputs: one line, an exit code, nothing left behind."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.runner import assert_fails, call, finish, names, picture, start

Capture = pytest.CaptureFixture[str]
# Far more than a test waits: an error must come before anything of length is computed.
ENDLESS = ("--steps", 1000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that holds in.png alone."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["edit"], "IMAGE"),
        (["edit", "in.png"], "PROMPT"),
        (["synthesize", "a cat"], "TARGET"),
        (["edit", "in.png", "a cat", "--colour", "red"], "--colour"),
        (["edit", "in.png", "a cat", "--step", "3"], "--step"),
        (["edit", "in.png", "a cat", "--steps", "many"], "many"),
        (["edit", "in.png", "a cat", "--steps", "1.5"], "1.5"),
        (["edit", "in.png", "a cat", "--threads", "0"], "--threads"),
        (["edit", "in.png", "a cat", "--size", "64"], "WIDTHxHEIGHT"),
        (["edit", "in.png", "a cat", "--size", "9" * 5000 + "x1"], "WIDTHxHEIGHT"),
        (["edit", "in.png", "a cat", "--fit", "fold"], "fold"),
        (["edit", "in.png", "a cat", "--guidance", "a\nlot"], "lot"),
        (["edit", "in.png", "a cat", "-o", "out.gif"], "out.gif"),
        (["edit", "in.png", "a cat", "-o", "out"], ".png"),
        (["edit", "in.png", "a cat", "-o", "in.png"], "is an input"),
        (["edit", "in.png", "a cat", "-o", "../{folder}/in.png"], "is an input"),
        (["edit", "in.png", "a cat", "-o", "x.png", "--side-by-side", "x.png"], "named twice"),
        (["edit", "in.png", "a cat", "--save-latents", "l.png"], ".npy"),
        (["invert", "in.png", "-o", "l.txt"], ".npy"),
        (["export", "x"], "--output"),
        (["export", "x", "-o", "b", "--precision", "int8"], "int8"),
        (["export", "x", "-o", "b", "--graphs", "fast"], "fast"),
        (["export", "x", "-o", "b", "--profile", "memory"], "--graphs memory or --graphs latency"),
        (["export", "x", "-o", "b", "--profile"], "--graphs memory or --graphs latency"),
        (["build", "demo", "--engines", "latency"], "latency"),
        (["build", "demo", "--profile", "latency"], "--engines each (was latency)"),
        (["build", "demo", "--profile=memory"], "--engines shared (was memory)"),
        (["build", "demo", "--backend", "cuda", "--engines", "each"], "--engines means nothing to --backend cuda"),
    ],
)
def test_wrong_use_is_told_before_a_bundle_is_opened(
    folder: Path, arguments: list[str], word: str, capsys: Capture
) -> None:
    filled = [argument.format(folder=folder.name) for argument in arguments]
    assert_fails(call(capsys, *filled), 2, word)
    assert names(folder) == ["in.png"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--steps", "0"], "1 to 1000"),
        (["--steps", "-3"], "-3"),
        (["--steps", "1001"], "1001"),
        (["--replace-fraction", "-0.1"], "-0.1"),
        (["--replace-fraction", "1.01"], "1.01"),
        (["--replace-fraction", "nan"], "nan"),
        (["--replace-layers", "5"], "layers 1 to 4"),
        (["--replace-layers", "0"], "unknown layer"),
        (["--replace-layers", "level:7"], "levels are [0, 1]"),
        (["--replace-layers", "upper"], "upper"),
        (["--replace-layers", ""], "unknown layers"),
        (["--guidance", "nan"], "nan"),
        (["--guidance", "inf"], "inf"),
        (["--guidance=-inf"], "-inf"),
        (["--backend", "abacus"], "abacus"),
        (["--size", "60x64"], "multiples of 8"),
        (["--size", "0x64"], "multiples of 8"),
        (["--size", "640000x64"], "64 times"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_values_that_the_model_does_not_take(
    folder: Path, tiny_bundle: Path, options: list[str], word: str, plan: list[str], capsys: Capture
) -> None:
    steps = [] if "--steps" in options else ENDLESS
    outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_bundle, *steps, *options, *plan)
    assert_fails(outcome, 2, word)
    assert names(folder) == ["in.png"]


def test_synthesize_and_invert_check_their_values(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    common = ("--bundle", tiny_bundle)
    synthesize = ("synthesize", "a cat", "a dog", *common)
    assert_fails(call(capsys, *synthesize, "--seed", -1), 2, "seed")
    assert_fails(call(capsys, *synthesize, "--replace-fraction", 2), 2, "--replace-fraction")
    assert_fails(call(capsys, *synthesize, "--size", "9x9"), 2, "multiples of 8")
    assert_fails(call(capsys, "invert", "in.png", *common, "--steps", 0), 2, "1 to 1000")
    assert names(folder) == ["in.png"]


def test_backend_that_is_not_installed(
    folder: Path, tiny_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_bundle, "--backend", "cuda")
    assert_fails(outcome, 1, "cuda", "onnxruntime-gpu")
    assert names(folder) == ["in.png"]


def _png(width: int, height: int) -> bytes:
    """A PNG that claims this size and ends after its first pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no image"),
        (b"", "cannot be read"),
        (b"not a picture", "cannot be read"),
        (_png(0, 10), "bad.png"),
        (_png(10_000, 10_000), "10000x10000"),
        (_png(100_000, 100_000), "pixels"),
        (_png(64, 64), "bad.png"),
        (b"P6\n64 64\n255\n" + b"x" * 100, "bad.png"),
    ],
    ids=["absent", "empty", "text", "no width", "large", "enormous", "no pixels", "cut"],
)
@pytest.mark.parametrize("command", [["edit", "bad.png", "a cat"], ["invert", "bad.png"]])
def test_pictures_that_cannot_be_used(
    folder: Path, tiny_bundle: Path, content: bytes | None, word: str, command: list[str], capsys: Capture
) -> None:
    expected = ["in.png"]
    if content is not None:
        (folder / "bad.png").write_bytes(content)
        expected = ["bad.png", "in.png"]
    assert_fails(call(capsys, *command, "--bundle", tiny_bundle, *ENDLESS), 1, word)
    assert names(folder) == expected


def test_a_folder_is_no_picture(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    (folder / "dir.png").mkdir()
    assert_fails(call(capsys, "edit", "dir.png", "a cat", "--bundle", tiny_bundle, *ENDLESS), 1, "dir.png is a folder")


def test_a_folder_that_is_not_there_is_not_made(folder: Path, capsys: Capture) -> None:
    assert_fails(call(capsys, "edit", "in.png", "a cat", "-o", "new/out.png"), 1, "there is no folder new")
    assert names(folder) == ["in.png"]


@pytest.mark.parametrize("place", ["absent/out", "in.png/out", "/proc/out", "/dev/null/out"])
@pytest.mark.parametrize("kind", ["-o", "--side-by-side", "--save-latents"])
def test_outputs_that_cannot_be_written_are_told_before_the_bundle_is_opened(
    folder: Path, place: str, kind: str, capsys: Capture
) -> None:
    output = place + (".npy" if kind == "--save-latents" else ".png")
    outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", "absent", kind, output)
    assert_fails(outcome, 1, f"cannot write {output}")
    assert names(folder) == ["in.png"]


def test_a_folder_in_the_place_of_an_output(folder: Path, capsys: Capture) -> None:
    (folder / "out.png").mkdir()
    outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", "absent", "-o", "out.png")
    assert_fails(outcome, 1, "out.png", "not a file")
    assert names(folder) == ["in.png", "out.png"]


@pytest.mark.parametrize("kind", ["-o", "--save-latents"])
def test_a_disk_that_fills_while_writing_leaves_nothing(
    folder: Path, tiny_bundle: Path, kind: str, capsys: Capture
) -> None:
    """A limit on the size of files stands for the full disk: the same call fails in the same place."""
    output = "out.npy" if kind == "--save-latents" else "out.png"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_bundle, "--steps", 1, "-q", kind, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_fails(outcome, 1, f"cannot write {output}")
    assert names(folder) == ["in.png"]


def test_standard_output_that_is_full(tiny_bundle: Path) -> None:
    for arguments in (["inspect", tiny_bundle], ["--help"]):
        with Path("/dev/full").open("w") as full:
            outcome = finish(start(*arguments, stdout=full))
        assert_fails(outcome, 1, "No space left")


@pytest.mark.parametrize("kind", ["full", "closed", "without a reader"])
def test_progress_that_cannot_be_written_does_not_fail_an_edit(folder: Path, tiny_bundle: Path, kind: str) -> None:
    command = [sys.executable, "-m", "freeprompt", "edit", "in.png", "a cat", "--bundle", str(tiny_bundle)]
    command += ["--steps", "3", "-o", "out.png"]
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full:
        stream = full if kind == "full" else writer
        if kind == "closed":
            command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "out.png: a cat")
    assert "step" not in done.stdout, "progress does not go to the standard output in its place"
    assert names(folder) == ["in.png", "out.png"]


def test_reader_that_stops_reading(tiny_bundle: Path) -> None:
    process = start("inspect", tiny_bundle)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (1, "")


def test_an_error_that_nobody_expected_is_one_line(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("one\ntwo\x1b[31m")

    monkeypatch.delenv("FREEPROMPT_DEBUG", raising=False)
    monkeypatch.setattr("freeprompt.editor.Editor.load", fail)
    outcome = call(capsys, "edit", "in.png", "a cat")
    assert outcome.code == 1
    expected = "freeprompt: error: unexpected ZeroDivisionError: one two\\x1b[31m -- please report this"
    assert outcome.err.startswith(expected)
    assert outcome.err.count("\n") == 1
    monkeypatch.setenv("FREEPROMPT_DEBUG", "1")
    outcome = call(capsys, "edit", "in.png", "a cat")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err


def test_results_of_the_same_name_are_replaced_whole(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    (folder / "out.png").write_bytes(b"old")
    outcome = call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_bundle, "--steps", 1, "-o", "out.png")
    assert outcome.code == 0, outcome.err
    with Image.open("out.png") as image:
        assert image.size == (64, 64)
