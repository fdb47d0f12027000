"""ONNX Runtime: sessions on any execution provider, built in or a plug-in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, ProviderUnusedWarning
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
from freeprompt.engines.backend_name import ProviderSpec
from freeprompt.engines.onnxruntime.interrupts import InterruptWatch
from freeprompt.engines.onnxruntime.library import (
    Placement,
    check_version,
    cuda_model,
    failure,
    load_libraries,
    onnxruntime_runner,
    open_session,
    session_to_placement,
)
from freeprompt.engines.onnxruntime.provider import CUDA, find_provider
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
        cuda_device: the GPU in whose memory results are left; None: they come to the host.
        watch: shared by the sessions of a backend.
        placement: which of its nodes run where; None: not said.
        on_cpu: whether it is the processor that computes.
    """

    def __init__(
        self,
        graph: str,
        session: Any,
        spec: GraphSpec,
        cuda_device: int | None = None,
        watch: InterruptWatch | None = None,
        placement: Placement | None = None,
        on_cpu: bool = True,
    ) -> None:
        self._graph = graph
        self._session = session
        self._cuda_device = cuda_device
        self._watch = watch or InterruptWatch()
        self._on_cpu = on_cpu
        self.placement = placement
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
            if self._cuda_device is None:
                results = self._run_on_host(feeds)
            else:
                results = self._run_on_device(feeds, self._cuda_device)
        except Exception as error:  # the library raises plain RuntimeError and classes of its own
            raise failure(self._graph, error, self._on_cpu) from error
        check_results(self._graph, self._spec.outputs, results, sizes)
        return results

    def _run_on_host(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        values = {name: feed if isinstance(feed, np.ndarray) else feed.numpy() for name, feed in feeds.items()}
        names = [spec.name for spec in self._outputs]
        results = self._watch.run(lambda options: self._session.run(names, values, options), ort.RunOptions())
        return {name: HostArray(result) for name, result in zip(names, results)}

    def _run_on_device(self, feeds: Mapping[str, Feed], device: int) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, DeviceArray):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                values = feed if isinstance(feed, np.ndarray) else feed.numpy()
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for spec in self._outputs:
            # Memory of its own for each result, from the library's pool: an array never changes once returned.
            binding.bind_output(spec.name, "cuda", device)
        self._watch.run(lambda options: self._session.run_with_iobinding(binding, options), ort.RunOptions())
        values = binding.get_outputs()
        return {spec.name: DeviceArray(value) for spec, value in zip(self._outputs, values)}


class OnnxRuntimeBackend:
    """Sessions on one execution provider of ONNX Runtime.

    A session on any provider but the CPU is believed once it has given the bundle's known answer of its graph, or
    agreed with the CPU where there is none. Nodes that a provider does not take run on the CPU.

    Args:
        provider: which; a string is what follows ``ort:`` in a backend's name, as "cpu", "tensorrt" (whose engines are
            kept in the bundle) or "openvino,device=gpu".
        threads: threads within an operator on the CPU; None lets the library use every core.
        fused: False runs the standard form of each graph instead of that with ONNX Runtime's own operators: the same
            result from more memory, to compare.
        cuda_form: False runs the fused form on CUDA even where that for CUDA may be used, to compare.

    Raises:
        UsageError: the name is malformed, or an option cannot be used.
        BackendError: the installed onnxruntime has no such provider and no plug-in, or it cannot be used here.
    """

    def __init__(
        self,
        provider: str | ProviderSpec = "cpu",
        threads: int | None = None,
        fused: bool = True,
        cuda_form: bool = True,
    ) -> None:
        check_version()
        spec = ProviderSpec.parse(provider) if isinstance(provider, str) else provider
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, not {threads}")
        if spec.key != "cpu":
            load_libraries()
        self._provider = find_provider(spec, threads)
        self._threads = threads
        self._fused = fused and self._provider.fused
        self._cuda_form = cuda_form and self._fused and self._provider.ep_name == CUDA
        self._watch = InterruptWatch()

    @property
    def name(self) -> str:
        return str(self._provider.spec)

    @property
    def device(self) -> str:
        return self._provider.device

    def open(self, bundle: Bundle, graph: str) -> Session:
        """Warns ProviderUnusedWarning where the provider takes none of the graph's nodes."""
        model = cuda_model(bundle, graph) if self._cuda_form else None
        session = self.open_model(bundle, graph, model)
        runner = onnxruntime_runner(self._provider, self._fused, model)
        verify_session(bundle, graph, session, runner, None, self._reference)
        if session.placement is not None and not session.placement.taken:
            message = f"{self._provider.ep_name} takes no node of graph {graph}, which runs on the CPU"
            warnings.warn(message, ProviderUnusedWarning, stacklevel=2)
        return session

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> OnnxRuntimeSession:
        """Open ``model``, an ONNX file whose weights are the bundle's; None: the graph's fused or standard form.

        Without asking for its known answer: for comparisons.
        """
        provider, spec = self._provider, bundle.manifest.graph(graph)
        session = open_session(bundle, graph, provider, self._threads, self._fused, model)
        placement = session_to_placement(session, provider)
        on_cpu = provider.device == "cpu"
        return OnnxRuntimeSession(graph, session, spec, provider.cuda_device, self._watch, placement, on_cpu)

    def upload(self, array: NumpyArray) -> Array:
        device = self._provider.cuda_device
        if device is None:
            return HostArray(np.array(array))
        try:
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", device)
        except Exception as error:
            raise failure("upload", error) from error
        return DeviceArray(value)

    def _reference(self, bundle: Bundle, graph: str) -> Session | None:
        """What to compare with where a bundle has no known answers; None: others are compared with this."""
        if self._provider.is_cpu:
            return None
        return OnnxRuntimeBackend("cpu", self._threads).open_model(bundle, graph, None)


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
