"""What is scored: editing methods, and whatever edits by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from benchmarks.embedded import world

ALL_LAYERS = tuple(range(16))
"""Self-attention layers of the U-Net, and as many cross-attention layers."""


@dataclasses.dataclass(frozen=True)
class Method:
    """An editing method: what the target row takes from the source row, when, and guidance.

    Attributes:
        name: as in tables.
        self_layers: self-attention layers (from 0, forward order) whose map is replaced.
        cross_layers: the same for cross-attention; the source row then reads the source prompt.
        fraction: first part of the steps in which they are replaced, 0..1.
        guidance: classifier-free guidance scale; 1 is none.
        reuse: approximate mode: the source's maps are those seen during inversion (same
            timestep, latent one level cleaner), so that no source row is needed.
    """

    name: str
    self_layers: tuple[int, ...] = ()
    cross_layers: tuple[int, ...] = ()
    fraction: float = 0.0
    guidance: float = 3.0
    reuse: bool = False


class Editing(Protocol):
    """Whatever edits: the package's runtime or the literal reference, each behind an adapter."""

    def generate(self, prompts: Sequence[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        """Pictures of prompts, [N, 64, 64, 3] uint8; picture number i has the seed `first` + i."""

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """Inversion with the empty prompt and back without guidance."""

    def edit_latents(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.FloatArray]:
        """Edits every image towards each of the target prompts of each kind.

        Args:
            images: [N, 64, 64, 3] uint8.
            sources: N prompts of the images; only cross-attention replacement reads them.
            targets: one list of N prompts for each kind of edit.
            steps: denoising steps.
            method: what to replace.

        Returns:
            For each kind [N, 4, 16, 16] float32.
        """

    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        """Pictures [N, 64, 64, 3] uint8 of what `edit_latents` gives."""


def edit(
    editing: Editing,
    images: world.ByteArray,
    sources: Sequence[str],
    targets: Sequence[Sequence[str]],
    steps: int,
    method: Method,
) -> list[world.ByteArray]:
    """`Editing.edit_latents`, decoded: for each kind [N, 64, 64, 3] uint8."""
    found = editing.edit_latents(images, sources, targets, steps, method)
    return [editing.decode_latents(latents) for latents in found]
