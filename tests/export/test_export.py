"""What export refuses, and what it reads off an architecture. (Its graphs are compared in test_exactness.)"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.full_size.sd15 import UNET
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import CheckpointError, ExportError
from freeprompt.export.checkpoint.load import load_checkpoint
from freeprompt.export.checkpoint.scheduler import config_to_scheduler
from freeprompt.export.checkpoint.source import is_lora
from freeprompt.export.exporter import export_checkpoint
from freeprompt.export.graph.parity import THRESHOLDS, Expectation, graph_to_parity
from freeprompt.export.model.layers import unet_to_architecture


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    target = tmp_path / "in" / "checkpoint"
    shutil.copytree(tiny_checkpoint, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_layer_table_of_stable_diffusion_15() -> None:
    """The table, what a row costs, and the share of it before the last replaced layer."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNET)
    found = unet_to_architecture(unet, 64, 64)
    assert [layer.tokens for layer in found.layers] == [
        *[4096] * 2,
        *[1024] * 2,
        *[256] * 2,
        64,
        *[256] * 3,
        *[1024] * 3,
        *[4096] * 3,
    ]
    assert [layer.number for layer in found.layers if layer.replaced] == list(range(3, 14))
    assert [layer.level for layer in found.layers] == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert {layer.heads for layer in found.layers} == {8}
    assert len(found.cross_layers) == 16
    assert round(found.macs / 1e9) == 402
    # Counted with the queries and keys of layer 13; what is recorded are the hidden states before them.
    queries_and_keys = 2 * 1024 * 640 * 640
    assert (found.macs_before[12] + queries_and_keys) / found.macs == pytest.approx(0.695, abs=5e-4)


def test_parity_is_recorded_and_below_the_threshold(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert {"text_encoder", "vae_encoder", "vae_decoder", "step"} <= manifest.graphs.keys()
    for graph in manifest.graphs.values():
        assert graph.parity_threshold == THRESHOLDS[manifest.precision]
        assert len(graph.parity) >= 2 and len({parity.shapes for parity in graph.parity}) >= 2
        # Exactly zero would mean that something was compared with itself.
        assert all(0.0 < parity.relative_l2 < graph.parity_threshold for parity in graph.parity)


def pickles_only(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def inpainting(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.device("cpu"):
        UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")


def two_text_encoders(folder: Path) -> None:
    edit_json(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])


def cut_weights(folder: Path) -> None:
    path = next((folder / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])


def no_part(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickles_only, "safetensors"),
        (no_index, r"no model_index\.json"),
        (inpainting, "takes 9 channels"),
        (two_text_encoders, "freeprompt exports Stable Diffusion"),
        (cut_weights, "cut short or damaged"),
        (no_part, r"has no vae/config\.json"),
    ],
)
def test_checkpoints_that_cannot_be_exported(
    checkpoint: Path, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_model_that_is_not_finite_is_not_blamed_on_its_precision(tiny_bundle: Path) -> None:
    ids = np.zeros((1, 77), np.int32)
    for values, reason in (
        (np.full((1, 77, 32), np.nan, np.float32), "in float32 already: its weights are damaged"),
        (np.zeros((1, 77, 32), np.float32), "differs from the model"),
    ):
        expected = Expectation("texts=1", (ids,), (values,))
        with pytest.raises(ExportError, match=reason):
            graph_to_parity(
                "text_encoder", tiny_bundle / "text_encoder.onnx", [expected], ["input_ids"], slice(None), "float32"
            )


@pytest.mark.parametrize("name", ["v1-5-exploration.safetensors", "Floral.ckpt", "my_lora.safetensors", "LoRA-x.bin"])
def test_what_is_called_a_lora(name: str) -> None:
    assert is_lora(f"unet/{name}") == (name in ("my_lora.safetensors", "LoRA-x.bin"))


@pytest.mark.parametrize("source", ["/none", "a/b/c/d", "", "no spaces allowed"])
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(source)


@pytest.mark.parametrize(
    "changes",
    [{"prediction_type": "sample"}, {"timestep_spacing": "other"}, {"beta_schedule": "other"}],
    ids=lambda c: next(iter(c)),
)
def test_unknown_schedules_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(CheckpointError):
        config_to_scheduler(changes)


def test_another_tokenizer_is_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freeprompt.export.checkpoint import tokenizer

    class Other:
        @staticmethod
        def from_file(path: str) -> Other:
            return Other()

        ids = (1, 2)

        def encode(self, text: str) -> Other:
            return self

    monkeypatch.setattr(tokenizer, "Tokenizer", Other)
    with pytest.raises(ExportError, match="other ids"):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
