"""What is known of a built engine, kept beside it: what it was built from, for what, and how right it is."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import msgspec

from freeprompt.bundle import Bundle
from freeprompt.engines.tensorrt_profile import Profile
from freeprompt.errors import BackendError, OutputError

RECORD_VERSION = 1


@dataclass(frozen=True)
class EngineParity:
    """One comparison of the engine with ONNX Runtime on the CPU, on seeded inputs."""

    shapes: str
    relative_l2: float
    max_abs: float


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar of an engine.

    The first block is what the engine depends on, and together its key; the second is what the build found.
    ``fused_attention`` is None where the inspector does not show single kernels; ``seal`` proves that this user built
    it (see ``Seal``).
    """

    graph: str
    graph_sha256: str
    tensorrt: str
    capability: str
    precision: str
    profiles: tuple[Profile, ...]
    baked: bool
    optimization_level: int
    weight_streaming: bool
    workspace_bytes: Optional[int]

    device: str = ""
    engine_sha256: str = ""
    engine_bytes: int = 0
    build_seconds: float = 0.0
    device_memory_bytes: int = 0
    layers: int = 0
    attention_layers: int = 0
    fused_attention: Optional[int] = None
    parity: tuple[EngineParity, ...] = ()
    parity_threshold: float = 0.0
    seal: str = ""
    version: int = RECORD_VERSION

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
            self.weight_streaming,
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


def record_to_json(record: EngineRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def record_from_json(data: bytes) -> EngineRecord:
    """Raises BackendError if it is not a sidecar of this version."""
    try:
        record = msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError(f"the engine's sidecar cannot be read: {error}") from error
    if record.version != RECORD_VERSION:
        raise BackendError(
            f"the engine's sidecar has version {record.version}, this freeprompt reads {RECORD_VERSION}; build it again"
        )
    return record


def graph_to_sha256(bundle: Bundle, graph: str) -> str:
    """Hash of a graph and of the weights it refers to, from the manifest's hashes.

    ONNX keeps the name of an external file as plain bytes, so that looking for it needs no parser.
    """
    manifest = bundle.manifest
    file = manifest.graph(graph).file
    content = bundle.graph_path(graph).read_bytes()
    digest = hashlib.sha256()
    for spec in sorted(manifest.files, key=lambda spec: spec.path):
        if spec.path == file or spec.path.encode() in content:
            digest.update(f"{spec.path}\0{spec.sha256}\n".encode())
    return digest.hexdigest()


class Seal:
    """A secret of this user on this machine, by which an engine built here is told from one that was copied in.

    A TensorRT engine is code: loading a stranger's is running it. The sidecar of an engine built here carries a keyed
    hash that nobody without the secret can make.

    Args:
        path: of the secret; None: freeprompt/engine-seal in the user's data folder.
    """

    def __init__(self, path: Optional[Path] = None) -> None:
        if path is None:
            home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
            path = Path(home) / "freeprompt" / "engine-seal"
        self._path = path

    def apply(self, record: EngineRecord) -> EngineRecord:
        """The record with its seal. Makes the secret if there is none yet.

        Raises:
            OutputError: the secret cannot be written.
        """
        return replace(record, seal=self._sign(record, self._secret(create=True)))

    def holds(self, record: EngineRecord) -> bool:
        """Whether this user sealed the record as it is."""
        secret = self._secret(create=False)
        return bool(secret) and hmac.compare_digest(record.seal, self._sign(record, secret))

    def token(self, label: str) -> str:
        """A name that only this user's machine gives to ``label``: a folder that nobody else can have filled."""
        return hmac.new(self._secret(create=True), label.encode(), hashlib.sha256).hexdigest()[:16]

    def _sign(self, record: EngineRecord, secret: bytes) -> str:
        content = msgspec.json.encode(replace(record, seal=""))
        return hmac.new(secret, content, hashlib.sha256).hexdigest()

    def _secret(self, create: bool) -> bytes:
        try:
            if create and not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                handle = os.open(self._path, flags, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(secrets.token_bytes(32))
            return self._path.read_bytes()
        except FileExistsError:  # another process made it in between
            return self._path.read_bytes()
        except OSError as error:
            if not create:
                return b""
            raise OutputError(f"cannot keep the engines' seal at {self._path}: {error}") from error
