"""A backend around another that meters what is really executed: rows and time of every evaluation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.manifest import TensorSpec
from freeprompt.contract.session import Array, Backend, Feed, NumpyArray, Session


@dataclass(frozen=True)
class Evaluation:
    """One run of one graph. ``rows`` is 0 for graphs without rows (text encoder, autoencoder)."""

    graph: str
    rows: int
    start: float
    seconds: float


@dataclass
class MeteredBackend:
    """Meters every session that it opens.

    Attributes:
        waits: wait for the device after each evaluation. Without it the time of an evaluation on a GPU is that
            of enqueuing it; with it nothing is enqueued ahead.
        evaluations: in order, since the last ``take``.
    """

    inner: Backend
    waits: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def device(self) -> str:
        return self.inner.device

    def open(self, bundle: Bundle, graph: str) -> Session:
        return MeteredSession(self, graph, self.inner.open(bundle, graph))

    def upload(self, array: NumpyArray) -> Array:
        return self.inner.upload(array)

    def take(self) -> list[Evaluation]:
        """The evaluations since the last call."""
        taken, self.evaluations = self.evaluations, []
        return taken


@dataclass
class MeteredSession:
    """A session of ``MeteredBackend``."""

    backend: MeteredBackend
    graph: str
    inner: Session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        rows = feeds["row_latent"].shape[0] if "row_latent" in feeds else 0
        start = time.perf_counter()
        outputs = self.inner.run(feeds)
        if self.backend.waits:
            # The smallest output: all are ready when one is, and copying it is what costs.
            min(outputs.values(), key=lambda array: array.nbytes).numpy()
        seconds = time.perf_counter() - start
        self.backend.evaluations.append(Evaluation(self.graph, rows, start, seconds))
        return outputs


def rows_by_graph(evaluations: Iterable[Evaluation]) -> dict[str, int]:
    """Rows executed, by graph."""
    count: Counter[str] = Counter()
    for evaluation in evaluations:
        count[evaluation.graph] += evaluation.rows
    return {graph: rows for graph, rows in count.items() if rows}


def seconds_of(evaluations: Iterable[Evaluation], graphs: str) -> float:
    """Time of the graphs whose name is ``graphs``, or begins with it and "_"."""
    return sum(e.seconds for e in evaluations if e.graph == graphs or e.graph.startswith(f"{graphs}_"))
