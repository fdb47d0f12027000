"""TensorRT as a backend: everything between two steps stays on the device, and the host only enqueues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from freeprompt.bundle import Bundle
from freeprompt.engines.cuda_buffers import FixedBuffers, Tensor
from freeprompt.engines.cuda_graph import Launcher
from freeprompt.engines.cuda_memory import Buffer, CudaArray, DevicePool
from freeprompt.engines.cuda_runtime import CudaRuntime
from freeprompt.engines.cuda_spill import Spill
from freeprompt.engines.session import Array, Feed, NumpyArray, check_feeds
from freeprompt.engines.tensorrt_engine import Context, Engine
from freeprompt.engines.tensorrt_library import import_tensorrt
from freeprompt.engines.tensorrt_profile import Profile, check_slack, choose_profile
from freeprompt.engines.tensorrt_store import EngineStore, Machine
from freeprompt.errors import BackendError
from freeprompt.manifest import GraphSpec, TensorSpec


class Scratch:
    """Device memory that all contexts of a backend use in turn: they run one after the other on one stream."""

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._buffer: Optional[Buffer] = None

    def ensure(self, size: int) -> None:
        """Make it at least ``size`` bytes. Its address may change: contexts look before they run."""
        if self._buffer is None or self._buffer.size < size:
            if self._buffer is not None:
                self._pool.give_back(self._buffer)
                self._buffer = None
                self._pool.trim()
            self._buffer = self._pool.take(size)

    @property
    def buffer(self) -> Buffer:
        assert self._buffer is not None
        return self._buffer


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with the profiles that it was built for."""

    engine: Engine
    profiles: tuple[Profile, ...]
    label: str


class Slot:
    """One profile of one engine, ready to run: context, buffers and recorded graph.

    Args:
        cuda_graphs: record into a CUDA graph.
    """

    def __init__(
        self,
        pool: DevicePool,
        scratch: Scratch,
        loaded: LoadedEngine,
        number: int,
        spec: GraphSpec,
        cuda_graphs: bool,
    ) -> None:
        self._cuda = pool.cuda
        self._pool = pool
        self._scratch = scratch
        self._spec = spec
        self._profile = loaded.profiles[number]
        self._context: Context = loaded.engine.create_context(number, self._cuda.stream)
        self._sizes: dict[str, int] = {}
        self._scratch_buffer: Optional[Buffer] = None
        self._buffers: Optional[FixedBuffers] = None
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self.launcher = Launcher(self._cuda, self._enqueue, cuda_graphs)

    def run(self, feeds: Mapping[str, Feed], bound: dict[str, int], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Enqueue one evaluation.

        Args:
            bound: sizes of the dimensions as the engine runs.
            sizes: the same as the feeds have them.
        """
        self._bind(bound)
        assert self._buffers is not None
        self._buffers.load(feeds)
        self.launcher.run()
        shapes = {}
        for spec in self._spec.outputs:
            shape = self._output_shapes[spec.name]
            first = spec.shape[0]
            if first in self._profile.slack:
                shape = (sizes[str(first)], *shape[1:])
            shapes[spec.name] = shape
        return dict(self._buffers.outputs(shapes))

    def close(self) -> None:
        """Give the memory back; not to be used afterwards."""
        self.launcher.reset()
        if self._buffers is not None:
            self._buffers.close()

    def _bind(self, bound: dict[str, int]) -> None:
        """Give the context its shapes and addresses, if they are not what it has."""
        if bound != self._sizes:
            self.launcher.reset()
            shapes = {
                spec.name: tuple(d if isinstance(d, int) else bound[d] for d in spec.shape)
                for spec in self._spec.inputs
            }
            self._output_shapes = self._context.set_shapes(shapes)
            if self._buffers is not None:
                self._buffers.close()
            inputs = tuple(Tensor(s.name, np.dtype(s.dtype), shapes[s.name]) for s in self._spec.inputs)
            outputs = tuple(Tensor(s.name, np.dtype(s.dtype), self._output_shapes[s.name]) for s in self._spec.outputs)
            self._buffers = FixedBuffers(self._pool, inputs, outputs)
            self._context.set_addresses(self._buffers.addresses)
            self._sizes = bound
        scratch = self._scratch.buffer
        if scratch is not self._scratch_buffer:
            self.launcher.reset()
            self._context.set_memory(scratch.address, scratch.size)
            self._scratch_buffer = scratch

    def _enqueue(self) -> None:
        self._context.enqueue(self._cuda.stream)


class TensorRTSession:
    """One graph of a bundle on its engines."""

    def __init__(
        self,
        graph: str,
        spec: GraphSpec,
        engines: tuple[LoadedEngine, ...],
        pool: DevicePool,
        scratch: Scratch,
        cuda_graphs: bool = True,
    ) -> None:
        for loaded in engines:
            _check_tensors(graph, spec, loaded)
            check_slack(graph, (*spec.inputs, *spec.outputs), loaded.profiles)
        self._graph = graph
        self._spec = spec
        self._engines = engines
        self._pool = pool
        self._scratch = scratch
        self._cuda_graphs = cuda_graphs
        self._slots: dict[tuple[int, int], Slot] = {}
        scratch.ensure(max(loaded.engine.device_memory_bytes for loaded in engines))
        # All profiles in one list, so that the best fit is found across engines.
        self._places = [(e, p) for e, loaded in enumerate(engines) for p in range(len(loaded.profiles))]
        self._profiles = tuple(profile for loaded in engines for profile in loaded.profiles)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._spec.outputs

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Why profiles run without a CUDA graph although one was tried."""
        found = [slot.launcher.fallback for slot in self._slots.values()]
        return tuple(reason for reason in found if reason is not None)

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        sizes = check_feeds(self._graph, self._spec.inputs, feeds)
        chosen = choose_profile(self._profiles, sizes)
        if chosen is None:
            wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
            known = "; ".join(str(profile) for profile in self._profiles)
            raise BackendError(
                f"graph {self._graph} was not built for {wanted}. Engines exist for: {known}. "
                "Build one with 'freeprompt build BUNDLE --rows ... --size ...', or use --backend cuda"
            )
        place, bound = chosen
        engine, profile = self._places[place]
        slot = self._slots.get((engine, profile))
        if slot is None:
            loaded = self._engines[engine]
            graphs = self._cuda_graphs and not loaded.engine.streams_weights
            slot = Slot(self._pool, self._scratch, loaded, profile, self._spec, graphs)
            self._slots[engine, profile] = slot
        return slot.run(feeds, bound, sizes)

    def close(self) -> None:
        """Give the memory of buffers and graphs back; the session opens them again if it is run."""
        while self._slots:
            self._slots.popitem()[1].close()


class TensorRTBackend:
    """Sessions on TensorRT engines built from the bundle (``freeprompt build``).

    Args:
        trust: load engines that this user did not build.
        cuda_graphs: record steps into CUDA graphs.
        weight_budget: bytes of weights to hold on the device, for engines built with weight streaming; None: all.
        device: number of the GPU.
        trt, cuda: for tests; None imports TensorRT and cuda-python.

    Raises:
        BackendError: TensorRT, cuda-python, the driver or the GPU is missing.
    """

    def __init__(
        self,
        trust: bool = False,
        cuda_graphs: bool = True,
        weight_budget: Optional[int] = None,
        device: int = 0,
        trt: Any = None,
        cuda: Optional[CudaRuntime] = None,
    ) -> None:
        self.trt = import_tensorrt() if trt is None else trt
        self.cuda = CudaRuntime(device=device) if cuda is None else cuda
        info = self.cuda.info()
        self.machine = Machine(str(self.trt.__version__), info.capability, info.name)
        self.pool = DevicePool(self.cuda)
        self._scratch = Scratch(self.pool)
        self._spill = Spill(self.pool)
        self._trust = trust
        self._cuda_graphs = cuda_graphs
        self._weight_budget = weight_budget

    @property
    def name(self) -> str:
        return "tensorrt"

    @property
    def device(self) -> str:
        return f"cuda:{self.cuda.device}"

    def open(self, bundle: Bundle, graph: str) -> TensorRTSession:
        bundle.manifest.graph(graph)  # a graph that the bundle has not is another error than one without an engine
        store = EngineStore(bundle, self.machine, self._trust)
        loaded = []
        for found in store.usable(graph):
            assert found.record is not None
            engine = self.load(store.read(found))
            loaded.append(LoadedEngine(engine, found.record.profiles, found.path.name))
        return self.session(bundle, graph, tuple(loaded))

    def load(self, data: Any) -> Engine:
        """Deserialize an engine. It is code: the caller vouches for where it comes from."""
        engine = Engine(self.trt, data)
        if self._weight_budget is not None and engine.streams_weights:
            engine.limit_weights(self._weight_budget)
        return engine

    def session(self, bundle: Bundle, graph: str, engines: tuple[LoadedEngine, ...]) -> TensorRTSession:
        """A session over engines that are loaded already."""
        spec = bundle.manifest.graph(graph)
        return TensorRTSession(graph, spec, engines, self.pool, self._scratch, self._cuda_graphs)

    def upload(self, array: NumpyArray) -> CudaArray:
        return self.pool.upload(np.asarray(array))

    def spill(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self._spill.spill(arrays)

    def fetch(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self._spill.fetch(arrays)

    def synchronize(self) -> None:
        """Wait for everything enqueued; for measurements."""
        self.cuda.synchronize()


def _check_tensors(graph: str, spec: GraphSpec, loaded: LoadedEngine) -> None:
    """The engine must be of the manifest's graph, whatever its sidecar says."""
    for tensors, specs in ((loaded.engine.inputs, spec.inputs), (loaded.engine.outputs, spec.outputs)):
        found = {name: str(dtype) for name, dtype in tensors.items()}
        expected = {s.name: str(s.dtype) for s in specs}
        if found != expected:
            raise BackendError(
                f"engine {loaded.label} has tensors {found}, graph {graph} has {expected}; build it again"
            )
    if loaded.engine.profiles != len(loaded.profiles):
        raise BackendError(
            f"engine {loaded.label} has {loaded.engine.profiles} profiles, "
            f"its sidecar says {len(loaded.profiles)}; build it again"
        )
