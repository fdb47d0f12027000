"""Oracle figures and sample sheets while the U-Net trains, at a small part of its time."""

from __future__ import annotations

import pathlib

from benchmarks.embedded import model, sheet, world
from benchmarks.embedded.denoiser import DenoiserTraining
from benchmarks.embedded.editing import ALL_LAYERS, Method, TorchEditing
from benchmarks.embedded.goals import VALIDATION
from benchmarks.embedded.observe import EDITS, GENERATION, RECONSTRUCTION, Part, observe, table

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
        scenes = world.sample_scenes(SCENES, VALIDATION)
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
