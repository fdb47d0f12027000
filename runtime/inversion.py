"""A source to edit: its latents at every noise level, and what was recorded from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from freeprompt.engines.session import Array, Backend, NumpyArray
from freeprompt.runtime.recording import EXACT, FROM_INVERSION, Record


@dataclass
class Inversion:
    """An image inverted with DDIM, or a generated one, ready to be edited again and again.

    Attributes:
        steps: number of DDIM steps.
        prompt: the source's text: "" for an inverted image.
        bundle_sha256: the bundle whose model made it; another model's edits of it would be wrong.
        records: what was recorded, by mode. "exact" fills as edits need it; "inversion" is filled while inverting.
    """

    steps: int
    prompt: str
    bundle_sha256: str
    records: dict[str, Record] = field(default_factory=lambda: {EXACT: Record(), FROM_INVERSION: Record()})
    _levels: tuple[Array, ...] | None = field(default=None, repr=False)
    _backend: Backend | None = field(default=None, repr=False)
    _trajectory: NumpyArray | None = field(default=None, repr=False)

    @classmethod
    def from_levels(
        cls, steps: int, prompt: str, bundle_sha256: str, levels: tuple[Array, ...], backend: Backend
    ) -> Inversion:
        """From latents [1, C, h, w] float32 in a backend's memory, by noise level, 0 (clean) to ``steps``."""
        if len(levels) != steps + 1:
            raise ValueError(f"{len(levels)} levels for {steps} steps")
        return cls(steps, prompt, bundle_sha256, _levels=levels, _backend=backend)

    @classmethod
    def from_trajectory(cls, steps: int, prompt: str, bundle_sha256: str, trajectory: NumpyArray) -> Inversion:
        """From all latents, [steps + 1, 1, C, h, w] float32, level 0 (clean) first."""
        if trajectory.ndim != 5 or trajectory.shape[:2] != (steps + 1, 1):
            raise ValueError(f"a trajectory of shape {trajectory.shape} for {steps} steps")
        return cls(steps, prompt, bundle_sha256, _trajectory=trajectory)

    @property
    def trajectory(self) -> NumpyArray:
        """All latents, [steps + 1, 1, C, h, w] float32, level 0 (clean) first. Copied from the device once."""
        if self._trajectory is None:
            assert self._levels is not None
            trajectory = np.stack([level.numpy() for level in self._levels])
            trajectory.setflags(write=False)
            self._trajectory = trajectory
        return self._trajectory

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        shape = self._levels[0].shape if self._levels is not None else self.trajectory.shape
        return shape[-2], shape[-1]

    @property
    def record_bytes(self) -> int:
        """Bytes of recorded rows that this inversion holds."""
        return sum(record.nbytes for record in self.records.values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        levels = self._levels
        channels, height, width = (levels[0].shape if levels is not None else self.trajectory.shape)[-3:]
        return channels, height, width

    def levels_on(self, backend: Backend) -> tuple[Array, ...]:
        """Latents by level in the memory of ``backend``, moved there once. Records are then on the host: whoever uses
        them places them."""
        if self._levels is None or self._backend is not backend:
            trajectory = self.trajectory
            moved = tuple(backend.upload(np.ascontiguousarray(level)) for level in trajectory)
            for record in self.records.values():
                record.move_to_host()
            self._levels, self._backend = moved, backend
        return self._levels

    def save(self, path: str | Path, records: bool = False) -> None:
        """Write everything needed to edit in another process; ``records``: what was recorded, too.

        Raises:
            OutputError: the file cannot be written.
        """
        from freeprompt.runtime.inversion_file import save_inversion

        save_inversion(self, Path(path), records)

    @classmethod
    def load(cls, path: str | Path) -> Inversion:
        """Read what ``save`` wrote; runs no code from the file.

        Raises:
            InversionError: missing, damaged, or of another format. An inversion of another bundle is refused by
                the editor that is asked to edit it.
        """
        from freeprompt.runtime.inversion_file import load_inversion

        return load_inversion(Path(path))
