"""How a checkpoint is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Literal

from freeprompt.errors import UsageError
from freeprompt.export.onnx_graph import DEFAULT_OPSET

Progress = Callable[[str], None]
Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
PROFILES = ("memory", "latency")


@dataclass(frozen=True)
class ExportSettings:
    """How a checkpoint is exported.

    Attributes:
        precision: of the weights; latents, guidance and scheduler are float32 either way.
        opset: ONNX operator set.
        profile: "memory" holds the one step graph that does everything; "latency" also the graphs that record and
            use recorded hidden states, which share its weights on disk.
    """

    precision: Precision = "float32"
    opset: int = DEFAULT_OPSET
    profile: str = "latency"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; use {' or '.join(PRECISIONS)}")
        if self.profile not in PROFILES:
            raise UsageError(f"unknown profile {self.profile!r}; use {' or '.join(PROFILES)}")
        if not 18 <= self.opset <= 23:
            raise UsageError(f"opset must be from 18 to 23, not {self.opset}")
