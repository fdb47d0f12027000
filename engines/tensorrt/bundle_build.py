"""Building the engines of a bundle: each graph, for each shape, checked against the reference before it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.contract.graphs import STEP_GRAPHS, weights_owner
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.parity import Parity
from freeprompt.engines.comparison import THRESHOLDS, profile_to_sizes
from freeprompt.engines.onnxruntime.external_data import checked_snapshot
from freeprompt.engines.reference import session_to_parity
from freeprompt.engines.shapes import Profile, Shapes
from freeprompt.engines.tensorrt.backend import TensorRTBackend
from freeprompt.engines.tensorrt.builder import BuilderSettings, build_engine
from freeprompt.engines.tensorrt.context import LoadedEngine
from freeprompt.engines.tensorrt.metadata import EngineMetadata
from freeprompt.engines.tensorrt.progress import Reporter
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
    """

    shapes: Shapes
    engines: str = SHARED
    graphs: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int = 3
    trust: bool = False

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
    backend: TensorRTBackend,
    store: EngineStore | None = None,
    progress: Reporter = lambda line: None,
) -> Iterator[Outcome]:
    """Build what is missing, one engine after the other; an interrupted build goes on where it was.

    Raises:
        BackendError: an engine cannot be built, or does not compute what its graph says.
        UsageError: there are no shapes of a graph.
        OutputError: the engines' folder cannot be written.
    """
    store = store or EngineStore(bundle, backend.machine)
    graphs = build.graphs or tuple(build.shapes.sizes)
    planned = [(g, *group) for g in graphs for group in _groups(build, build.shapes.profiles(g))]
    if build.trust:
        yield from _adopt(bundle, backend, store, progress)
    for graph, profiles, baked in planned:
        yield _build_one(bundle, graph, profiles, baked, build, backend, store, progress)


def _groups(build: BundleBuild, profiles: tuple[Profile, ...]) -> list[tuple[tuple[Profile, ...], bool]]:
    """Which profiles share an engine, and whether their shapes are fixed in it."""
    if build.engines == EACH and all(profile.is_static for profile in profiles):
        return [((profile,), True) for profile in profiles]
    return [(profiles, False)]


def _build_one(
    bundle: Bundle,
    graph: str,
    profiles: tuple[Profile, ...],
    baked: bool,
    build: BundleBuild,
    backend: TensorRTBackend,
    store: EngineStore,
    progress: Reporter,
) -> Outcome:
    manifest, machine = bundle.manifest, backend.machine
    _check_float32_parts(manifest, graph, machine.tensorrt)
    layers = len(manifest.layers) + manifest.cross_layers
    metadata = EngineMetadata(
        graph=graph,
        graph_sha256=bundle.graph_sha256(graph),
        tensorrt=machine.tensorrt,
        capability=machine.capability,
        precision=manifest.precision,
        profiles=profiles,
        baked=baked,
        optimization_level=build.optimization_level,
        workspace_bytes=build.workspace_bytes,
        device=machine.device,
        attention_layers=layers if graph in STEP_GRAPHS else 0,
        parity_threshold=THRESHOLDS[manifest.precision],
    )
    with store.lock(Path(metadata.name).stem):
        kept = _kept(store, metadata)
        if kept is not None:
            assert kept.metadata is not None
            return Outcome(kept.path, kept.metadata, "kept")
        settings = BuilderSettings(manifest.precision, build.workspace_bytes, build.optimization_level, baked)
        shapes = "; ".join(str(profile) for profile in profiles)
        progress(f"building {graph} ({shapes}) with TensorRT {machine.tensorrt} for {machine.device}")
        cache = store.folder / f"timing-{machine.tensorrt}-{machine.capability}.cache"
        spec = manifest.graph(graph)
        with checked_snapshot(bundle, graph) as path:
            built = build_engine(backend.trt, path, spec.inputs, profiles, settings, cache, progress)
        data = bytes(built.engine)
        metadata = replace(metadata, build_seconds=round(built.seconds, 3))
        metadata = _examined(bundle, metadata, data, backend, progress)
        return Outcome(store.save(metadata, data), metadata, "built")


def _check_float32_parts(manifest: Manifest, graph: str, tensorrt: str) -> None:
    """Refuse to build where the builder would choose the precision that the export has ruled out.

    Before 10 a network does not say which precision its layers have: with the FP16 flag the builder may halve any.
    """
    if manifest.half_precision is None or int(tensorrt.split(".")[0]) >= 10:
        return
    owner = weights_owner(graph)
    kept = [part for part in manifest.half_precision.float32_parts if part.graph == owner]
    if kept:
        raise BackendError(
            f"graph {graph} has {len(kept)} parts that must stay float32 (the first: {kept[0].part or 'all of it'}, "
            f"{kept[0].reason}), and TensorRT {tensorrt} may halve them; use TensorRT 10.3 or later, --backend cuda, "
            "or an export in float32"
        )


def _kept(store: EngineStore, metadata: EngineMetadata) -> Found | None:
    for found in store.scan(metadata.graph):
        if found.path.name == metadata.name and found.refused is None:
            return found
    return None


def _examined(
    bundle: Bundle, metadata: EngineMetadata, data: bytes, backend: TensorRTBackend, progress: Reporter
) -> EngineMetadata:
    """The metadata with what an engine is measured to be.

    Raises:
        BackendError: it fails parity.
    """
    engine = backend.load(data)
    inspection = engine.inspect()
    metadata = replace(
        metadata,
        engine_sha256=hashlib.sha256(data).hexdigest(),
        engine_bytes=len(data),
        device_memory_bytes=engine.device_memory_bytes,
        layers=inspection.layers,
        fused_attention=inspection.fused_attention,
    )
    session = backend.session(bundle, metadata.graph, (LoadedEngine(engine, metadata.profiles, metadata.name),))
    parity: list[Parity] = []
    try:
        for profile in metadata.profiles:
            progress(f"checking {metadata.graph} at {profile} against ONNX Runtime on the CPU")
            parity.append(session_to_parity(bundle, metadata.graph, session, profile_to_sizes(profile)))
    finally:
        session.close()
    metadata = replace(metadata, parity=tuple(parity))
    if not metadata.passed:
        worst = max(parity, key=lambda p: p.relative_l2)
        raise BackendError(
            f"the engine of graph {metadata.graph} is wrong: it differs from ONNX Runtime by {worst.relative_l2:.1e} "
            f"(relative L2, {worst.shapes}); {metadata.parity_threshold:.0e} is allowed in {metadata.precision}. It "
            f"was not kept. Use another TensorRT than {metadata.tensorrt}, --backend cuda, or an export in float32"
        )
    _report_fusion(metadata, progress)
    return metadata


def _report_fusion(metadata: EngineMetadata, progress: Reporter) -> None:
    """Losing fused attention is silent otherwise, and costs most of the speed."""
    if not metadata.attention_layers:
        return
    if metadata.fused_attention is None:
        progress(f"{metadata.graph}: TensorRT {metadata.tensorrt} does not show whether attention was fused")
    elif metadata.fused_attention < metadata.attention_layers:
        progress(
            f"{metadata.graph}: only {metadata.fused_attention} fused attention kernels for "
            f"{metadata.attention_layers} attention layers; expect it to be slow"
        )


def _adopt(bundle: Bundle, backend: TensorRTBackend, store: EngineStore, progress: Reporter) -> Iterator[Outcome]:
    """Check the engines that are refused for their origin alone, and sign those that pass."""
    trusting = EngineStore(bundle, backend.machine, trust=True)
    refused = {found.path for found in store.scan() if found.refused is not None}
    for found in trusting.scan():
        if found.refused is None and found.metadata is not None and found.path in refused:
            metadata = _examined(bundle, found.metadata, trusting.read(found), backend, progress)
            store.adopt(found, metadata)
            yield Outcome(found.path, metadata, "adopted")
