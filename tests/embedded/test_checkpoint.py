"""The committed weights: they open, are what the code says, and edit."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.embedded import model, oracle, verdict, world
from benchmarks.embedded.scoring.editing import ALL_LAYERS, Method, edit
from benchmarks.embedded.scoring.literal_editing import LiteralEditing
from benchmarks.embedded.world import edited_scene

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "embedded" / "checkpoint"


@pytest.fixture(scope="module")
def editing() -> LiteralEditing:
    torch.set_num_threads(1)
    return LiteralEditing.open(FOLDER)


def test_files() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    suffixes = {path.suffix for path in files}
    assert suffixes == {".json", ".txt", ".safetensors"}


def test_is_made_by_this_code(editing: LiteralEditing) -> None:
    sizes = model.ModelConfig()
    tokenizer = model.make_tokenizer()
    text = [world.caption(scene) for scene in world.sample_scenes(5, 1)] + ["", "Zürich, 42!"]
    pipe = editing.reference.pipe
    assert torch.equal(model.tokenize(pipe.tokenizer, text), model.tokenize(tokenizer, text))
    made = (model.make_unet(sizes), model.make_text_encoder(sizes, tokenizer), model.make_vae(sizes))
    for mine, theirs in zip(made, (pipe.unet, pipe.text_encoder, pipe.vae)):
        shapes = {name: value.shape for name, value in mine.state_dict().items()}
        assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
        assert all(bool(value.isfinite().all()) for value in theirs.state_dict().values())
    assert len([name for name in pipe.unet.attn_processors if ".attn1." in name]) == 16


def test_pipeline_generates() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(FOLDER), safety_checker=None, local_files_only=True)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.float()
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a red heart on a white background",
        num_inference_steps=25,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    found = oracle.measure((image * 255).round().astype(np.uint8))
    assert (found.colour, found.background) == ("red", "white")


def test_autoencoder(editing: LiteralEditing) -> None:
    images = world.render(world.sample_scenes(16, 77))
    with torch.inference_mode():
        latents = editing.encode(images)
        back = editing.decode(latents)
    wanted = model.linear_latents(model.to_tensor(images)) * model.SCALING_FACTOR
    assert float((latents - wanted).square().mean().sqrt()) < 0.01
    everywhere = np.ones((64, 64), np.bool_)
    assert np.mean([oracle.psnr(a, b, everywhere) for a, b in zip(images, back)]) > 32


def test_recolours(editing: LiteralEditing) -> None:
    """A spot check of the figures in the README."""
    scenes = world.sample_scenes(4, 4)
    goals = [edited_scene(scene, "colour") for scene in scenes]
    images = world.render(scenes)
    edited = edit(
        editing,
        images,
        [world.caption(scene) for scene in scenes],
        [[world.caption(goal) for goal in goals]],
        12,
        Method("self-attention (FPE)", ALL_LAYERS, (), 1.0, 3.0),
    )[0]
    right = [verdict.judge("colour", *row).right for row in zip(scenes, goals, images, edited)]
    assert sum(right) >= 3
