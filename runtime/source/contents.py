"""What an inversion is made of, in the host's memory: what its file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freeprompt.contract.session import NumpyArray
from freeprompt.runtime.source.recording import Record


@dataclass(frozen=True, eq=False)
class Contents:
    """See ``freeprompt.runtime.source.inversion.Inversion``.

    Attributes:
        trajectory: all latents, [steps + 1, 1, C, h, w] float32, level 0 (clean) first.
        records: what was recorded, by mode.

    Raises:
        ValueError: the trajectory has another shape.
    """

    steps: int
    prompt: str
    bundle_sha256: str
    trajectory: NumpyArray
    records: Mapping[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.trajectory.shape
        if len(shape) != 5 or shape[:2] != (self.steps + 1, 1):
            raise ValueError(f"a trajectory of shape {shape} for {self.steps} steps")
