"""`Editing` on the package's own runtime: what users run is what is scored."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Union

import numpy as np
from PIL import Image

from benchmarks.embedded import world
from benchmarks.embedded.editing import Method
from freeprompt import Editor, Inversion


class RuntimeEditing:
    """Edits one picture after the other with `freeprompt.Editor`; inversions are kept.

    Args:
        editor: of the embedded model's bundle.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._inversions: dict[tuple[bytes, int], Inversion] = {}

    @classmethod
    def open(cls, bundle: Union[str, pathlib.Path], backend: str = "cpu", threads: int = 1) -> RuntimeEditing:
        """Opens a bundle folder, or "demo"."""
        return cls(Editor.load(bundle, backend, threads=threads))

    def generate(self, prompts: Sequence[str], steps: int, guidance: float) -> world.ByteArray:
        """See `Editing`; picture number i has seed i."""
        pictures = []
        for seed, prompt in enumerate(prompts):
            made = self.editor.generate(prompt, seed=seed, steps=steps, guidance=guidance)
            pictures += self.editor.decode(made.trajectory[0])
        return _stack(pictures)

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """See `Editing`."""
        pictures = []
        for image in images:
            pictures += self.editor.edit(self._invert(image, steps), "", guidance=1.0, replace_layers="none")
        return _stack(pictures)

    def edit(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.ByteArray]:
        """See `Editing`; raises ValueError for modes that the runtime does not have."""
        if method.reuse:
            raise ValueError("the runtime has no mode that reuses the inversion's maps")
        by_image = []
        for row, image in enumerate(images):
            inversion = self._invert(image, steps)
            if method.cross_layers:
                # Cross-attention maps mean something only under the source's own prompt.
                inversion = dataclasses.replace(inversion, prompt=sources[row])
            latents = self.editor.edit_latents(
                inversion,
                [prompts[row] for prompts in targets],
                guidance=method.guidance,
                replace_fraction=method.fraction,
                replace_layers=[layer + 1 for layer in method.self_layers],
                replace_cross_layers=[layer + 1 for layer in method.cross_layers],
            )
            by_image.append(_stack(self.editor.decode(latents)))
        return list(np.stack(by_image, axis=1))

    def _invert(self, image: world.ByteArray, steps: int) -> Inversion:
        key = (image.tobytes(), steps)
        if key not in self._inversions:
            self._inversions[key] = self.editor.invert(image, steps)
        return self._inversions[key]


def _stack(pictures: Sequence[Image.Image]) -> world.ByteArray:
    return np.stack([np.asarray(picture.convert("RGB"), np.uint8) for picture in pictures])
