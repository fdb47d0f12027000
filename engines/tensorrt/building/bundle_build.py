"""Building the engines of a bundle: each graph, for each shape, checked against the reference where there is a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import UsageError
from freeprompt.contract.files import file_to_sha256
from freeprompt.contract.graphs import STEP_GRAPHS
from freeprompt.engines.comparison import THRESHOLDS
from freeprompt.engines.onnxruntime.external_data import checked_snapshot
from freeprompt.engines.shapes import Profile, Shapes
from freeprompt.engines.tensorrt.backend import TensorRTBackend
from freeprompt.engines.tensorrt.building.process import build_in_child
from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.building.request import BuilderSettings, BuildRequest, Compile
from freeprompt.engines.tensorrt.context import LoadedEngine
from freeprompt.engines.tensorrt.library import Library
from freeprompt.engines.tensorrt.metadata import EngineMetadata
from freeprompt.engines.tensorrt.parity import measure_parity
from freeprompt.engines.tensorrt.store import EngineStore, Found

SHARED, EACH = "shared", "each"


@dataclass(frozen=True)
class BundleBuild:
    """What to build of a bundle.

    Attributes:
        shapes: sizes and rows.
        engines: "shared": one engine a graph, whose weights all shapes share; "each": one for each shape, with the
            shapes fixed in the network, each with weights of its own.
        graphs: names; empty: every graph that there are shapes of.
        trust: also check and adopt engines that lie in the bundle and were built elsewhere.
        compute_capabilities: of the GPUs to build for, as "8.6"; none: this machine's, or where the library builds
            without a GPU, those over which its engines are portable.
    """

    shapes: Shapes
    engines: str = SHARED
    graphs: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int = 3
    trust: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engines not in (SHARED, EACH):
            raise UsageError(f"unknown engines {self.engines!r}; use {SHARED} or {EACH}")


@dataclass(frozen=True)
class Outcome:
    """One engine: its file, what is known of it, and whether it was built now ("built", "kept" or "adopted")."""

    path: Path
    metadata: EngineMetadata
    how: str


def build_bundle(
    bundle: Bundle,
    build: BundleBuild,
    library: Library,
    backend: TensorRTBackend | None,
    progress: Reporter = lambda line: None,
    compile_engine: Compile = build_in_child,
) -> Iterator[Outcome]:
    """Build what is missing, one engine after the other; an interrupted build goes on where it was.

    Args:
        library: to build with.
        backend: it on this machine's GPU, to check what was built; None: there is none, and engines are checked where
            they are first loaded.
        compile_engine: for tests.

    Raises:
        BackendError: an engine cannot be built, or does not compute what its graph says.
        UsageError: there are no shapes of a graph, or the library needs a GPU.
        OutputError: the engines' folder cannot be written.
    """
    if backend is None and not library.flavour.builds_without_gpu:
        raise UsageError(f"{library.name} builds on the GPU that runs the engines, and there is none")
    store = EngineStore(bundle, library.flavour, None if backend is None else backend.machine)
    graphs = build.graphs or tuple(build.shapes.sizes)
    planned = [(g, *group) for g in graphs for group in _groups(build, build.shapes.profiles(g))]
    builder = _Builder(bundle, build, library, backend, store, progress, compile_engine)
    if build.trust:
        yield from builder.adopt()
    for graph, profiles, baked in planned:
        yield builder.build(graph, profiles, baked)


def _groups(build: BundleBuild, profiles: tuple[Profile, ...]) -> list[tuple[tuple[Profile, ...], bool]]:
    """Which profiles share an engine, and whether their shapes are fixed in it."""
    if build.engines == EACH and all(profile.is_static for profile in profiles):
        return [((profile,), True) for profile in profiles]
    return [(profiles, False)]


@dataclass(frozen=True)
class _Builder:
    bundle: Bundle
    wanted: BundleBuild
    library: Library
    backend: TensorRTBackend | None
    store: EngineStore
    progress: Reporter
    compile_engine: Compile

    def build(self, graph: str, profiles: tuple[Profile, ...], baked: bool) -> Outcome:
        metadata = self._planned(graph, profiles, baked)
        with self.store.lock(Path(metadata.name).stem, waiting=self.progress):
            kept = self.store.built(metadata)
            if kept is not None:
                self._check(kept)
                assert kept.metadata is not None
                return Outcome(kept.path, kept.metadata, "kept")
            shapes = "; ".join(str(profile) for profile in profiles)
            target = metadata.device or metadata.targets
            self.progress(f"building {graph} ({shapes}) with {self.library.name} for {target}")
            with self.store.writing(metadata) as temporary:
                metadata = self._compiled(metadata, temporary)
                if self.backend is not None and self._runs(metadata):
                    engine = self.backend.deserialize(temporary.read_bytes())
                    metadata = self._examined(metadata, LoadedEngine(engine, metadata.profiles, metadata.name))
            self.store.sign(metadata)
            return Outcome(self.store.path(metadata), metadata, "built")

    def adopt(self) -> Iterator[Outcome]:
        """Check the engines that are refused for their origin alone, and sign those that pass."""
        for found in self.store.foreign():
            assert found.metadata is not None
            metadata = found.metadata
            if self.backend is not None and self._runs(metadata):
                metadata = self._examined(metadata, self.backend.load(self.store, found))
            self.store.sign(metadata)
            yield Outcome(found.path, metadata, "adopted")

    def _planned(self, graph: str, profiles: tuple[Profile, ...], baked: bool) -> EngineMetadata:
        manifest, machine = self.bundle.manifest, None if self.backend is None else self.backend.machine
        layers = len(manifest.layers) + manifest.cross_layers
        if self.library.flavour.builds_without_gpu:
            capabilities, device = self.wanted.compute_capabilities, ""
        else:
            assert machine is not None
            capabilities, device = (machine.capability,), machine.device
        return EngineMetadata(
            graph=graph,
            graph_sha256=self.bundle.graph_sha256(graph),
            backend=self.library.flavour.backend,
            tensorrt=self.library.version,
            capabilities=capabilities,
            precision=manifest.precision,
            profiles=profiles,
            baked=baked,
            optimization_level=self.wanted.optimization_level,
            workspace_bytes=self.wanted.workspace_bytes,
            device=device,
            attention_layers=layers if graph in STEP_GRAPHS else 0,
            parity_threshold=THRESHOLDS[manifest.precision],
        )

    def _compiled(self, metadata: EngineMetadata, path: Path) -> EngineMetadata:
        """Have the engine written to ``path``."""
        flavour, wanted = self.library.flavour, self.wanted
        # On TensorRT it is the GPU at hand, and nothing that the builder could be told.
        targets = metadata.capabilities if flavour.portable else ()
        settings = BuilderSettings(wanted.workspace_bytes, wanted.optimization_level, metadata.baked, targets)
        cache = None
        if flavour.timing_cache:
            name = f"timing-{metadata.tensorrt}-{'-'.join(metadata.capabilities)}.cache"
            cache = str(self.store.folder / name)
        spec = self.bundle.manifest.graph(metadata.graph)
        with checked_snapshot(self.bundle, metadata.graph) as model:
            request = BuildRequest(
                flavour.backend, str(model), str(path), spec.inputs, metadata.profiles, settings, cache
            )
            built = self.compile_engine(request, self.progress)
        return replace(
            metadata,
            engine_sha256=file_to_sha256(path),
            engine_bytes=path.stat().st_size,
            build_seconds=built.seconds,
            peak_memory_bytes=built.peak_memory_bytes,
            warnings=built.warnings,
        )

    def _runs(self, metadata: EngineMetadata) -> bool:
        """Whether the engine can be run here."""
        if self.backend is None:
            return False
        return self.library.flavour.covers(metadata.capabilities, self.backend.machine.capability)

    def _check(self, found: Found) -> None:
        """Let an engine that was built before show that it computes right here, if it has not yet."""
        assert found.metadata is not None
        backend = self.backend
        if (
            backend is not None
            and self._runs(found.metadata)
            and not backend.checked.holds(self.bundle, found.metadata)
        ):
            self._examined(found.metadata, backend.load(self.store, found))

    def _examined(self, metadata: EngineMetadata, loaded: LoadedEngine) -> EngineMetadata:
        """The metadata with what an engine is measured to be.

        Raises:
            BackendError: it fails parity.
        """
        assert self.backend is not None
        engine = loaded.engine
        inspection = engine.inspect()
        metadata = replace(
            metadata,
            device=self.backend.machine.device,
            device_memory_bytes=engine.device_memory_bytes,
            layers=inspection.layers,
            fused_attention=inspection.fused_attention,
        )
        with contextlib.closing(self.backend.session(self.bundle, metadata.graph, (loaded,))) as session:
            parity = measure_parity(self.bundle, metadata, session, self.progress)
        self.backend.checked.remember(self.bundle, metadata, parity)
        self._report_fusion(metadata)
        return replace(metadata, parity=parity)

    def _report_fusion(self, metadata: EngineMetadata) -> None:
        """Losing fused attention is silent otherwise, and costs most of the speed."""
        if not metadata.attention_layers:
            return
        if metadata.fused_attention is None:
            self.progress(f"{metadata.graph}: {self.library.name} does not show whether attention was fused")
        elif metadata.fused_attention < metadata.attention_layers:
            self.progress(
                f"{metadata.graph}: only {metadata.fused_attention} fused attention kernels for "
                f"{metadata.attention_layers} attention layers; expect it to be slow"
            )
