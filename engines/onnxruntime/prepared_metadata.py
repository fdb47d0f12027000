"""What is known of a graph prepared for CUDA, kept beside it: from what, with what, how right and how fast it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec

from freeprompt.contract.parity import Parity
from freeprompt.engines.artifacts.metadata import decode_metadata

METADATA_VERSION = 1


@dataclass(frozen=True)
class CudaTiming:
    """Median milliseconds of a run at some shapes: of the graph as exported, and as prepared."""

    shapes: str
    exported_ms: float
    prepared_ms: float


@dataclass(frozen=True)
class PreparedMetadata:
    """The metadata of a prepared graph.

    The first block is what it depends on, and together its key; the second is what the build found.
    ``operators`` counts the nodes that stand for several; ``device`` is empty where the GPU's name could not be read;
    ``failure`` is why it could not be run at all.
    """

    graph: str
    graph_sha256: str
    onnxruntime: str

    device: str = ""
    operators: dict[str, int] = field(default_factory=dict)
    model_sha256: str = ""
    seconds: float = 0.0
    parity: tuple[Parity, ...] = ()
    parity_threshold: float = 0.0
    timings: tuple[CudaTiming, ...] = ()
    failure: str = ""
    seal: str = ""
    version: int = METADATA_VERSION

    @property
    def name(self) -> str:
        """File name of the prepared graph: what it depends on gives it."""
        fields = (self.version, self.graph, self.graph_sha256, self.onnxruntime)
        return f"{self.graph}-{hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:16]}.onnx"

    @property
    def shapes(self) -> set[str]:
        """What it was checked and timed at."""
        return {timing.shapes for timing in self.timings}

    @property
    def problem(self) -> str | None:
        """Why the measurements speak against it, or None."""
        if self.failure:
            return f"it cannot be run here: {self.failure}"
        worst = max((p.relative_l2 for p in self.parity), default=float("inf"))
        if not worst <= self.parity_threshold:
            return (
                f"it differs from ONNX Runtime on the CPU by {worst:.1e}, {self.parity_threshold:.0e} is allowed; "
                "a kernel of this onnxruntime-gpu is wrong on this GPU"
            )
        exported, prepared = (sum(t.exported_ms for t in self.timings), sum(t.prepared_ms for t in self.timings))
        if not prepared <= exported:
            return f"it is slower here than the graph as exported ({prepared:.3g} ms, {exported:.3g} ms as exported)"
        return None


def prepared_metadata_from_json(data: bytes) -> PreparedMetadata:
    """Raises BackendError if it is not metadata of this version."""
    return decode_metadata(data, PreparedMetadata, METADATA_VERSION)
