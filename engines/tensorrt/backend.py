"""TensorRT as a backend: everything between two steps stays on the device, and the host only enqueues."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import GraphSpec, TensorSpec
from freeprompt.contract.session import Array, Feed, NumpyArray, check_feeds, check_results
from freeprompt.engines.cuda.memory import CudaArray, DevicePool
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.cuda.spill import Spill
from freeprompt.engines.shapes import check_slack, choose_profile
from freeprompt.engines.tensorrt.context import ExecutionContext, LoadedEngine, Scratch
from freeprompt.engines.tensorrt.engine import Engine
from freeprompt.engines.tensorrt.library import Library, load_library
from freeprompt.engines.tensorrt.metadata import EngineMetadata
from freeprompt.engines.tensorrt.parity import Checked, measure_parity
from freeprompt.engines.tensorrt.runtime_cache import RuntimeCache
from freeprompt.engines.tensorrt.store import EngineStore, Found, Machine
from freeprompt.engines.tensorrt.timing import LayerTimes
from freeprompt.engines.verify import Verified


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
        self._contexts: dict[tuple[int, int], ExecutionContext] = {}
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
        found = [context.launcher.fallback for context in self._contexts.values()]
        return tuple(reason for reason in found if reason is not None)

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        engine, profile, bound, sizes = self._choose(feeds)
        context = self._contexts.get((engine, profile))
        opened = context is None
        if context is None:
            context = self._contexts[engine, profile] = self._open(engine, profile, self._cuda_graphs)
        results = context.run(feeds, bound, sizes)
        check_results(self._graph, self._spec.outputs, results, sizes)
        if opened:
            self._engines[engine].keep_kernels()
        return results

    def time_layers(
        self, feeds: Mapping[str, Feed], runs: int = 10, warm: int = 3
    ) -> tuple[LayerTimes, dict[str, str]]:
        """Run layer by layer, each waited for, in a context of its own.

        Returns:
            the times of ``runs`` runs, and what the inspector says of each layer, by name.
        """
        engine, profile, bound, sizes = self._choose(feeds)
        times = LayerTimes()
        context = self._open(engine, profile, cuda_graphs=False)
        try:
            for _ in range(warm):
                context.run(feeds, bound, sizes)
            context.profile(times)
            for _ in range(runs):
                context.run(feeds, bound, sizes)
            self._pool.cuda.synchronize()
        finally:
            context.close()
        return times, self._engines[engine].engine.describe()

    def close(self) -> None:
        """Give the memory of buffers and graphs back; the session opens them again if it is run."""
        for engine in {engine for engine, _ in self._contexts}:
            self._engines[engine].keep_kernels()
        while self._contexts:
            self._contexts.popitem()[1].close()

    def _open(self, engine: int, profile: int, cuda_graphs: bool) -> ExecutionContext:
        return ExecutionContext(self._pool, self._scratch, self._engines[engine], profile, self._spec, cuda_graphs)

    def _choose(self, feeds: Mapping[str, Feed]) -> tuple[int, int, dict[str, int], dict[str, int]]:
        """Numbers of the engine and of the profile that serve the feeds, the sizes it runs at, and theirs."""
        sizes = check_feeds(self._graph, self._spec.inputs, feeds)
        chosen = choose_profile(self._profiles, sizes)
        if chosen is None:
            wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
            known = "; ".join(str(profile) for profile in self._profiles)
            raise BackendError(
                f"graph {self._graph} was not built for {wanted}. Engines exist for: {known}. "
                "Build one with 'freeprompt build BUNDLE --backend ... --rows ... --size ...', or use --backend cuda"
            )
        place, bound = chosen
        return (*self._places[place], bound, sizes)


class TensorRTBackend:
    """Sessions on TensorRT engines built from the bundle (``freeprompt build``).

    Args:
        library: loaded; None: TensorRT's.
        trust: load engines that this user did not build.
        cuda_graphs: capture steps into CUDA graphs.
        device: number of the GPU.
        cuda: for tests; None imports cuda.core.
        verified: for tests; None: the notes in the user's cache folder.

    Raises:
        BackendError: TensorRT, cuda-core, the driver or the GPU is missing.
    """

    def __init__(
        self,
        library: Library | None = None,
        trust: bool = False,
        cuda_graphs: bool = True,
        device: int = 0,
        cuda: CudaRuntime | None = None,
        verified: Verified | None = None,
    ) -> None:
        self.library = library or load_library("tensorrt")
        self.cuda = CudaRuntime(device=device) if cuda is None else cuda
        info = self.cuda.info()
        self.machine = Machine(self.library.version, info.capability, info.name)
        self.checked = Checked(self.library.flavour, self.machine, verified)
        self.pool = DevicePool(self.cuda)
        self._scratch = Scratch(self.pool)
        self._spill = Spill(self.pool)
        self._trust = trust
        self._cuda_graphs = cuda_graphs

    @property
    def name(self) -> str:
        return self.library.flavour.backend

    @property
    def device(self) -> str:
        return f"cuda:{self.cuda.device}"

    def open(self, bundle: Bundle, graph: str) -> TensorRTSession:
        bundle.manifest.graph(graph)  # a graph that the bundle has not is another error than one without an engine
        store = EngineStore(bundle, self.library.flavour, self.machine, self._trust)
        loaded = []
        for found in store.usable(graph):
            assert found.metadata is not None
            engine = self.load(store, found)
            self._check(bundle, found.metadata, engine)
            loaded.append(engine)
        return self.session(bundle, graph, tuple(loaded))

    def load(self, store: EngineStore, found: Found) -> LoadedEngine:
        """Deserialize an engine. It is code: the store vouches for where it comes from.

        Raises:
            BackendError: the store refuses it, it was changed, or the library cannot load it.
        """
        assert found.metadata is not None
        data, cache = store.read(found), None
        if self.library.flavour.runtime_cache:
            identity = (found.metadata.engine_sha256, self.machine.tensorrt, self.machine.device)
            cache = RuntimeCache(found.path, *identity)
        engine = self.deserialize(data, b"" if cache is None else cache.read())
        return LoadedEngine(engine, found.metadata.profiles, found.path.name, cache)

    def deserialize(self, data: bytes, kernels: bytes = b"") -> Engine:
        """An engine from its bytes. They are code: the caller vouches for where they come from.

        Args:
            kernels: as of ``Engine``.

        Raises:
            BackendError: the library cannot load it.
        """
        with self.cuda.calls("load an engine"):
            return Engine(self.library, data, kernels)

    def session(self, bundle: Bundle, graph: str, engines: tuple[LoadedEngine, ...]) -> TensorRTSession:
        """A session over engines that are loaded already."""
        spec = bundle.manifest.graph(graph)
        return TensorRTSession(graph, spec, engines, self.pool, self._scratch, self._cuda_graphs)

    def _check(self, bundle: Bundle, metadata: EngineMetadata, loaded: LoadedEngine) -> None:
        """Let an engine that was not checked here show that it computes right."""
        if self.checked.holds(bundle, metadata):
            return
        session = self.session(bundle, metadata.graph, (loaded,))
        try:
            self.checked.remember(bundle, metadata, measure_parity(bundle, metadata, session))
        finally:
            session.close()

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
    """The engine must be of the manifest's graph, whatever its metadata says."""
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
            f"its metadata says {len(loaded.profiles)}; build it again"
        )
