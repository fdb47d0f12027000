"""A source to edit: its latents at every noise level, and what was recorded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from freeprompt.engines.session import Array, NumpyArray


@dataclass
class Inversion:
    """An image inverted with DDIM, or a generated one, ready to be edited again and again.

    Attributes:
        steps: number of DDIM steps.
        prompt: the source's text: "" for an inverted image.
        bundle_sha256: the bundle whose model made it; another model's edits of it would be wrong.
        levels: latents [1, C, h, w] float32 in the backend's memory, by noise level, 0 (clean) to ``steps``.
    """

    steps: int
    prompt: str
    bundle_sha256: str
    levels: tuple[Array, ...]
    _trajectory: NumpyArray | None = field(default=None, repr=False)

    @property
    def trajectory(self) -> NumpyArray:
        """All latents, [steps + 1, 1, C, h, w] float32, level 0 (clean) first. Copied from the device once."""
        if self._trajectory is None:
            trajectory = np.stack([level.numpy() for level in self.levels])
            trajectory.setflags(write=False)
            self._trajectory = trajectory
        return self._trajectory

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.levels[0].shape[2], self.levels[0].shape[3]

    @classmethod
    def from_levels(
        cls, steps: int, prompt: str, bundle_sha256: str, levels: Sequence[Array]
    ) -> Inversion:
        """Raises ValueError unless there is one array for each level."""
        if len(levels) != steps + 1:
            raise ValueError(f"{len(levels)} levels for {steps} steps")
        return cls(steps, prompt, bundle_sha256, tuple(levels))
