"""The commands where all is well: what they write, print and return."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import freeprompt
from freeprompt import Editor
from freeprompt.cli import build_parser, commands
from freeprompt.contract.manifest_file import manifest_from_json
from freeprompt.runtime.inputs.image import fit_image, open_image
from tests.cli.runner import call, names, picture

Capture = pytest.CaptureFixture[str]
COMMANDS = ("edit", "export", "inspect", "invert", "shell", "synthesize")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version(capsys: Capture) -> None:
    outcome = call(capsys, "--version")
    assert (outcome.code, outcome.out) == (0, f"freeprompt {freeprompt.__version__}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_tells_defaults_and_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from freeprompt.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'msgspec', 'freeprompt.editor'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith("usage: freeprompt")
    if command in ("edit", "invert", "synthesize"):
        assert "Without -o" in done.stdout
        assert "--force" in done.stdout
    if command in ("edit", "synthesize"):
        for rule in (
            "more than\n8 prompts",
            "3 or more that are all single words",
            "--many",
            "--quality",
            "single space",
        ):
            assert rule in done.stdout
        assert "up to 1 it is off" in " ".join(done.stdout.split())
    if not command:
        assert all(name in done.stdout for name in COMMANDS)


def test_edit_of_one_prompt_is_what_the_api_gives(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    image = picture(folder / "in.png", 100, 80)
    outcome = call(
        capsys, "edit", image, "a red cat", "--bundle", tiny_bundle, "--steps", 3, "--threads", 1,
        "--guidance", 3, "--replace-fraction", 0.5, "--replace-layers", "1,3-4",
        "--negative-prompt", "dog", "--save-latents", "l.npy", "--side-by-side", "both.png",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert names(folder) == ["both.png", "in-edited.png", "in.png", "l.npy"]
    assert "inversion: step 3/3" in outcome.err
    assert "edit: step 3/3" in outcome.err
    assert "in-edited.png: a red cat\n" in outcome.out
    for stage in ("loading", "inversion", "editing", "decoding", "in all"):
        assert stage in outcome.out.splitlines()[-1]

    editor = Editor.load(tiny_bundle, "cpu", threads=1)
    fitted = fit_image(open_image(image), 64, 64, "crop")
    expected = editor.edit_latents(
        editor.invert(fitted, 3),
        ["a red cat"],
        guidance=3.0,
        replace_fraction=0.5,
        replace_layers=(1, 3, 4),
        negative_prompt="dog",
    )
    latents = np.load("l.npy")
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents, expected)
    result = np.asarray(editor.decode(expected)[0])
    np.testing.assert_array_equal(np.asarray(Image.open("in-edited.png")), result)
    both = np.asarray(Image.open("both.png"))
    # Four times as large, to be seen.
    np.testing.assert_array_equal(both[::4, :256:4], np.asarray(fitted))
    np.testing.assert_array_equal(both[::4, -256::4], result)


def test_edit_numbers_the_results_of_several_prompts(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    image = picture(folder / "in.png")
    outcome = call(
        capsys, "edit", image, "a cat", "a dog", "--bundle", tiny_bundle, "--steps", 1,
        "-o", folder / "out.jpg", "--size", "32X64", "--fit", "pad", "-q",
    )  # fmt: skip
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert names(folder) == ["in.png", "out-1.jpg", "out-2.jpg"]
    first, second = (np.asarray(Image.open(f"out-{n}.jpg")) for n in (1, 2))
    assert first.shape == (64, 32, 3)
    assert (first != second).any()


def test_plan_of_the_default_edit_has_190_rows_and_needs_no_image(
    folder: Path, tiny_bundle: Path, capsys: Capture
) -> None:
    outcome = call(capsys, "edit", "absent.png", "a cat", "--bundle", tiny_bundle, "--plan")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "total: 190 rows"
    assert names(folder) == []


def test_synthesize_writes_source_and_targets(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    arguments = ("synthesize", "a cat", "a dog", "--bundle", tiny_bundle, "--steps", 2)
    outcome = call(capsys, *arguments, "--seed", 5, "--side-by-side", "all.png")
    assert outcome.code == 0, outcome.err
    assert names(folder) == ["all.png", "synthesized-source.png", "synthesized.png"]
    images = Editor.load(tiny_bundle, "cpu").synthesize("a cat", "a dog", seed=5, steps=2)
    for name, image in zip(("synthesized-source.png", "synthesized.png"), images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(name)), np.asarray(image))


def test_invert_writes_the_trajectory(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    image = picture(folder / "in.png")
    outcome = call(capsys, "invert", image, "--bundle", tiny_bundle, "--steps", 2)
    assert outcome.code == 0, outcome.err
    trajectory = np.load("in-trajectory.npy")
    assert (trajectory.shape, trajectory.dtype) == ((3, 1, 4, 16, 16), np.float32)
    expected = Editor.load(tiny_bundle, "cpu").invert(image, 2).trajectory
    np.testing.assert_array_equal(trajectory, expected)


def test_inspect_prints_model_graphs_layers_parity_and_sizes(tiny_bundle: Path, capsys: Capture) -> None:
    outcome = call(capsys, "inspect", tiny_bundle, "--all")
    assert (outcome.code, outcome.err) == (0, "")
    manifest = manifest_from_json((tiny_bundle / "manifest.json").read_bytes())
    for name, graph in manifest.graphs.items():
        assert f"graph {name} (" in outcome.out
        for spec in (*graph.inputs, *graph.outputs):
            assert str(spec) in outcome.out
        assert f"{graph.parity[0].relative_l2:.1e} relative L2" in outcome.out
    rows = [line.split() for line in outcome.out.splitlines()]
    for layer in manifest.layers:
        numbers = [layer.number, layer.level, layer.tokens, layer.heads, layer.channels]
        assert [*map(str, numbers), "yes", "yes", layer.name] in rows
    for file in manifest.files:
        assert any(row[:1] == [file.path] and row[-1] == file.sha256[:16] for row in rows)
    assert "float32, opset 18" in outcome.out


def test_inspect_as_json_is_the_whole_manifest(tiny_bundle: Path, capsys: Capture) -> None:
    outcome = call(capsys, "inspect", tiny_bundle, "--json")
    value = json.loads(outcome.out)
    assert value["manifest"] == json.loads((tiny_bundle / "manifest.json").read_text())
    assert value["bytes"] == sum(file["bytes"] for file in value["manifest"]["files"])


def test_a_long_prompt_is_one_line_of_warning(folder: Path, tiny_bundle: Path, capsys: Capture) -> None:
    image = picture(folder / "in.png")
    prompt = "cat " * 100
    outcome = call(capsys, "edit", image, prompt, "--bundle", tiny_bundle, "--steps", 1, "-q")
    assert outcome.code == 0
    assert outcome.err.startswith("freeprompt: warning: the prompt has 102 tokens")
    assert outcome.err.count("\n") == 1


def test_a_command_is_a_module_of_its_name() -> None:
    modules = Path(commands.__file__).parent.glob("[a-z]*.py")
    actions = build_parser()._subparsers
    assert actions is not None
    choices = actions._group_actions[0].choices
    assert choices is not None
    assert sorted(choices) == sorted(path.stem for path in modules)
