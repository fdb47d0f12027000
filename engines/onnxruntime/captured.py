"""ONNX Runtime's CUDA provider on fixed buffers, so that it can replay a step as a CUDA graph.

The provider captures by itself (``enable_cuda_graph``) once inputs and outputs have constant addresses. Those are this
package's own device buffers, on a stream that the provider is given: needs cuda-python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import GraphSpec, TensorSpec
from freeprompt.contract.session import Array, Feed, NumpyArray, Session, check_feeds, check_results
from freeprompt.engines.cuda.buffers import FixedBuffers, Tensor
from freeprompt.engines.cuda.memory import CudaArray, DevicePool
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.cuda.spill import Spill
from freeprompt.engines.onnxruntime.backend import session_to_specs
from freeprompt.engines.onnxruntime.interrupts import InterruptWatch
from freeprompt.engines.onnxruntime.library import (
    PROVIDERS,
    check_available,
    cuda_model,
    cuda_options,
    failure,
    onnxruntime_runner,
    open_session,
)
from freeprompt.engines.verify import verify_session

# The provider's number for "do not capture this run"; 0 is what it takes where none is given.
_NOT_CAPTURED = -1


@dataclass
class _Bound:
    """Buffers, binding and options of a run for one set of input shapes."""

    buffers: FixedBuffers
    binding: Any
    shapes: dict[str, tuple[int, ...]]
    options: Any


class BoundSession:
    """One graph on fixed buffers."""

    def __init__(
        self,
        graph: str,
        spec: GraphSpec,
        session: Any,
        pool: DevicePool,
        captured: bool,
        watch: InterruptWatch | None = None,
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._session = session
        self._pool = pool
        self._captured = captured
        self._watch = watch or InterruptWatch()
        self._inputs, self._outputs = session_to_specs(graph, session, spec)
        self._bound: dict[tuple[int, ...], _Bound] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        sizes = check_feeds(self._graph, self._spec.inputs, feeds)
        key = tuple(sizes.values())
        try:
            bound = self._bound.get(key)
            if bound is None:
                bound = self._bound[key] = self._bind(feeds, len(self._bound) + 1)
            bound.buffers.load(feeds)
            binding = bound.binding
            self._watch.run(lambda options: self._session.run_with_iobinding(binding, options), bound.options)
            results: dict[str, Array] = dict(bound.buffers.outputs(bound.shapes))
        except Exception as error:  # the library raises plain RuntimeError and classes of its own
            raise failure(self._graph, error) from error
        check_results(self._graph, self._spec.outputs, results, sizes)
        return results

    def _bind(self, feeds: Mapping[str, Feed], number: int) -> _Bound:
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._spec.inputs}
        inputs = tuple(Tensor(s.name, np.dtype(s.dtype), shapes[s.name]) for s in self._spec.inputs)
        outputs = self._find_outputs(feeds, inputs)
        buffers = FixedBuffers(self._pool, inputs, outputs)
        binding = self._session.io_binding()
        for tensor in inputs:
            address = buffers.addresses[tensor.name]
            binding.bind_input(tensor.name, "cuda", 0, tensor.dtype.type, tensor.shape, address)
        for tensor in outputs:
            address = buffers.addresses[tensor.name]
            binding.bind_output(tensor.name, "cuda", 0, tensor.dtype.type, tensor.shape, address)
        options = run_options(number if self._captured else _NOT_CAPTURED)
        return _Bound(buffers, binding, {tensor.name: tensor.shape for tensor in outputs}, options)

    def _find_outputs(self, feeds: Mapping[str, Feed], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run once with outputs of the library's own, to learn their shapes."""
        buffers = FixedBuffers(self._pool, inputs, ())
        buffers.load(feeds)
        binding = self._session.io_binding()
        for tensor in inputs:
            address = buffers.addresses[tensor.name]
            binding.bind_input(tensor.name, "cuda", 0, tensor.dtype.type, tensor.shape, address)
        for spec in self._spec.outputs:
            binding.bind_output(spec.name, "cuda")
        self._watch.run(lambda options: self._session.run_with_iobinding(binding, options), run_options(_NOT_CAPTURED))
        shapes = [tuple(value.shape()) for value in binding.get_outputs()]
        self._pool.cuda.synchronize()
        buffers.close()
        return tuple(Tensor(s.name, np.dtype(s.dtype), shape) for s, shape in zip(self._spec.outputs, shapes))


def run_options(number: int) -> Any:
    """Options of a run; ``number`` is the provider's for its captured graph."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    # Everything is on one stream: whoever needs a value on the host waits for it.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


class BoundOnnxRuntimeBackend:
    """The CUDA provider with steps replayed as CUDA graphs.

    Args:
        cuda_graphs: False uses the same buffers without capturing.
        cuda: for tests; None imports cuda-python.
        cuda_form: False runs the fused form even where that for CUDA may be used, to compare.

    Raises:
        BackendError: onnxruntime-gpu, cuda-python, the driver or the GPU is missing.
    """

    def __init__(self, cuda_graphs: bool = True, cuda: CudaRuntime | None = None, cuda_form: bool = True) -> None:
        check_available("cuda")
        self.cuda = CudaRuntime() if cuda is None else cuda
        self.pool = DevicePool(self.cuda)
        self._spill = Spill(self.pool)
        self._cuda_graphs = cuda_graphs
        self._watch = InterruptWatch()
        self._cuda_form = cuda_form
        # Graph -> why it is not captured although that was asked for.
        self.fallbacks: dict[str, str] = {}

    @property
    def name(self) -> str:
        return "cuda"

    @property
    def device(self) -> str:
        return f"cuda:{self.cuda.device}"

    def open(self, bundle: Bundle, graph: str) -> Session:
        model = cuda_model(bundle, graph) if self._cuda_form else None
        session = self._open(bundle, graph, model)
        verify_session(bundle, graph, session, onnxruntime_runner("cuda", True, model))
        return session

    def _open(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        options = {**cuda_options(), "user_compute_stream": str(self.cuda.stream)}
        spec = bundle.manifest.graph(graph)
        if self._cuda_graphs:
            try:
                capturing = [(PROVIDERS["cuda"], {**options, "enable_cuda_graph": "1"})]
                session = open_session(bundle, graph, "cuda", capturing, model=model)
                return BoundSession(graph, spec, session, self.pool, captured=True, watch=self._watch)
            except BackendError as error:  # a node that the provider leaves to the CPU
                self.fallbacks[graph] = str(error)
        session = open_session(bundle, graph, "cuda", [(PROVIDERS["cuda"], options)], model=model)
        return BoundSession(graph, spec, session, self.pool, captured=False, watch=self._watch)

    def upload(self, array: NumpyArray) -> CudaArray:
        return self.pool.upload(np.asarray(array))

    def spill(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self._spill.spill(arrays)

    def fetch(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self._spill.fetch(arrays)
