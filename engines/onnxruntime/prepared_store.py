"""The graphs of a bundle that were prepared for CUDA: which there are, which may be used here, why the others not."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError
from freeprompt.contract.files import read_regular
from freeprompt.engines.artifacts.lock import folder_lock
from freeprompt.engines.artifacts.metadata import encode_metadata, make_folder, read_metadata, save_with_metadata
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.onnxruntime.prepared_metadata import PreparedMetadata, prepared_metadata_from_json

FOLDER = "cuda"
# A prepared graph is about a megabyte: it holds no weights.
MAX_MODEL_BYTES = 1 << 28


@dataclass(frozen=True)
class Prepared:
    """A prepared graph. ``refused`` says why it may not be used; None: it may, and ``model`` is its ONNX file."""

    path: Path
    metadata: PreparedMetadata | None
    refused: str | None
    model: bytes = b""


class CudaStore:
    """The prepared graphs of one bundle.

    Args:
        bundle: opened.
        onnxruntime: version of the library that will run them.
        device: the GPU's name; None asks CUDA, and "" (it cannot be asked) fits every graph.
        signature: for tests; None: the user's.
    """

    def __init__(
        self, bundle: Bundle, onnxruntime: str, device: str | None = None, signature: Signature | None = None
    ) -> None:
        self._bundle = bundle
        self._onnxruntime = onnxruntime
        self._device = device
        self._signature = signature or Signature()
        self.folder = bundle.engines / FOLDER

    @property
    def device(self) -> str:
        """Name of the GPU, "" where there is no cuda-core to ask."""
        if self._device is None:
            self._device = _device_name()
        return self._device

    def metadata(self, graph: str) -> PreparedMetadata:
        """What a graph prepared here and now depends on."""
        return PreparedMetadata(graph, self._bundle.graph_sha256(graph, fused=True), self._onnxruntime, self.device)

    def find(self, graph: str) -> Prepared | None:
        """The graph as prepared for this version of the library, to be used or not; None: it was not prepared."""
        if not self.folder.is_dir():
            return None
        path = self.folder / self.metadata(graph).name
        return self._examine(path) if path.is_file() else None

    def model(self, graph: str) -> bytes | None:
        """The ONNX file of a prepared graph that may be used here; its weights are named relative to the bundle."""
        found = self.find(graph)
        return found.model if found is not None and found.refused is None else None

    def scan(self) -> list[Prepared]:
        """Every prepared graph in the folder, in order of name."""
        if not self.folder.is_dir():
            return []
        return [self._examine(path) for path in sorted(self.folder.glob("*.onnx"))]

    def save(self, metadata: PreparedMetadata, model: bytes) -> Prepared:
        """Write a prepared graph and its signed metadata; the metadata last, since a graph without it is refused.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.folder / metadata.name
        save_with_metadata(path, model, encode_metadata(self._signature.apply(metadata)))
        return self._examine(path)

    def lock(self, graph: str) -> contextlib.AbstractContextManager[None]:
        """Hold the preparation of a graph, see ``folder_lock``."""
        make_folder(self.folder)
        return folder_lock(self.folder, graph)

    def _examine(self, path: Path) -> Prepared:
        try:
            metadata = prepared_metadata_from_json(read_metadata(path))
            model = read_regular(path, MAX_MODEL_BYTES, follow_links=False)
            return Prepared(path, metadata, self._refusal(path, metadata, model), model)
        except OSError as error:
            return Prepared(path, None, f"it cannot be read: {error.strerror or error}")
        except BackendError as error:
            return Prepared(path, None, str(error))

    def _refusal(self, path: Path, metadata: PreparedMetadata, model: bytes) -> str | None:
        if metadata.name != path.name:
            return "its metadata belongs to another graph"
        try:
            if metadata.graph_sha256 != self._bundle.graph_sha256(metadata.graph, fused=True):
                return "it was prepared from another version of the graph or its weights"
        except BundleError as error:
            return str(error)
        if metadata.onnxruntime != self._onnxruntime:
            return f"prepared with onnxruntime {metadata.onnxruntime}, this is {self._onnxruntime}"
        if metadata.device and self.device and metadata.device != self.device:
            return f"checked on {metadata.device}, this is {self.device}"
        if hashlib.sha256(model).hexdigest() != metadata.model_sha256:
            return "it is damaged or was replaced: its SHA-256 is not its metadata's"
        if not self._signature.holds(metadata):
            return "it was not prepared by this user on this machine, so that nobody here has checked it"
        return metadata.problem


@functools.cache
def _device_name() -> str:
    """Asked once: every graph that is opened needs it."""
    try:
        return CudaRuntime().info().name
    except BackendError:
        return ""
