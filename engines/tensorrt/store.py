"""The engines of a bundle on disk: which there are, which may be used here, and why the others may not."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError
from freeprompt.contract.files import file_to_sha256, read_regular
from freeprompt.engines.artifacts.lock import LOCK_SECONDS, folder_lock
from freeprompt.engines.artifacts.metadata import (
    encode_metadata,
    make_folder,
    read_metadata,
    save_metadata,
    writing_with_metadata,
)
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.tensorrt.library import Flavour
from freeprompt.engines.tensorrt.metadata import EngineMetadata, metadata_from_json

PATTERN = "*.engine"


@dataclass(frozen=True)
class Machine:
    """What an engine must have been built for to run here.

    Attributes:
        tensorrt: version of the library.
        capability: compute capability of the GPU, as "8.6".
        device: its name.
    """

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
    """The engines that one library built of one bundle.

    Args:
        bundle: opened.
        flavour: of the library.
        machine: what it runs on; None where that is unknown, and then every engine is refused.
        trust: use engines that this user did not build.
        signature: for tests; None: the user's.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        machine: Machine | None,
        trust: bool = False,
        signature: Signature | None = None,
    ) -> None:
        self._bundle = bundle
        self._flavour = flavour
        self._machine = machine
        self._trust = trust
        self._signature = signature or Signature()
        self.folder = bundle.engines / flavour.backend

    def scan(self, graph: str | None = None) -> list[Found]:
        """Every engine in the folder, or those of one graph, in order of name. Reads metadata, not engines."""
        if not self.folder.is_dir():
            return []
        found = [self._examine(path) for path in sorted(self.folder.glob(PATTERN))]
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
        title = self._flavour.title
        command = f"freeprompt build {self._bundle.path} --backend {self._flavour.backend}"
        if not found:
            raise BackendError(f"the bundle has no {title} engine of graph {graph}; build it with '{command}'")
        reasons = "; ".join(f"{f.path.name}: {f.refused}" for f in found)
        raise BackendError(
            f"no {title} engine of graph {graph} can be used here ({reasons}); build it with '{command}'"
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

    def built(self, metadata: EngineMetadata) -> Found | None:
        """The engine of these dependencies, if it is there and whole and this user's: it need not be built again.

        One that this machine cannot run counts, where the library builds without a GPU.
        """
        path = self.path(metadata)
        if not path.exists():
            return None
        found = self._examine(path)
        known = found.metadata
        if known is None or self._doubt(path, known) or self._origin(known):
            return None
        try:
            return found if file_to_sha256(path) == known.engine_sha256 else None
        except OSError:
            return None

    def foreign(self) -> list[Found]:
        """Engines that are refused for their origin alone, as if they were not."""
        return [Found(each.path, each.metadata, None) for each in self.scan() if self._is_foreign(each)]

    def path(self, metadata: EngineMetadata) -> Path:
        """Where an engine is kept."""
        return self.folder / metadata.name

    def writing(self, metadata: EngineMetadata) -> contextlib.AbstractContextManager[Path]:
        """A temporary path for an engine; it has its name, and is refused still, when the block ends without an error.

        Raises:
            OutputError: the folder cannot be written.
        """
        return writing_with_metadata(self.path(metadata))

    def sign(self, metadata: EngineMetadata) -> None:
        """Write the signed metadata of an engine that was written: from now on it is used.

        Args:
            metadata: complete but for the signature.

        Raises:
            OutputError: the folder cannot be written.
        """
        save_metadata(self.path(metadata), encode_metadata(self._signature.apply(metadata)))

    def lock(
        self, name: str, timeout: float = LOCK_SECONDS, waiting: Callable[[str], None] = lambda line: None
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the build of ``name``, see ``folder_lock``."""
        make_folder(self.folder)
        return folder_lock(self.folder, name, timeout, waiting)

    def _examine(self, path: Path) -> Found:
        try:
            metadata = metadata_from_json(read_metadata(path))
            return Found(path, metadata, self._refusal(path, metadata))
        except (BackendError, OSError) as error:
            return Found(path, None, str(error))

    def _is_foreign(self, found: Found) -> bool:
        metadata = found.metadata
        if metadata is None or self._origin(metadata) is None or self._doubt(found.path, metadata):
            return False
        return self._machine is None or self._unfit(metadata) is None

    def _refusal(self, path: Path, metadata: EngineMetadata) -> str | None:
        """Why it may not be used here."""
        return self._doubt(path, metadata) or self._unfit(metadata) or self._origin(metadata)

    def _doubt(self, path: Path, metadata: EngineMetadata) -> str | None:
        """Why it may not be used anywhere."""
        flavour = self._flavour
        if metadata.name != path.name:
            return "its metadata belongs to another engine"
        if metadata.backend != flavour.backend:
            return f"it was built by {metadata.backend}, not by {flavour.backend}"
        try:
            graph_sha256 = self._bundle.graph_sha256(metadata.graph)
        except BundleError as error:
            return str(error)
        if metadata.graph_sha256 != graph_sha256:
            return "it was built from another version of the graph or its weights"
        if metadata.engine_bytes != path.stat().st_size:
            return f"it has {path.stat().st_size} bytes, its metadata says {metadata.engine_bytes}"
        # Built without a GPU, it is checked where it is first loaded.
        if metadata.passed or (flavour.builds_without_gpu and not metadata.parity):
            return None
        worst = max((p.relative_l2 for p in metadata.parity), default=float("nan"))
        return (
            f"it failed parity with ONNX Runtime on the CPU ({worst:.1e}, {metadata.parity_threshold:.0e} is allowed)"
        )

    def _unfit(self, metadata: EngineMetadata) -> str | None:
        """Why it is not for this machine."""
        machine, flavour = self._machine, self._flavour
        if machine is None:
            return f"{flavour.title} or the GPU cannot be used here"
        if metadata.tensorrt != machine.tensorrt:
            return f"built with {flavour.title} {metadata.tensorrt}, this is {machine.tensorrt}"
        if not flavour.covers(metadata.capabilities, machine.capability):
            built = ", ".join(metadata.capabilities or flavour.portable)
            return f"built for compute capability {built}, this GPU has {machine.capability}"
        return None

    def _origin(self, metadata: EngineMetadata) -> str | None:
        """Why it is not trusted."""
        if self._trust or self._signature.holds(metadata):
            return None
        command = f"freeprompt build --backend {self._flavour.backend} --trust"
        return (
            "it was not built by this user on this machine, and an engine is code; "
            f"if you trust its origin, '{command}' checks and adopts it"
        )
