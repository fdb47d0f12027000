"""What is known of a built engine, kept beside it: what it was built from, for what, and how right it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from freeprompt.contract.parity import Parity
from freeprompt.engines.artifacts.metadata import decode_metadata
from freeprompt.engines.shapes import Profile

METADATA_VERSION = 2


@dataclass(frozen=True)
class EngineMetadata:
    """The metadata of an engine.

    The first block is what the engine depends on, and together its key; the second is what the build found.

    Attributes:
        backend: name of the library, as of ``FLAVOURS``.
        tensorrt: its version.
        capabilities: compute capabilities of the GPUs it was built for, as "8.6"; none: portable over all that the
            library lists.
        device: that it was built and checked on; "" without a GPU.
        peak_memory_bytes: most memory that its build has held; 0 where that is not known.
        warnings: of the library while it was built.
        layers: 0 where it was built without a GPU, which cannot look into it.
        fused_attention: None where the inspector does not show single kernels, or could not look.
        parity: with ONNX Runtime on the CPU, measured at the build; empty where there was no GPU to run it.
        seal: proves that this user built it (see ``Signature``).
    """

    graph: str
    graph_sha256: str
    backend: str
    tensorrt: str
    capabilities: tuple[str, ...]
    precision: str
    profiles: tuple[Profile, ...]
    baked: bool
    optimization_level: int
    workspace_bytes: int | None

    device: str = ""
    engine_sha256: str = ""
    engine_bytes: int = 0
    build_seconds: float = 0.0
    peak_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()
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
            self.backend,
            self.tensorrt,
            self.capabilities,
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
    def targets(self) -> str:
        """The GPUs it was built for, for messages: "sm86, sm120" or "portable"."""
        return ", ".join(f"sm{name.replace('.', '')}" for name in self.capabilities) or "portable"

    @property
    def passed(self) -> bool:
        """Whether parity was measured on every profile and is within the bound. NaN is not."""
        measured = len(self.parity) >= len(self.profiles) > 0
        return measured and all(p.relative_l2 <= self.parity_threshold for p in self.parity)


def metadata_from_json(data: bytes) -> EngineMetadata:
    """Raises BackendError if it is not metadata of this version."""
    return decode_metadata(data, EngineMetadata, METADATA_VERSION)
