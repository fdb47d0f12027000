"""``freeprompt export`` where it cannot do its work: one line, nothing left behind."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from freeprompt.contract.errors import ExportError
from tests.cli.runner import Outcome, assert_fails, call, names

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["/proc/absent/bundle", "/dev/null/bundle"])
def test_a_place_that_cannot_be_written_is_told_before_pytorch_is_loaded(
    folder: Path, place: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "freeprompt.export.exporter", None)
    assert_fails(call(capsys, "export", "x", "-o", place), 1, f"cannot write {place}")


def test_an_existing_bundle_is_kept(folder: Path, capsys: Capture) -> None:
    (folder / "bundle").mkdir()
    assert_fails(call(capsys, "export", "x", "-o", "bundle"), 1, "exists already", "--overwrite")
    assert names(folder) == ["bundle"]


def test_without_the_extra_it_says_what_to_install(folder: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from freeprompt.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "x", "-o", "bundle"], capture_output=True, text=True, check=False
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert_fails(outcome, 1, "pip install 'freeprompt[export]'")
    assert names(folder) == []


def _no_unet(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "unet")


def _pickle_only(checkpoint: Path) -> None:
    (weights,) = (checkpoint / "unet").glob("*.safetensors")
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))


def _cut_weights(checkpoint: Path) -> None:
    (weights,) = (checkpoint / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])


def _another_pipeline(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["text_encoder_2"] = index["text_encoder"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", [_no_unet, _pickle_only, _cut_weights, _another_pipeline])
def test_checkpoints_that_cannot_be_exported(
    folder: Path, tiny_checkpoint: Path, damage: object, capsys: Capture
) -> None:
    assert callable(damage)
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    damage(folder / "checkpoint")
    assert_fails(call(capsys, "export", "checkpoint", "-o", "bundle", "-q"), 1, "checkpoint")
    assert names(folder) == ["checkpoint"]


def test_checkpoints_that_are_not_there(folder: Path, capsys: Capture) -> None:
    (folder / "empty").mkdir()
    for checkpoint, word in (("./absent", "no checkpoint"), ("empty", "model_index.json")):
        assert_fails(call(capsys, "export", checkpoint, "-o", "bundle", "-q"), 1, word)
    assert_fails(call(capsys, "export", "empty", "-o", "bundle", "-q", "--opset", 7), 2, "opset")
    assert names(folder) == ["empty"]


def test_what_is_not_used_is_a_warning_even_where_quiet(
    folder: Path, tiny_checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freeprompt.export import exporter

    def stop(*_: object) -> None:
        raise ExportError("far enough")

    monkeypatch.setattr(exporter, "save_tokenizer", stop)
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    (folder / "checkpoint" / "my-lora.safetensors").touch()
    outcome = call(capsys, "export", "checkpoint", "-o", "bundle", "-q")
    assert outcome.code == 1
    warning, error = outcome.err.splitlines()
    assert warning.startswith("freeprompt: warning: checkpoint: the LoRA my-lora.safetensors is not used")
    assert error == "freeprompt: error: far enough"
    outcome = call(capsys, "export", "checkpoint", "-o", "bundle", "--spacing", "trailing")
    assert "timestep spacing trailing, as asked for; the checkpoint's DDIMScheduler has leading\n" in outcome.err


def test_variant_and_spacing_are_options(folder: Path, tiny_checkpoint: Path, capsys: Capture) -> None:
    outcome = call(capsys, "export", tiny_checkpoint, "-o", "bundle", "-q", "--variant", "fp16")
    assert_fails(outcome, 1, "no weights of the variant 'fp16'", "--variant")
    assert_fails(call(capsys, "export", tiny_checkpoint, "-o", "bundle", "--spacing", "karras"), 2, "--spacing")
    assert names(folder) == []


def test_a_disk_that_fills_while_exporting_leaves_nothing(folder: Path, tiny_checkpoint: Path, capsys: Capture) -> None:
    """A limit on the size of files stands for the full disk; the weights of the first graph are above it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        outcome = call(capsys, "export", tiny_checkpoint, "-o", "new/bundle", "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_fails(outcome, 1, "cannot write")
    assert list(folder.rglob("*.onnx")) == []
    assert names(folder) in ([], ["new"])
    assert not (folder / "new").exists() or names(folder / "new") == []
