"""The engines of a bundle on disk: which there are, which may be used here, and why the others may not."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError
from freeprompt.contract.files import read_regular
from freeprompt.engines.artifacts.lock import LOCK_SECONDS, folder_lock
from freeprompt.engines.artifacts.metadata import (
    encode_metadata,
    make_folder,
    read_metadata,
    save_metadata,
    save_with_metadata,
)
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.tensorrt.metadata import EngineMetadata, metadata_from_json

FOLDER = "tensorrt"


@dataclass(frozen=True)
class Machine:
    """What an engine must have been built for to run here."""

    tensorrt: str
    capability: str
    device: str = ""


@dataclass(frozen=True)
class Found:
    """An engine file. ``refused`` says why it may not be used; None: it may."""

    path: Path
    metadata: EngineMetadata | None
    refused: str | None


class EngineStore:
    """The engines of one bundle.

    Args:
        bundle: opened.
        machine: what it runs on; None where that is unknown, and then every engine is refused.
        trust: use engines that this user did not build.
        signature: for tests; None: the user's.
    """

    def __init__(
        self,
        bundle: Bundle,
        machine: Machine | None,
        trust: bool = False,
        signature: Signature | None = None,
    ) -> None:
        self._bundle = bundle
        self._machine = machine
        self._trust = trust
        self._signature = signature or Signature()
        self.folder = bundle.engines / FOLDER

    def scan(self, graph: str | None = None) -> list[Found]:
        """Every engine in the folder, or those of one graph, in order of name. Reads metadata, not engines."""
        if not self.folder.is_dir():
            return []
        found = [self._examine(path) for path in sorted(self.folder.glob("*.engine"))]
        if graph is None:
            return found
        prefix = f"{graph}-"
        return [f for f in found if (f.metadata.graph == graph if f.metadata else f.path.name.startswith(prefix))]

    def usable(self, graph: str) -> list[Found]:
        """Engines of a graph that may be loaded here.

        Raises:
            BackendError: none; it says what there is and how to build one.
        """
        found = self.scan(graph)
        usable = [f for f in found if f.refused is None]
        if usable:
            return usable
        command = f"freeprompt build {self._bundle.path}"
        if not found:
            raise BackendError(f"the bundle has no TensorRT engine of graph {graph}; build it with '{command}'")
        reasons = "; ".join(f"{f.path.name}: {f.refused}" for f in found)
        raise BackendError(
            f"no TensorRT engine of graph {graph} can be used here ({reasons}); build it with '{command}'"
        )

    def read(self, found: Found) -> bytes:
        """The engine's bytes, checked against its metadata.

        Raises:
            BackendError: it was refused, or is not the file that was built.
        """
        if found.refused is not None or found.metadata is None:
            raise BackendError(f"engine {found.path.name} is refused: {found.refused}")
        try:
            data = read_regular(found.path, found.metadata.engine_bytes, follow_links=False)
        except OSError as error:
            raise BackendError(f"engine {found.path.name} cannot be read: {error}") from error
        # An engine is code: what is compared is the very memory that is loaded.
        if hashlib.sha256(data).hexdigest() != found.metadata.engine_sha256:
            raise BackendError(
                f"engine {found.path.name} is damaged or was replaced: its SHA-256 is not its "
                "metadata's; build it again"
            )
        return data

    def save(self, metadata: EngineMetadata, engine: Any) -> Path:
        """Write an engine and its signed metadata; the metadata last, since an engine without it is refused.

        Args:
            metadata: complete but for the signature.
            engine: its bytes, or any buffer.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.folder / metadata.name
        save_with_metadata(path, engine, encode_metadata(self._signature.apply(metadata)))
        return path

    def adopt(self, found: Found, metadata: EngineMetadata) -> None:
        """Sign an engine from elsewhere that the user asked to trust and that passed its checks here."""
        save_metadata(found.path, encode_metadata(self._signature.apply(metadata)))

    def lock(self, name: str, timeout: float = LOCK_SECONDS) -> contextlib.AbstractContextManager[None]:
        """Hold the build of ``name``, see ``folder_lock``."""
        make_folder(self.folder)
        return folder_lock(self.folder, name, timeout)

    def _examine(self, path: Path) -> Found:
        try:
            metadata = metadata_from_json(read_metadata(path))
            return Found(path, metadata, self._refusal(path, metadata))
        except (BackendError, OSError) as error:
            return Found(path, None, str(error))

    def _refusal(self, path: Path, metadata: EngineMetadata) -> str | None:
        machine = self._machine
        if metadata.name != path.name:
            return "its metadata belongs to another engine"
        try:
            graph_sha256 = self._bundle.graph_sha256(metadata.graph)
        except BundleError as error:
            return str(error)
        if metadata.graph_sha256 != graph_sha256:
            return "it was built from another version of the graph or its weights"
        if machine is None:
            return "TensorRT or the GPU cannot be used here"
        if metadata.tensorrt != machine.tensorrt:
            return f"built with TensorRT {metadata.tensorrt}, this is {machine.tensorrt}"
        if metadata.capability != machine.capability:
            return f"built for compute capability {metadata.capability}, this GPU has {machine.capability}"
        if metadata.engine_bytes != path.stat().st_size:
            return f"it has {path.stat().st_size} bytes, its metadata says {metadata.engine_bytes}"
        if not metadata.passed:
            worst = max((p.relative_l2 for p in metadata.parity), default=float("nan"))
            return (
                f"it failed parity with ONNX Runtime on the CPU ({worst:.1e}, "
                f"{metadata.parity_threshold:.0e} is allowed)"
            )
        if not self._trust and not self._signature.holds(metadata):
            return (
                "it was not built by this user on this machine, and an engine is code; "
                "if you trust its origin, 'freeprompt build --trust' checks and adopts it"
            )
        return None
