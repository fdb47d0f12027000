"""Preparing the graphs of a bundle for ONNX Runtime's CUDA provider, each checked and timed before it may be used."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import Array, Backend, Feed, Session
from freeprompt.engines.comparison import THRESHOLDS, profile_to_sizes, seeded_inputs
from freeprompt.engines.onnxruntime.cuda_form import RewrittenGraph, check_packages, fuse_for_cuda
from freeprompt.engines.onnxruntime.external_data import checked_snapshot
from freeprompt.engines.onnxruntime.prepared_metadata import CudaTiming, PreparedMetadata
from freeprompt.engines.onnxruntime.prepared_store import CudaStore
from freeprompt.engines.reference import session_to_parity
from freeprompt.engines.shapes import Profile, Shapes
from freeprompt.engines.tensorrt.progress import Reporter

# Enough for a median that the choice of kernels in the first runs does not touch.
WARM_RUNS, WARM_SECONDS, TIMED_RUNS = 3, 0.5, 11

Fuse = Callable[[Any, str], RewrittenGraph]


class PreparingBackend(Backend, Protocol):
    """A backend that also opens a graph from other ONNX than the bundle's file."""

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        """Open ``model``, whose weights are the bundle's; None: the graph as it was exported."""
        ...


@dataclass(frozen=True)
class Preparation:
    """What became of one graph. ``refused`` says why it runs as exported; None: as prepared.

    ``how``: "prepared" now, or "kept" from before.
    """

    metadata: PreparedMetadata
    refused: str | None
    how: str


def prepare_bundle(
    bundle: Bundle,
    shapes: Shapes,
    backend: PreparingBackend,
    store: CudaStore,
    graphs: tuple[str, ...] = (),
    progress: Reporter = lambda line: None,
    fuse: Fuse = fuse_for_cuda,
) -> Iterator[Preparation]:
    """Prepare every graph, compare it and the exported one with ONNX Runtime on the CPU, and time both.

    A graph that cannot be rewritten stays as exported. One that was, and cannot be run, differs or is slower, stays on
    disk with what was found, and is not used.

    Args:
        graphs: names; empty: every graph that there are shapes of.
        fuse: for tests.

    Raises:
        BackendError: a package is missing, or the graph as exported cannot be run or differs on this device.
        UsageError: there are no shapes of a graph.
        OutputError: the engines' folder cannot be written.
    """
    check_packages()
    planned = {graph: shapes.profiles(graph) for graph in graphs or tuple(shapes.sizes)}
    for graph, profiles in planned.items():
        with store.lock(graph):
            yield _prepare(bundle, graph, profiles, backend, store, progress, fuse)


def _prepare(
    bundle: Bundle,
    graph: str,
    profiles: tuple[Profile, ...],
    backend: PreparingBackend,
    store: CudaStore,
    progress: Reporter,
    fuse: Fuse,
) -> Preparation:
    kept = store.find(graph)
    labels = {str(profile) for profile in profiles}
    # What was refused is tried anew: the memory, or the quiet, that it lacked may be there now.
    if kept is not None and kept.metadata is not None and kept.refused is None and labels <= kept.metadata.shapes:
        return Preparation(kept.metadata, None, "kept")
    metadata = replace(store.metadata(graph), parity_threshold=THRESHOLDS[bundle.manifest.precision])
    start = time.perf_counter()
    progress(f"rewriting {graph} for CUDA")
    try:
        with checked_snapshot(bundle, graph, fused=True) as path:
            prepared = fuse(path, graph)
    except BackendError as error:  # a model that the optimizer does not know; the other graphs may do
        return Preparation(metadata, str(error), "prepared")
    exported = _measure(bundle, graph, profiles, backend, None, progress)
    worst = max(exported, key=lambda m: m.parity.relative_l2).parity
    if not worst.relative_l2 <= metadata.parity_threshold:
        raise BackendError(
            f"graph {graph} is wrong on backend {backend.name} as it was exported: it differs from ONNX Runtime on the "
            f"CPU by {worst.relative_l2:.1e} (relative L2, {worst.shapes}); {metadata.parity_threshold:.0e} is allowed "
            f"in {bundle.manifest.precision}. Use --backend cpu or tensorrt, and another onnxruntime-gpu"
        )
    failure = ""
    measured: list[_Measured] = []
    try:
        measured = _measure(bundle, graph, profiles, backend, prepared.model, progress)
    except BackendError as error:  # a kernel that this library or GPU has not
        failure = str(error)
    metadata = replace(
        metadata,
        operators=prepared.operators,
        model_sha256=hashlib.sha256(prepared.model).hexdigest(),
        seconds=round(time.perf_counter() - start, 3),
        parity=tuple(replace(m.parity, shapes=m.profile) for m in measured),
        timings=tuple(CudaTiming(m.profile, e.milliseconds, m.milliseconds) for e, m in zip(exported, measured)),
        failure=failure,
    )
    saved = store.save(metadata, prepared.model)
    return Preparation(metadata, saved.refused, "prepared")


@dataclass(frozen=True)
class _Measured:
    profile: str
    parity: Parity
    milliseconds: float


def _measure(
    bundle: Bundle,
    graph: str,
    profiles: tuple[Profile, ...],
    backend: PreparingBackend,
    model: bytes | None,
    progress: Reporter,
) -> list[_Measured]:
    """Parity and time at each profile. The session ends here: two at once would need the memory twice."""
    session = backend.open_model(bundle, graph, model)
    form = "as exported" if model is None else "as prepared"
    found = []
    for profile in profiles:
        progress(f"checking {graph} {form} at {profile}")
        sizes = profile_to_sizes(profile)
        parity = session_to_parity(bundle, graph, session, sizes)
        feeds: dict[str, Feed] = {}
        for name, values in seeded_inputs(bundle.manifest, graph, sizes).items():
            feeds[name] = backend.upload(values) if values.dtype.kind == "f" and values.ndim > 2 else values
        found.append(_Measured(str(profile), parity, _milliseconds(session, feeds)))
    return found


def _milliseconds(session: Session, feeds: dict[str, Feed]) -> float:
    """Median of a run to its end."""

    def run() -> float:
        start = time.perf_counter()
        outputs: dict[str, Array] = session.run(feeds)
        min(outputs.values(), key=lambda output: output.nbytes).numpy()
        return 1e3 * (time.perf_counter() - start)

    # A GPU that was idle takes a while to its full clock: of the two forms the first would pay for it.
    begun, warm = time.perf_counter(), 0
    while warm < WARM_RUNS or time.perf_counter() - begun < WARM_SECONDS:
        run()
        warm += 1
    return round(statistics.median(run() for _ in range(TIMED_RUNS)), 4)
