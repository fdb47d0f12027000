"""`Editing` by the literal reference: what training is scored with, and an independent check of the runtime."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.embedded import model, world
from benchmarks.embedded.scoring.editing import Method
from benchmarks.peers.literal import LiteralReference, Maps, open_pipeline

SHAPE = (1, model.LATENT_CHANNELS, world.SIZE // model.FACTOR, world.SIZE // model.FACTOR)
"""Of one picture's latents."""


class LiteralEditing:
    """Edits one picture after the other, with every row and every map that the method's description names."""

    def __init__(self, reference: LiteralReference) -> None:
        self.reference = reference
        self._inversions: dict[tuple[bytes, int], list[torch.Tensor]] = {}

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> LiteralEditing:
        """Opens a saved pipeline folder in float32."""
        return cls(LiteralReference(open_pipeline(pathlib.Path(folder))))

    def encode(self, images: world.ByteArray) -> torch.Tensor:
        """Scaled latents [N, 4, 16, 16] of [N, 64, 64, 3] uint8: the posterior's mean."""
        return self.reference.encode(model.to_tensor(images).numpy())

    def decode(self, latents: torch.Tensor) -> world.ByteArray:
        """Pictures [N, 64, 64, 3] uint8 of scaled latents."""
        return model.to_bytes(self.reference.decode(latents))

    def generate(self, prompts: Sequence[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        """See `Editing`."""
        made = []
        for seed, prompt in enumerate(prompts, first):
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
            made += [self.reference.synthesize(noise, "", prompt, steps, guidance=guidance, fraction=0.0)[1:]]
        return self.decode(torch.cat(made))

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """See `Editing`."""
        back = [self.reference.edit(self._invert(image, steps), [""], guidance=1.0, fraction=0.0) for image in images]
        return self.decode(torch.cat(back))

    def edit_latents(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.FloatArray]:
        """See `Editing`."""
        by_image = []
        for row, image in enumerate(images):
            maps: list[Maps] | None = [] if method.reuse else None
            edited = self.reference.edit(
                self._invert(image, steps, maps),
                [prompts[row] for prompts in targets],
                guidance=method.guidance,
                fraction=method.fraction,
                layers=[layer + 1 for layer in method.self_layers],
                cross_layers=[layer + 1 for layer in method.cross_layers],
                source=sources[row] if method.cross_layers else "",
                maps=maps,
            )
            by_image.append(edited.numpy())
        return list(np.stack(by_image, axis=1))

    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        """See `Editing`."""
        return self.decode(torch.from_numpy(latents))

    def _invert(self, image: world.ByteArray, steps: int, maps: list[Maps] | None = None) -> list[torch.Tensor]:
        """Inversion that is kept, since several methods edit the same pictures; with `maps` it is made anew."""
        key = (image.tobytes(), steps)
        if maps is not None or key not in self._inversions:
            self._inversions[key] = self.reference.invert(self.encode(image[None]), steps, maps)
        return self._inversions[key]
