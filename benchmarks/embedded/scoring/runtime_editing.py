"""`Editing` on the package's own runtime: what users run is what is scored."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.embedded import world
from benchmarks.embedded.scoring.editing import Method
from freeprompt import Editor, Inversion
from freeprompt.runtime.plan.records import AUTO, FROM_INVERSION, NONE

HELD = 8
"""Inversions in memory: with their records they take 6 MB each at 25 steps."""


class RuntimeEditing:
    """Edits one picture after the other with `freeprompt.Editor`.

    All target prompts of a picture are edited together, and share its inversion and its recorded
    rows. Inversions are kept: the last few in memory with their records, all of them in `cache`,
    where other processes find them.

    Args:
        editor: of the embedded model's bundle.
        cache: folder of saved inversions; made if it is not there.
    """

    def __init__(self, editor: Editor, cache: pathlib.Path | None = None) -> None:
        self.editor = editor
        self.cache = cache
        self._held: collections.OrderedDict[str, Inversion] = collections.OrderedDict()
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)

    @classmethod
    def open(
        cls,
        bundle: str | pathlib.Path,
        backend: str = "cpu",
        threads: int = 1,
        cache: pathlib.Path | None = None,
    ) -> RuntimeEditing:
        """Opens a bundle folder, or "demo"."""
        return cls(Editor.load(bundle, backend, threads=threads), cache)

    def generate(self, prompts: Sequence[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        """See `Editing`."""
        pictures = []
        for seed, prompt in enumerate(prompts, first):
            made = self.editor.generate(prompt, seed=seed, steps=steps, guidance=guidance)
            pictures += self.editor.decode(made.trajectory[0])
        return _stack(pictures)

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """See `Editing`."""
        pictures = []
        for image in images:
            inversion = self.invert(image, steps)
            pictures += self.editor.edit(inversion, "", guidance=1.0, replace_layers="none", record=NONE)
        return _stack(pictures)

    def edit_latents(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.FloatArray]:
        """See `Editing`; the mode that reuses the inversion's maps is `record="inversion"`."""
        by_image = []
        for row, image in enumerate(images):
            inversion = self.invert(image, steps, reuse=method.reuse)
            if method.cross_layers:
                # Cross-attention maps mean something only under the source's own prompt. Nothing recorded under
                # the empty prompt is read then: the runtime records no cross-attention.
                inversion = dataclasses.replace(inversion, prompt=sources[row])
            by_image.append(
                self.editor.edit_latents(
                    inversion,
                    [prompts[row] for prompts in targets],
                    guidance=method.guidance,
                    replace_fraction=method.fraction,
                    replace_layers=[layer + 1 for layer in method.self_layers],
                    replace_cross_layers=[layer + 1 for layer in method.cross_layers],
                    record=FROM_INVERSION if method.reuse else AUTO,
                )
            )
        return list(np.stack(by_image, axis=1))

    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        """See `Editing`."""
        return _stack(self.editor.decode(latents))

    def invert(self, image: world.ByteArray, steps: int, reuse: bool = False) -> Inversion:
        """Inversion of one [64, 64, 3] uint8 picture with the empty prompt, from memory or `cache` if it is there.

        Args:
            image: the picture.
            steps: DDIM steps.
            reuse: with what is recorded on the way; that is kept in memory only.
        """
        key = hashlib.sha256(image.tobytes() + f"{steps} {self.editor.bundle.sha256}".encode()).hexdigest()
        inversion = self._held.pop(key, None)
        path = self.cache / f"{key}.npz" if self.cache else None
        if inversion is not None and reuse and not inversion.records[FROM_INVERSION].passes:
            inversion = None
        if inversion is None and path is not None and path.exists() and not reuse:
            inversion = Inversion.load(path)
        if inversion is None:
            inversion = self.editor.invert(image, steps, record=FROM_INVERSION if reuse else NONE)
            if path is not None and not path.exists():
                part = path.with_suffix(f".{os.getpid()}.part")
                inversion.save(part)
                part.replace(path)
        self._held[key] = inversion
        while len(self._held) > HELD:
            self._held.popitem(last=False)
        return inversion


def _stack(pictures: Sequence[Image.Image]) -> world.ByteArray:
    return np.stack([np.asarray(picture.convert("RGB"), np.uint8) for picture in pictures])
