"""Running every graph once at every shape, so that a backend builds and keeps what an edit would wait for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import Backend
from freeprompt.engines.comparison import THRESHOLDS, profile_to_sizes
from freeprompt.engines.reference import session_to_parity
from freeprompt.engines.shapes import Shapes
from freeprompt.engines.tensorrt.building.progress import Reporter


@runtime_checkable
class PlacedSession(Protocol):
    """A session that may know which of its nodes run where, to be printed."""

    @property
    def placement(self) -> object | None: ...


def warm_bundle(
    bundle: Bundle,
    shapes: Shapes,
    backend: Backend,
    graphs: tuple[str, ...] = (),
    progress: Reporter = lambda line: None,
) -> Iterator[Parity]:
    """Run every graph once at every shape; a provider that keeps what it compiles compiles what it lacks.

    Args:
        graphs: names; empty: every graph that there are shapes of.

    Yields:
        how far each differs from ONNX Runtime on the CPU.

    Raises:
        BackendError: a graph cannot be run, or differs by more than its precision allows.
        UsageError: there are no shapes of a graph.
    """
    bound = THRESHOLDS[bundle.manifest.precision]
    for graph in graphs or tuple(shapes.sizes):
        session = backend.open(bundle, graph)
        if isinstance(session, PlacedSession) and session.placement is not None:
            progress(f"{graph}: {session.placement}")
        for profile in shapes.profiles(graph):
            progress(f"running {graph} at {profile}")
            parity = session_to_parity(bundle, graph, session, profile_to_sizes(profile), runs=1)
            if not parity.relative_l2 <= bound:
                raise BackendError(
                    f"graph {graph} is wrong on backend {backend.name}: it differs from ONNX Runtime on the CPU by "
                    f"{parity.relative_l2:.1e} (relative L2, {parity.shapes}); {bound:.0e} is allowed in "
                    f"{bundle.manifest.precision}. Use another backend"
                )
            yield replace(parity, shapes=f"{graph} at {parity.shapes}")
