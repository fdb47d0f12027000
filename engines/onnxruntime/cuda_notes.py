"""Notes on the graphs' forms for CUDA: how right and how fast each was found to be here, and so whether it may be used.

The forms are the bundle's own. A note is some hundred bytes of signed JSON, one for each graph, version of onnxruntime
and GPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError
from freeprompt.contract.files import read_regular
from freeprompt.contract.parity import Parity
from freeprompt.engines.artifacts.lock import folder_lock
from freeprompt.engines.artifacts.metadata import (
    MAX_METADATA_BYTES,
    decode_metadata,
    encode_metadata,
    make_folder,
    save_file,
)
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.cuda.runtime import CudaRuntime

FOLDER = "cuda"
# 1 described graphs that were rewritten on the device.
NOTE_VERSION = 2


@dataclass(frozen=True)
class CudaTiming:
    """Median milliseconds of a run at some shapes: by the fused form, and by that for CUDA."""

    shapes: str
    fused_ms: float
    cuda_ms: float


@dataclass(frozen=True)
class CudaNote:
    """What a check found of a graph's form for CUDA.

    The first block is what it holds for, and gives the note its name; the second is what was found. ``device`` is empty
    where the GPU's name could not be read; ``failure`` is why the form could not be run at all.
    """

    graph: str
    forms_sha256: str
    onnxruntime: str
    device: str = ""

    seconds: float = 0.0
    parity: tuple[Parity, ...] = ()
    parity_threshold: float = 0.0
    timings: tuple[CudaTiming, ...] = ()
    failure: str = ""
    seal: str = ""
    version: int = NOTE_VERSION

    @property
    def name(self) -> str:
        """File name of the note."""
        fields = (self.version, self.graph, self.forms_sha256, self.onnxruntime, self.device)
        return f"{self.graph}-{hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:16]}.json"

    @property
    def shapes(self) -> set[str]:
        """What the form was checked and timed at."""
        return {timing.shapes for timing in self.timings}

    @property
    def problem(self) -> str | None:
        """Why the measurements speak against the form, or None."""
        if self.failure:
            return f"it cannot be run here: {self.failure}"
        worst = max((p.relative_l2 for p in self.parity), default=float("inf"))
        if not worst <= self.parity_threshold:
            return (
                f"it differs from ONNX Runtime on the CPU by {worst:.1e}, {self.parity_threshold:.0e} is allowed; "
                "a kernel of this onnxruntime-gpu is wrong on this GPU"
            )
        fused, cuda = (sum(t.fused_ms for t in self.timings), sum(t.cuda_ms for t in self.timings))
        if not cuda <= fused:
            return f"it is slower here than the fused form ({cuda:.3g} ms, {fused:.3g} ms by the fused form)"
        return None


def note_from_json(data: bytes) -> CudaNote:
    """Raises BackendError if it is no note of this version."""
    return decode_metadata(data, CudaNote, NOTE_VERSION)


@dataclass(frozen=True)
class FoundNote:
    """A note on disk. ``refused`` says why the form may not be used by it; None: it may."""

    path: Path
    note: CudaNote | None
    refused: str | None


class CudaNotes:
    """The notes on one bundle's forms for CUDA.

    Args:
        bundle: opened.
        onnxruntime: version of the library that will run them.
        device: the GPU's name; None asks CUDA, and "" (it cannot be asked) fits every note.
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

    def begin(self, graph: str) -> CudaNote:
        """A note of here and now that says nothing yet. Raises BundleError if the graph has no form for CUDA."""
        return CudaNote(graph, self._forms_sha256(graph), self._onnxruntime, self.device)

    def find(self, graph: str) -> CudaNote | None:
        """The note by which a graph's form for CUDA may be used here; None: there is none."""
        for found in self._read(f"{graph}-*.json"):
            if found.note is not None and found.note.graph == graph and found.refused is None:
                return found.note
        return None

    def model(self, graph: str) -> bytes | None:
        """The ONNX file of a graph's form for CUDA if it may be used here; its weights are the bundle's.

        Raises:
            BundleError: there is no such graph, or the file was changed since the bundle was opened.
        """
        form = self._bundle.manifest.graph(graph).cuda
        return None if form is None or self.find(graph) is None else self._bundle.read(form.file)

    def scan(self) -> list[FoundNote]:
        """Every note in the folder, in order of name."""
        return self._read("*.json")

    def save(self, note: CudaNote) -> FoundNote:
        """Sign and write a note.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.folder / note.name
        make_folder(self.folder)
        save_file(path, encode_metadata(self._signature.apply(note)))
        return self._examine(path)

    def lock(self, graph: str) -> contextlib.AbstractContextManager[None]:
        """Hold the check of a graph, see ``folder_lock``: two at once would time each other."""
        make_folder(self.folder)
        return folder_lock(self.folder, graph)

    def _read(self, pattern: str) -> list[FoundNote]:
        if not self.folder.is_dir():
            return []
        return [self._examine(path) for path in sorted(self.folder.glob(pattern))]

    def _examine(self, path: Path) -> FoundNote:
        try:
            note = note_from_json(read_regular(path, MAX_METADATA_BYTES, follow_links=False))
            return FoundNote(path, note, self._refusal(path, note))
        except OSError as error:
            return FoundNote(path, None, f"it cannot be read: {error.strerror or error}")
        except BackendError as error:
            return FoundNote(path, None, str(error))

    def _refusal(self, path: Path, note: CudaNote) -> str | None:
        if note.name != path.name:
            return "it belongs to another graph"
        try:
            if note.forms_sha256 != self._forms_sha256(note.graph):
                return "it is of another version of the graph or its weights"
        except BundleError as error:
            return str(error)
        if note.onnxruntime != self._onnxruntime:
            return f"checked with onnxruntime {note.onnxruntime}, this is {self._onnxruntime}"
        if note.device and self.device and note.device != self.device:
            return f"checked on {note.device}, this is {self.device}"
        if not self._signature.holds(note):
            return "it was not written by this user on this machine, so that nobody here has checked the graph"
        return note.problem

    def _forms_sha256(self, graph: str) -> str:
        """Of both forms that are compared, with their weights."""
        return self._bundle.onnx_sha256(self._bundle.graph_name(graph, fused=True), self._bundle.cuda_name(graph))


@functools.cache
def _device_name() -> str:
    """Asked once: every graph that is opened needs it."""
    try:
        return CudaRuntime().info().name
    except BackendError:
        return ""
