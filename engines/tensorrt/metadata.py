"""What is known of a built engine, kept beside it: what it was built from, for what, and how right it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from freeprompt.contract.parity import Parity
from freeprompt.engines.artifacts.metadata import decode_metadata
from freeprompt.engines.shapes import Profile

METADATA_VERSION = 1


@dataclass(frozen=True)
class EngineMetadata:
    """The metadata of an engine.

    The first block is what the engine depends on, and together its key; the second is what the build found.
    ``fused_attention`` is None where the inspector does not show single kernels; ``seal`` proves that this user built
    it (see ``Signature``).
    """

    graph: str
    graph_sha256: str
    tensorrt: str
    capability: str
    precision: str
    profiles: tuple[Profile, ...]
    baked: bool
    optimization_level: int
    workspace_bytes: int | None

    device: str = ""
    engine_sha256: str = ""
    engine_bytes: int = 0
    build_seconds: float = 0.0
    device_memory_bytes: int = 0
    layers: int = 0
    attention_layers: int = 0
    fused_attention: int | None = None
    parity: tuple[Parity, ...] = ()
    parity_threshold: float = 0.0
    seal: str = ""
    version: int = METADATA_VERSION

    @property
    def key(self) -> str:
        """Hash of everything the engine depends on."""
        fields = (
            self.version,
            self.graph,
            self.graph_sha256,
            self.tensorrt,
            self.capability,
            self.precision,
            self.profiles,
            self.baked,
            self.optimization_level,
            self.workspace_bytes,
        )
        return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()

    @property
    def name(self) -> str:
        """File name of the engine."""
        return f"{self.graph}-{self.key[:16]}.engine"

    @property
    def passed(self) -> bool:
        """Whether parity was measured on every profile and is within the bound. NaN is not."""
        measured = len(self.parity) >= len(self.profiles) > 0
        return measured and all(p.relative_l2 <= self.parity_threshold for p in self.parity)


def metadata_from_json(data: bytes) -> EngineMetadata:
    """Raises BackendError if it is not metadata of this version."""
    return decode_metadata(data, EngineMetadata, METADATA_VERSION)
