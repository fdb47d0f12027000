"""Oracle figures and sample sheets while the U-Net trains, at a small part of its time."""

from __future__ import annotations

import pathlib

import torch

from benchmarks.embedded import model, world
from benchmarks.embedded.scoring import sheet
from benchmarks.embedded.scoring.editing import ALL_LAYERS, Method
from benchmarks.embedded.scoring.literal_editing import LiteralEditing
from benchmarks.embedded.scoring.observe import EDITS, GENERATION, RECONSTRUCTION, Part, observe, table
from benchmarks.embedded.training.denoiser import DenoiserTraining
from benchmarks.peers.literal import LiteralReference

SCENES, STEPS, GUIDANCE = 16, 12, 3.0


class AnalyticEditing(LiteralEditing):
    """Without an autoencoder: latents are the analytic ones, and pictures their colour channels, enlarged."""

    def encode(self, images: world.ByteArray) -> torch.Tensor:
        """See `LiteralEditing`."""
        return model.linear_latents(model.to_tensor(images)) * model.SCALING_FACTOR

    def decode(self, latents: torch.Tensor) -> world.ByteArray:
        """See `LiteralEditing`."""
        colours = latents[:, :3] / model.SCALING_FACTOR
        size = (world.SIZE, world.SIZE)
        return model.to_bytes(torch.nn.functional.interpolate(colours, size, mode="bicubic"))


class Progress:
    """Scores the averaged weights of a training run; see `__call__`."""

    def __init__(self, training: DenoiserTraining, folder: pathlib.Path) -> None:
        self.training = training
        self.folder = folder
        self.pipe = model.make_pipeline(
            unet=model.make_unet(training.sizes).eval(),
            text_encoder=model.make_text_encoder(training.sizes, training.tokenizer).eval(),
            tokenizer=training.tokenizer,
            vae=model.make_vae(training.sizes),
        )

    def __call__(self) -> dict[str, float]:
        """Figures of a few validation scenes; also writes `samples_NNNNNN.png`."""
        training = self.training
        training.average.copy_to([*self.pipe.unet.parameters(), *self.pipe.text_encoder.parameters()])
        editing = AnalyticEditing(LiteralReference(self.pipe))
        scenes = world.sample_scenes(SCENES, world.VALIDATION)
        method = Method("self-attention (FPE)", ALL_LAYERS, (), 1.0, GUIDANCE)
        figures = {}
        for what, section, column, name in (
            (GENERATION, "Generation", "all right", "generated"),
            (RECONSTRUCTION, "Reconstruction", "good", "reconstructed"),
            (EDITS, "Edits of colour", "right", "recoloured"),
        ):
            found = observe(editing, Part(what, method, STEPS, ("colour",)), scenes)
            figures[name] = table(found[section])[column].value
        seen = training.step_count * training.config.batch
        sheet.samples(editing, scenes[:8], STEPS).save(self.folder / f"samples_{seen:06d}.png")
        return figures
