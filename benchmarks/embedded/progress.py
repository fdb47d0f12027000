"""Oracle figures and sample sheets while the U-Net trains, at a small part of its time."""

from __future__ import annotations

import pathlib

from benchmarks.embedded import model, score, sheet, world
from benchmarks.embedded.denoiser import DenoiserTraining
from benchmarks.embedded.editing import ALL_LAYERS, Method, TorchEditing

SCENES, STEPS, GUIDANCE = 16, 12, 3.0


class Progress:
    """Scores the averaged weights of a training run; see `__call__`."""

    def __init__(self, training: DenoiserTraining, folder: pathlib.Path) -> None:
        self.training = training
        self.folder = folder
        self.unet = model.make_unet(training.sizes).eval()
        self.text_encoder = model.make_text_encoder(training.sizes, training.tokenizer).eval()

    def __call__(self) -> dict[str, float]:
        """Figures of a few validation scenes; also writes `samples_NNNNNN.png`."""
        training = self.training
        training.average.copy_to([*self.unet.parameters(), *self.text_encoder.parameters()])
        # Without an autoencoder: the analytic latents' own colours are looked at.
        editing = TorchEditing(self.unet, self.text_encoder, training.tokenizer, None)
        scenes = world.sample_scenes(SCENES, score.VALIDATION)
        method = Method("self-attention (FPE)", ALL_LAYERS, (), 1.0, GUIDANCE)
        made = score.score_generation(editing, scenes, STEPS, GUIDANCE)
        back = score.score_reconstruction(editing, scenes, STEPS)
        edits = score.score_edits(editing, scenes, STEPS, method, ("colour",))["colour"]
        seen = training.step_count * training.config.batch
        sheet.samples(editing, scenes[:8], STEPS).save(self.folder / f"samples_{seen:06d}.png")
        return {
            "generated": made["all right"].value,
            "reconstructed": back["good"].value,
            "recoloured": edits["right"].value,
        }
