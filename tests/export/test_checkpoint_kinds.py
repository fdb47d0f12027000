"""Each kind of checkpoint is exported rightly, or refused in one line that is true, before anything is traced."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tokenizers import Tokenizer

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import CheckpointError, CheckpointWarning
from freeprompt.export import exporter
from freeprompt.export.checkpoint.load import load_checkpoint, quiet
from freeprompt.export.checkpoint.scheduler import config_to_scheduler, spacing_to_words
from freeprompt.export.exporter import ExportSettings, export_checkpoint
from tests.export.checkpoint_edits import TEXT, UNET, VAE
from tests.export.checkpoint_kinds import EXPORTED, REFUSED, Kind

KINDS = {kind.name: kind for kind in EXPORTED}


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    target = tmp_path / "in" / "checkpoint"
    shutil.copytree(tiny_checkpoint, target)
    return target


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("work was begun before the checkpoint was refused")


@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_refused(kind: Kind, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = kind.make(folder) or folder
    for name in ("save_tokenizer", "write_stage", "UnetExport"):
        monkeypatch.setattr(exporter, name, never)
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(given, tmp_path / "bundle")
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in kind.words), line
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "a bundle was begun, or code of the checkpoint ran"


@pytest.mark.parametrize("kind", EXPORTED, ids=str)
def test_what_is_loaded_is_what_diffusers_loads(kind: Kind, folder: Path) -> None:
    kind.make(folder)
    checkpoint = load_checkpoint(str(folder))
    assert (kind.unused in "; ".join(checkpoint.unused)) if kind.unused else not checkpoint.unused
    scheduler = config_to_scheduler(checkpoint.scheduler)
    assert (scheduler.timestep_spacing, scheduler.set_alpha_to_one) == (kind.spacing, False)
    assert scheduler.steps_offset == (1 if kind.spacing == "leading" else 0)
    # What diffusers would ask elsewhere for, and what export leaves out.
    for name in ("controlnet", "safety_checker"):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, name: [None, None]}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps({k: v for k, v in index.items() if k != "controlnet"} | {"_class_name": "StableDiffusionPipeline"})
    )
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps({k: v for k, v in text.items() if "attn_implementation" not in k})
    )
    variant = "fp16" if list(folder.rglob("*.fp16.safetensors")) else None
    with quiet():
        theirs = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, variant=variant, local_files_only=True
        )
    for part in ("unet", "vae", "text_encoder"):
        ours, want = getattr(checkpoint, part).state_dict(), getattr(theirs, part).state_dict()
        assert ours.keys() == want.keys()
        assert all(torch.equal(ours[name], want[name]) for name in ours)
        assert not getattr(checkpoint, part).training
    for prompt in ("a photo of a cat", "a <cat-toy> of l'été", "A  CAT, 42"):
        assert checkpoint.tokenizer(prompt)["input_ids"] == theirs.tokenizer(prompt)["input_ids"]
    ids = torch.tensor([checkpoint.tokenizer("a red cat", padding="max_length", max_length=77)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(checkpoint.text_encoder(ids)[0], theirs.text_encoder(ids)[0])


def make(folder: Path, *names: str) -> None:
    for name in names:
        KINDS[name].make(folder)


def test_the_second_kind_is_exported(folder: Path, tmp_path: Path) -> None:
    """With linear projections and other heads than the small checkpoint; every graph is compared while exporting."""
    make(folder, "Stable Diffusion 2.x, zero terminal SNR")
    manifest = export_checkpoint(folder, tmp_path / "bundle", ExportSettings(graphs="memory")).manifest
    assert set(manifest.graphs) == {"text_encoder", "vae_encoder", "vae_decoder", "step"}
    assert [layer.heads for layer in manifest.layers] == [2, 4, 2, 2]
    assert (manifest.scheduler.timestep_spacing, manifest.scheduler.alphas_cumprod[-1]) == ("trailing", 0.0)
    assert manifest.scheduler.prediction_type == "v_prediction"


def test_what_was_not_used_and_which_spacing_was_taken_is_said(folder: Path, tmp_path: Path) -> None:
    """On a U-Net without a middle block and a tokenizer with a token more, which are traced here too."""
    make(folder, "distilled, without a middle block", "textual inversion of one vector")
    make(folder, "ControlNet pipeline", "saved with Euler")
    lines: list[str] = []
    with pytest.warns(CheckpointWarning, match="ControlNet is not used: edits are made by the U-Net alone"):
        export_checkpoint(folder, tmp_path / "bundle", ExportSettings(graphs="memory"), progress=lines.append)
    notes = Bundle.open(tmp_path / "bundle").manifest.notes
    spacing = "leading, the method's; the checkpoint's EulerDiscreteScheduler has linspace"
    assert notes["timestep spacing"] == spacing and f"timestep spacing {spacing}" in lines
    assert "ControlNet" in notes["not used"]
    ids = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer.json")).encode("a <cat-toy>").ids
    embeddings = next(v for k, v in load_file(folder / TEXT).items() if "token_embedding" in k)
    assert ids[2:-1] == [len(embeddings) - 1], "one token, the embedding that was added last"


def test_a_plain_checkpoint_has_no_notes(tiny_bundle: Path) -> None:
    assert Bundle.open(tiny_bundle).manifest.notes == {}


@pytest.mark.parametrize("spacing", ["checkpoint", "leading", "trailing", "linspace"])
def test_the_spacing_that_is_asked_for(spacing: str) -> None:
    config = {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "linspace", "set_alpha_to_one": True}
    wanted = "linspace" if spacing == "checkpoint" else spacing
    found = config_to_scheduler(config, ExportSettings(spacing=spacing).spacing)  # type: ignore[arg-type]
    assert (found.timestep_spacing, found.set_alpha_to_one) == (wanted, False)
    words, differs = spacing_to_words(config, spacing)  # type: ignore[arg-type]
    assert (
        differs
        and words
        == f"{wanted}, as asked for; the checkpoint's UniPCMultistepScheduler has linspace and "
        "set_alpha_to_one, which the method has not"
    )


def test_a_schedule_without_signal_for_epsilon_begins_below_its_end() -> None:
    """With "trailing" every edit would begin where an epsilon-predicting model has no clean estimate."""
    assert config_to_scheduler({"rescale_betas_zero_snr": True}).timestep_spacing == "leading"


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_start": "x"},
        {"num_train_timesteps": 10**9},
        {"trained_betas": [2.0, 3.0]},
        {"beta_end": None},
        {"_class_name": "os.system"},
        {"use_flow_sigmas": True},
        {"_class_name": "EDMEulerScheduler"},
        {"trained_betas": "abc"},
    ],
    ids=str,
)
def test_schedules_that_are_none(changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        config_to_scheduler(changes)


def test_variants(folder: Path) -> None:
    lines: list[str] = []
    for path in (folder / UNET, folder / VAE):
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
    load_checkpoint(str(folder), progress=lines.append)
    assert lines == [], "those without a variant come first"
    load_checkpoint(str(folder), "fp16", lines.append)
    assert lines == ["text_encoder: weights without a variant, it has none called fp16"]
    with pytest.raises(CheckpointError, match="no weights of the variant 'bf16'"):
        load_checkpoint(str(folder), "bf16")
    (folder / VAE).unlink()
    load_checkpoint(str(folder), None, lines.append)
    assert lines[1:] == ["vae: weights of the variant fp16, there are no others"]
    shutil.copy(folder / UNET, (folder / VAE).with_suffix(".bf16.safetensors"))
    with pytest.raises(CheckpointError, match="variants bf16, fp16 only: choose one with --variant"):
        load_checkpoint(str(folder))


def test_warnings_are_the_projects_own(folder: Path) -> None:
    """A library's own deprecations are not the user's affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(str(folder))
