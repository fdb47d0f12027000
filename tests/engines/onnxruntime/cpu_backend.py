"""A CPU that stands for ONNX Runtime's CUDA provider, and checks of forms for CUDA on it."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import Array, HostArray, NumpyArray, Session
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.onnxruntime.cuda_check import CudaCheck, check_bundle
from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes
from freeprompt.engines.shapes import Shapes
from tests.engines.onnxruntime.cuda_reference import to_standard
from tests.shapes import shapes_of

VERSION = ort.__version__


class CpuBackend:
    """Stands for ``OnnxRuntimeBackend("cuda")``: computes what the kernels that only CUDA has are documented to.

    Args:
        wrong: "fused", "cuda" or "": which form gives half of what it should.
        missing: a kernel is, so that a form for CUDA cannot be opened.
    """

    name, device = "cuda", "cuda:0"

    def __init__(self, wrong: str = "", missing: bool = False) -> None:
        self.wrong, self.missing = wrong, missing
        self.opened: list[tuple[str, str]] = []

    def open(self, bundle: Bundle, graph: str) -> Session:
        raise AssertionError("a check opens models")

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        form = "fused" if model is None else "cuda"
        self.opened.append((graph, form))
        if model is not None and self.missing:
            raise BackendError("no kernel")
        session = OnnxRuntimeBackend("cpu", 1).open_model(bundle, graph, to_standard(model) if model else None)
        return Halved(session) if self.wrong == form else session

    def upload(self, array: NumpyArray) -> Array:
        return HostArray(array)


class Halved:
    """A session with a wrong kernel."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds: Any) -> dict[str, Array]:
        return {n: HostArray(0.5 * v.numpy()) for n, v in self._session.run(feeds).items()}


def usual(bundle: Bundle) -> Shapes:
    return shapes_of(bundle.manifest, (64, 64), rows="1,2")


def notes_of(bundle: Bundle, version: str = VERSION, device: str = "GPU") -> CudaNotes:
    return CudaNotes(bundle, version, device)


def refusals(bundle: Bundle, version: str = VERSION, device: str = "GPU") -> list[str]:
    return [str(found.refused) for found in notes_of(bundle, version, device).scan()]


def check(
    bundle: Bundle,
    *graphs: str,
    backend: CpuBackend | None = None,
    shapes: Shapes | None = None,
    device: str = "GPU",
) -> list[CudaCheck]:
    backend, notes = backend or CpuBackend(), notes_of(bundle, device=device)
    return list(check_bundle(bundle, shapes or usual(bundle), backend, notes, graphs))
