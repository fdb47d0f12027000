"""ONNX Runtime: the CPU provider everywhere, the CUDA and TensorRT providers where the installed build has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import onnxruntime as ort

from freeprompt.bundle import Bundle
from freeprompt.engines.session import Array, Feed, HostArray, NumpyArray, check_feeds
from freeprompt.errors import BackendError
from freeprompt.manifest import TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
# Warnings of the library are about its own choices (a node placed on the CPU, a transformer skipped); errors are raised.
_LOG_ERROR = 3


def available() -> tuple[str, ...]:
    """Names of the ONNX Runtime backends that the installed build has."""
    providers = ort.get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider in providers)


@dataclass(frozen=True)
class DeviceArray:
    """A tensor in CUDA memory, held by ONNX Runtime."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.value.data_type()])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def numpy(self) -> NumpyArray:
        result: NumpyArray = self.value.numpy()
        return result


class OnnxRuntimeSession:
    """One graph in one ``onnxruntime.InferenceSession``."""

    def __init__(self, graph: str, session: Any, specs: tuple[TensorSpec, ...], on_device: bool):
        self._graph = graph
        self._session = session
        self._on_device = on_device
        self._inputs = _specs(session.get_inputs())
        self._outputs = _specs(session.get_outputs())
        expected = {spec.name: (spec.dtype, len(spec.shape)) for spec in specs}
        found = {spec.name: (spec.dtype, len(spec.shape)) for spec in self._inputs}
        if expected != found:
            raise BackendError(
                f"graph {graph} has inputs {[str(s) for s in self._inputs]}, "
                f"the manifest says {[str(s) for s in specs]}"
            )
        # The manifest's names for dimensions tie the inputs to each other; the file's own need not.
        self._checked = specs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        check_feeds(self._graph, self._checked, feeds)
        try:
            return self._run_on_device(feeds) if self._on_device else self._run_on_host(feeds)
        except Exception as error:  # the library raises plain RuntimeError and classes of its own
            raise BackendError(f"graph {self._graph} failed in ONNX Runtime: {error}") from error

    def _run_on_host(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        values = {
            name: feed if isinstance(feed, np.ndarray) else feed.numpy()
            for name, feed in feeds.items()
        }
        names = [spec.name for spec in self._outputs]
        results = self._session.run(names, values)
        return {name: HostArray(result) for name, result in zip(names, results)}

    def _run_on_device(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, DeviceArray):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                binding.bind_cpu_input(
                    name, np.ascontiguousarray(feed if isinstance(feed, np.ndarray) else feed.numpy())
                )
        for spec in self._outputs:
            binding.bind_output(spec.name, "cuda")
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return {spec.name: DeviceArray(value) for spec, value in zip(self._outputs, values)}


class OnnxRuntimeBackend:
    """Sessions on one ONNX Runtime provider.

    Args:
        name: "cpu" or "cuda".
        threads: threads within an operator on the CPU; None lets the library use every core.

    Raises:
        BackendError: the installed onnxruntime has no such provider.
    """

    def __init__(self, name: str = "cpu", threads: Optional[int] = None) -> None:
        if name not in available():
            raise BackendError(
                f"the installed onnxruntime {ort.__version__} has no {PROVIDERS.get(name, name)}; "
                f"it has {', '.join(ort.get_available_providers())}. "
                "For CUDA install onnxruntime-gpu instead of onnxruntime"
            )
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, not {threads}")
        self._name = name
        self._threads = threads

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> str:
        return "cpu" if self._name == "cpu" else "cuda:0"

    def open(self, bundle: Bundle, graph: str) -> OnnxRuntimeSession:
        spec = bundle.manifest.graph(graph)
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_ERROR
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = ort.InferenceSession(
                str(bundle.graph_path(graph)), options, providers=[PROVIDERS[self._name]]
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load graph {graph}: {error}"
            ) from error
        if PROVIDERS[self._name] not in session.get_providers():
            # The library falls back to the CPU with no more than a log line when CUDA cannot be initialised.
            raise BackendError(
                f"ONNX Runtime could not use {PROVIDERS[self._name]} on this machine; "
                "check the driver and that its CUDA and cuDNN match this onnxruntime-gpu"
            )
        return OnnxRuntimeSession(graph, session, spec.inputs, self._name != "cpu")

    def upload(self, array: NumpyArray) -> Array:
        if self._name == "cpu":
            return HostArray(np.array(array))
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
        return DeviceArray(value)


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(v.name, _DTYPES.get(v.type, v.type), tuple(v.shape)) for v in values
    )
