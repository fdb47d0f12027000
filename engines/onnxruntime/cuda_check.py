"""Checking and timing the graphs' forms for CUDA where they are to run, before they may be used there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import Array, Backend, Feed, Session
from freeprompt.engines.comparison import THRESHOLDS, profile_to_sizes, seeded_inputs
from freeprompt.engines.onnxruntime.cuda_notes import CudaNote, CudaNotes, CudaTiming
from freeprompt.engines.reference import session_to_parity
from freeprompt.engines.shapes import Profile, Shapes
from freeprompt.engines.tensorrt.building.progress import Reporter

# Enough for a median that the choice of kernels in the first runs does not touch.
WARM_RUNS, WARM_SECONDS, TIMED_RUNS = 3, 0.5, 11


class ComparableBackend(Backend, Protocol):
    """A backend that opens a graph by either form."""

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        """Open ``model``, whose weights are the bundle's; None: the fused form."""
        ...


@dataclass(frozen=True)
class CudaCheck:
    """What became of one graph. ``refused`` says why it runs in its fused form; None: in that for CUDA.

    ``how``: "checked" now, or "kept" from before.
    """

    note: CudaNote
    refused: str | None
    how: str


def check_bundle(
    bundle: Bundle,
    shapes: Shapes,
    backend: ComparableBackend,
    notes: CudaNotes,
    graphs: tuple[str, ...] = (),
    progress: Reporter = lambda line: None,
) -> Iterator[CudaCheck]:
    """Compare the fused form and the form for CUDA of every graph with ONNX Runtime on the CPU, time both, and note it.

    A form for CUDA that cannot be run, differs or is slower is noted so, and not used.

    Args:
        graphs: names; empty: every graph that there are shapes of.

    Raises:
        BackendError: the fused form cannot be run or differs on this device.
        BundleError: a graph has no form for CUDA.
        UsageError: there are no shapes of a graph.
        OutputError: the engines' folder cannot be written.
    """
    planned = {graph: shapes.profiles(graph) for graph in graphs or tuple(shapes.sizes)}
    for graph, profiles in planned.items():
        begun = notes.begin(graph)
        with notes.lock(graph):
            kept = notes.find(graph)
            # What was refused is tried anew: the memory, or the quiet, that it lacked may be there now.
            if kept is not None and {str(profile) for profile in profiles} <= kept.shapes:
                yield CudaCheck(kept, None, "kept")
            else:
                note = _check(bundle, begun, profiles, backend, progress)
                yield CudaCheck(note, notes.save(note).refused, "checked")


def _check(
    bundle: Bundle, note: CudaNote, profiles: tuple[Profile, ...], backend: ComparableBackend, progress: Reporter
) -> CudaNote:
    graph, threshold = note.graph, THRESHOLDS[bundle.manifest.precision]
    start = time.perf_counter()
    fused = _measure(bundle, graph, profiles, backend, None, progress)
    worst = max(fused, key=lambda m: m.parity.relative_l2).parity
    if not worst.relative_l2 <= threshold:
        raise BackendError(
            f"graph {graph} is wrong on backend {backend.name} in its fused form: it differs from ONNX Runtime on the "
            f"CPU by {worst.relative_l2:.1e} (relative L2, {worst.shapes}); {threshold:.0e} is allowed "
            f"in {bundle.manifest.precision}. Use --backend cpu or tensorrt, and another onnxruntime-gpu"
        )
    failure = ""
    cuda: list[_Measured] = []
    try:
        cuda = _measure(bundle, graph, profiles, backend, bundle.read(bundle.cuda_name(graph)), progress)
    except BackendError as error:  # a kernel that this library or GPU has not
        failure = str(error)
    return replace(
        note,
        seconds=round(time.perf_counter() - start, 3),
        parity=tuple(replace(m.parity, shapes=m.profile) for m in cuda),
        parity_threshold=threshold,
        timings=tuple(CudaTiming(m.profile, f.milliseconds, m.milliseconds) for f, m in zip(fused, cuda)),
        failure=failure,
    )


@dataclass(frozen=True)
class _Measured:
    profile: str
    parity: Parity
    milliseconds: float


def _measure(
    bundle: Bundle,
    graph: str,
    profiles: tuple[Profile, ...],
    backend: ComparableBackend,
    model: bytes | None,
    progress: Reporter,
) -> list[_Measured]:
    """Parity and time at each profile. The session ends here: two at once would need the memory twice."""
    session = backend.open_model(bundle, graph, model)
    form = "fused form" if model is None else "form for CUDA"
    found = []
    for profile in profiles:
        progress(f"checking the {form} of {graph} at {profile}")
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
