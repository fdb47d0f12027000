"""The bundle that freeprompt ships is the export of the checkpoint beside it, and that is a Stable Diffusion for
diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tokenizers import Tokenizer

from benchmarks.peers.literal import LiteralReference
from freeprompt import Editor
from freeprompt.export.checkpoint.load import quiet
from freeprompt.export.graph.parity import THRESHOLDS

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "benchmarks" / "embedded" / "checkpoint"
# As the exporter's own: the order of summation only.
TOLERANCE = THRESHOLDS["float32"]

Array = np.ndarray[Any, Any]


def relative_l2(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def pipe() -> Iterator[StableDiffusionPipeline]:
    torch.set_num_threads(1)
    with quiet():
        loaded = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
    yield loaded


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.load("demo", backend="cpu", threads=1)


def test_size_and_parts(editor: Editor) -> None:
    files = [p for folder in (CHECKPOINT, editor.bundle.path) for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 40e6
    assert not [p.name for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    manifest = editor.manifest
    assert len(manifest.layers) == manifest.cross_layers == 16
    assert manifest.replaced_layers == tuple(range(1, 17)), "at 16x16 latents every layer has at most 1024 tokens"
    assert all(layer.channels // layer.heads % 8 == 0 for layer in manifest.layers), "fused kernels want multiples of 8"
    assert {"step", "step_recorded", "record", "step_recording"} <= manifest.graphs.keys()
    for name, graph in manifest.graphs.items():
        assert graph.files == (f"{name}.onnx", f"{name}.fused.onnx", f"{name}.cuda.onnx"), "every form of every graph"


def test_diffusers_generates_with_it(pipe: StableDiffusionPipeline) -> None:
    assert isinstance(pipe.scheduler, DDIMScheduler)
    with quiet():
        image = pipe("a red circle on a gray background", num_inference_steps=4, height=64, width=64).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 5


def test_tokenizer_and_text_encoder(pipe: StableDiffusionPipeline, editor: Editor) -> None:
    prompts = ("", "a red circle on a gray background", "Ein rötlicher Stern, 42!")
    read = Tokenizer.from_file(str(editor.bundle.file("tokenizer.json")))
    for prompt in prompts:
        assert read.encode(prompt).ids == list(pipe.tokenizer(prompt)["input_ids"])
    ids = pipe.tokenizer(list(prompts), padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids)[0].numpy()
    assert relative_l2(editor.pipeline.embed(prompts).numpy(), expected) < TOLERANCE


def test_autoencoder(pipe: StableDiffusionPipeline, editor: Editor) -> None:
    graphs = editor.pipeline.graphs
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        latents = pipe.vae.encode(torch.from_numpy(image)).latent_dist.mean * pipe.vae.config.scaling_factor
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    encoded = graphs["vae_encoder"].run({"image": image})["latents"].numpy()
    assert relative_l2(encoded, latents.numpy()) < TOLERANCE
    again = graphs["vae_decoder"].run({"latents": latents.numpy()})["image"].numpy()
    assert relative_l2(again, decoded.numpy()) < TOLERANCE


def test_edit_equals_the_literal_reference(pipe: StableDiffusionPipeline, editor: Editor) -> None:
    """On a trained model, at the default 50 steps: the whole of it, from pixels to final latents."""
    picture = np.asarray(open_example())
    pixels = picture.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
    target = (ROOT / "freeprompt" / "examples" / "prompt.txt").read_text().strip()
    reference = LiteralReference(pipe)
    levels = reference.invert(reference.encode(pixels), 50)
    expected = reference.edit(levels, [target], layers=editor.manifest.replaced_layers).numpy()
    inversion = editor.invert(picture, 50)
    assert relative_l2(inversion.trajectory, np.stack([level.numpy() for level in levels])) < 1e-4
    for mode in ("none", "exact"):
        assert relative_l2(editor.edit_latents(inversion, target, record=mode), expected) < 1e-4


def open_example() -> Any:
    from PIL import Image

    return Image.open(ROOT / "freeprompt" / "examples" / "example-1.png").convert("RGB")
