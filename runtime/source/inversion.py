"""A source to edit: its latents at every noise level, and what was recorded from them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freeprompt.contract.session import Array, Backend, NumpyArray
from freeprompt.runtime.plan.records import EXACT, FROM_INVERSION
from freeprompt.runtime.source.contents import Contents
from freeprompt.runtime.source.recording import Record


@dataclass(eq=False)
class Inversion:
    """An image inverted with DDIM, or a generated one, ready to be edited again and again.

    Safe to share between threads, and between editors: whoever changes what it holds, or moves it to another backend,
    has its ``lock``; steps run outside it, on what they were given.

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
    lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

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
        return cls.from_contents(Contents(steps, prompt, bundle_sha256, trajectory))

    @classmethod
    def from_contents(cls, contents: Contents) -> Inversion:
        made = cls(contents.steps, contents.prompt, contents.bundle_sha256, _trajectory=contents.trajectory)
        made.records.update(contents.records)
        return made

    @property
    def trajectory(self) -> NumpyArray:
        """All latents, [steps + 1, 1, C, h, w] float32, level 0 (clean) first. Copied from the device once."""
        with self.lock:
            if self._trajectory is None:
                assert self._levels is not None
                trajectory = np.stack([level.numpy() for level in self._levels])
                trajectory.setflags(write=False)
                self._trajectory = trajectory
            return self._trajectory

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        levels = self._levels
        shape = levels[0].shape if levels is not None else self.trajectory.shape
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
        with self.lock:
            if self._levels is None or self._backend is not backend:
                trajectory = self.trajectory
                moved = tuple(backend.upload(np.ascontiguousarray(level)) for level in trajectory)
                for record in self.records.values():
                    record.move_to_host()
                self._levels, self._backend = moved, backend
            return self._levels

    def drop_record(self, mode: str) -> int:
        """Give up what was recorded, unless another thread is at work on it.

        Returns:
            bytes that are free as soon as no running edit reads them.
        """
        if not self.lock.acquire(blocking=False):
            return 0
        try:
            dropped, self.records[mode] = self.records[mode], Record()
            return dropped.nbytes
        finally:
            self.lock.release()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and for other processes: all of it in the host's memory, with neither lock nor backend."""
        with self.lock:
            return {
                "steps": self.steps,
                "prompt": self.prompt,
                "bundle_sha256": self.bundle_sha256,
                "records": {mode: record.on_host() for mode, record in self.records.items()},
                "_trajectory": self.trajectory,
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _levels=None, _backend=None, lock=threading.RLock())

    def save(self, path: str | Path, records: bool = False) -> None:
        """Write everything needed to edit in another process; ``records``: what was recorded, too.

        Raises:
            OutputError: the file cannot be written.
        """
        from freeprompt.runtime.source.inversion_file import write_inversion

        # What is written is what is held now; edits by other threads need not wait for the disk.
        with self.lock:
            kept = {mode: record.on_host() for mode, record in self.records.items()} if records else {}
            contents = Contents(self.steps, self.prompt, self.bundle_sha256, self.trajectory, kept)
        write_inversion(contents, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Inversion:
        """Read what ``save`` wrote; runs no code from the file.

        Raises:
            InversionError: missing, damaged, or of another format. An inversion of another bundle is refused by
                the editor that is asked to edit it.
        """
        from freeprompt.runtime.source.inversion_file import read_inversion

        return cls.from_contents(read_inversion(Path(path)))
