"""What commands write: never over a file whose name nobody typed, as good as the format allows, to be looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import freeprompt
from freeprompt.cli.writing import side_by_side, write_image
from tests.cli.runner import assert_fails, call, names, picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that holds in.png alone."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "taken"),
    [
        (["edit", "in.png", "a cat"], "in-edited.png"),
        (["edit", "in.png", "a cat", "a dog"], "in-edited-2.png"),
        (["synthesize", "a cat", "a dog"], "synthesized.png"),
        (["synthesize", "a cat", "a dog"], "synthesized-source.png"),
        (["invert", "in.png"], "in-trajectory.npy"),
    ],
)
def test_default_names_replace_nothing_unless_forced(
    folder: Path, tiny_bundle: Path, command: list[str], taken: str, capsys: Capture
) -> None:
    (folder / taken).write_bytes(b"old")
    assert_fails(call(capsys, *command, "--bundle", "absent"), 1, f"{taken} exists already", "-o", "--force")
    assert (folder / taken).read_bytes() == b"old"
    assert names(folder) == sorted(["in.png", taken])
    outcome = call(capsys, *command, "--bundle", tiny_bundle, "--steps", 1, "--force", "-q")
    assert outcome.code == 0, outcome.err
    assert (folder / taken).stat().st_size > 100


def test_a_link_to_nowhere_is_not_replaced_either(folder: Path, capsys: Capture) -> None:
    (folder / "in-edited.png").symlink_to("gone.png")
    assert_fails(call(capsys, "edit", "in.png", "a cat", "--bundle", "absent"), 1, "exists already")
    assert (folder / "in-edited.png").is_symlink()


def test_a_plan_writes_nothing_and_so_replaces_nothing(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    (folder / "in-edited.png").write_bytes(b"old")
    assert call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_bundle, "--plan").code == 0


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_formats_that_can_keep_every_pixel_do(tmp_path: Path, suffix: str) -> None:
    write_image(noise(), tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(noise()))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_lower_quality_is_a_smaller_file(tmp_path: Path, suffix: str) -> None:
    sizes = []
    for quality in (None, 60, 10):
        write_image(noise(), tmp_path / f"a{suffix}", quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_quality_at_the_command_line(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    edit = ("edit", "in.png", "a cat", "--bundle", tiny_bundle, "--steps", 1, "-q")
    for quality in ("0", "101", "good", "1.5"):
        assert_fails(call(capsys, *edit, "--quality", quality, "-o", "a.jpg"), 2, "from 1 to 100")
    assert_fails(call(capsys, *edit, "--quality", 50), 2, "--quality is for", ".webp")
    for name, options in (("fine.webp", ()), ("coarse.webp", ("--quality", 20))):
        assert call(capsys, *edit, "-o", name, *options).code == 0
    assert (folder / "coarse.webp").stat().st_size < (folder / "fine.webp").stat().st_size
    assert call(capsys, *edit, "-o", "a.png").code == 0
    with Image.open("fine.webp") as ours, Image.open("a.png") as exact:
        np.testing.assert_array_equal(np.asarray(ours.convert("RGB")), np.asarray(exact))


@pytest.mark.parametrize(
    ("size", "factor"),
    [((64, 64), 4), ((48, 100), 2), ((128, 100), 2), ((129, 64), 1), ((512, 512), 1), ((300, 20), 1)],
)
def test_small_pictures_are_magnified_on_a_sheet(size: tuple[int, int], factor: int) -> None:
    first = Image.fromarray(np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8))
    second = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sheet = np.asarray(side_by_side([first, second]))
    width, gap = size[0] * factor, 8 * factor
    assert sheet.shape == (size[1] * factor, 2 * width + gap, 3)
    for left, image in ((0, first), (width + gap, second)):
        part = sheet[:, left : left + width]
        np.testing.assert_array_equal(part, np.asarray(image).repeat(factor, 0).repeat(factor, 1))
    assert (sheet[:, width : width + gap] == 255).all()


def test_the_bundle_that_ran_is_named(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    common = ("--bundle", tiny_bundle, "--steps", 1)
    for command in (["edit", "in.png", "a cat"], ["synthesize", "a cat", "a dog"], ["invert", "in.png"]):
        outcome = call(capsys, *command, *common)
        assert outcome.code == 0, outcome.err
        assert f"bundle: {tiny_bundle} (model checkpoint-" in outcome.out.splitlines()[-2]
        assert "shapes" not in outcome.out


def test_the_demo_says_what_it_knows(folder: Path, capsys: Capture) -> None:
    """Whoever forgets --bundle gets a picture, and must learn whose it is."""
    demo = Path(freeprompt.__file__).parent / "demo"
    for options in ([], ["--bundle", "demo"], ["--bundle", demo]):
        outcome = call(capsys, "edit", "in.png", "a red circle", "--steps", 1, "--force", *options)
        assert outcome.code == 0, outcome.err
        assert "bundle: demo, the built-in model: it knows coloured shapes only" in outcome.out
        assert "freeprompt export" in outcome.out
    outcome = call(capsys, "edit", "in.png", "a red circle", "--steps", 1, "--force", "-q")
    assert (outcome.out, outcome.err) == ("", "")


def test_a_checkpoint_in_the_place_of_a_bundle(folder: Path, tiny_checkpoint: Path, capsys: Capture) -> None:
    words = ("diffusers checkpoint", "export it first", f"freeprompt export {tiny_checkpoint} -o ")
    assert_fails(call(capsys, "edit", "in.png", "a cat", "--bundle", tiny_checkpoint), 1, *words)
    assert_fails(call(capsys, "inspect", tiny_checkpoint), 1, *words)


def test_a_bundle_beside_a_checkpoints_file_is_a_bundle(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    shutil.copytree(tiny_bundle, folder / "both")
    (folder / "both" / "model_index.json").write_text("{}")
    assert call(capsys, "inspect", "both").code == 0


def test_an_approximate_edit_says_so(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    edit = ("edit", "in.png", "a cat", "--bundle", tiny_bundle, "--steps", 5)
    for options in ((), ("--plan",)):
        assert "approximate" in call(capsys, *edit, "--record", "inversion", "--force", *options).out
        for record in ("none", "exact"):
            assert "approximate" not in call(capsys, *edit, "--record", record, "--force", *options).out
    # Nothing is replaced, so that nothing recorded is used.
    exact = call(capsys, *edit, "--record", "inversion", "--plan", "--replace-fraction", 0).out
    assert "approximate" not in exact
