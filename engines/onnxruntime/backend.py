"""ONNX Runtime: the CPU provider everywhere, the CUDA and TensorRT providers where the installed build has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import GraphSpec, TensorSpec
from freeprompt.contract.session import (
    Array,
    Feed,
    HostArray,
    NumpyArray,
    Session,
    check_feeds,
    check_results,
    check_signature,
)
from freeprompt.engines.onnxruntime.interrupts import InterruptWatch
from freeprompt.engines.onnxruntime.library import (
    PROVIDERS,
    Provider,
    check_available,
    cuda_model,
    cuda_options,
    failure,
    load_libraries,
    onnxruntime_runner,
    open_session,
    tensorrt_options,
)
from freeprompt.engines.verify import verify_session

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


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
    """One graph in one ``onnxruntime.InferenceSession``.

    Ctrl-C ends a run that is under way on the main thread, and leaves the session usable.

    Args:
        spec: what the manifest says of the graph.
        watch: shared by the sessions of a backend.
    """

    def __init__(
        self, graph: str, session: Any, spec: GraphSpec, on_device: bool, watch: InterruptWatch | None = None
    ) -> None:
        self._graph = graph
        self._session = session
        self._on_device = on_device
        self._watch = watch or InterruptWatch()
        self._inputs, self._outputs = session_to_specs(graph, session, spec)
        # The manifest's names for dimensions tie tensors to each other; the file's own need not.
        self._spec = spec

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        sizes = check_feeds(self._graph, self._spec.inputs, feeds)
        try:
            results = self._run_on_device(feeds) if self._on_device else self._run_on_host(feeds)
        except Exception as error:  # the library raises plain RuntimeError and classes of its own
            raise failure(self._graph, error, not self._on_device) from error
        check_results(self._graph, self._spec.outputs, results, sizes)
        return results

    def _run_on_host(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        values = {name: feed if isinstance(feed, np.ndarray) else feed.numpy() for name, feed in feeds.items()}
        names = [spec.name for spec in self._outputs]
        results = self._watch.run(lambda options: self._session.run(names, values, options), ort.RunOptions())
        return {name: HostArray(result) for name, result in zip(names, results)}

    def _run_on_device(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, DeviceArray):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                values = feed if isinstance(feed, np.ndarray) else feed.numpy()
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for spec in self._outputs:
            # Memory of its own for each result, from the library's pool: an array never changes once returned.
            binding.bind_output(spec.name, "cuda")
        self._watch.run(lambda options: self._session.run_with_iobinding(binding, options), ort.RunOptions())
        values = binding.get_outputs()
        return {spec.name: DeviceArray(value) for spec, value in zip(self._outputs, values)}


class OnnxRuntimeBackend:
    """Sessions on one ONNX Runtime provider.

    Args:
        name: "cpu", "cuda" or "ort-tensorrt" (whose engines are kept in the bundle).
        threads: threads within an operator on the CPU; None lets the library use every core.
        fused: False runs the standard form of each graph instead of that with ONNX Runtime's own operators: the same
            result from more memory, to compare.
        cuda_form: False runs the fused form on CUDA even where that for CUDA may be used, to compare.

    Raises:
        BackendError: the installed onnxruntime has no such provider.
    """

    def __init__(
        self, name: str = "cpu", threads: int | None = None, fused: bool = True, cuda_form: bool = True
    ) -> None:
        check_available(name)
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, not {threads}")
        self._name = name
        self._threads = threads
        # TensorRT knows the standard's operators only.
        self._fused = fused and name != "ort-tensorrt"
        self._cuda_form = cuda_form and fused and name == "cuda"
        self._watch = InterruptWatch()
        if name != "cpu":
            load_libraries()

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> str:
        return "cpu" if self._name == "cpu" else "cuda:0"

    def open(self, bundle: Bundle, graph: str) -> Session:
        model = cuda_model(bundle, graph) if self._cuda_form else None
        session = self.open_model(bundle, graph, model)
        verify_session(bundle, graph, session, onnxruntime_runner(self._name, self._fused, model))
        return session

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        """Open ``model``, an ONNX file whose weights are the bundle's; None: the graph's fused or standard form.

        Without asking for its known answer: for comparisons.
        """
        providers = self._providers(bundle)
        session = open_session(bundle, graph, self._name, providers, self._threads, self._fused, model)
        return OnnxRuntimeSession(graph, session, bundle.manifest.graph(graph), self._name != "cpu", self._watch)

    def upload(self, array: NumpyArray) -> Array:
        if self._name == "cpu":
            return HostArray(np.array(array))
        try:
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
        except Exception as error:
            raise failure("upload", error) from error
        return DeviceArray(value)

    def _providers(self, bundle: Bundle) -> list[Provider]:
        if self._name == "cpu":
            return [(PROVIDERS["cpu"], {})]
        if self._name == "cuda":
            return [(PROVIDERS["cuda"], cuda_options())]
        return [
            (PROVIDERS["ort-tensorrt"], tensorrt_options(bundle)),
            (PROVIDERS["cuda"], cuda_options()),
        ]


def session_to_specs(
    graph: str, session: Any, spec: GraphSpec
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the file has them. Raises BackendError if they are not the manifest's."""
    inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())
    check_signature(graph, "inputs", inputs, spec.inputs)
    check_signature(graph, "outputs", outputs, spec.outputs)
    return inputs, outputs


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v.name, _DTYPES.get(v.type, v.type), tuple(v.shape)) for v in values)
