"""A backend around another that counts what is really executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from freeprompt.bundle import Bundle
from freeprompt.engines.session import Array, Backend, Feed, NumpyArray, Session
from freeprompt.manifest import TensorSpec


@dataclass
class CountingBackend:
    """Counts the rows that each graph evaluates."""

    inner: Backend
    rows: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def device(self) -> str:
        return self.inner.device

    def open(self, bundle: Bundle, graph: str) -> Session:
        return CountingSession(self, graph, self.inner.open(bundle, graph))

    def upload(self, array: NumpyArray) -> Array:
        return self.inner.upload(array)

    def reset(self) -> None:
        self.rows.clear()
        self.runs.clear()


@dataclass
class CountingSession:
    """A session of ``CountingBackend``."""

    backend: CountingBackend
    graph: str
    inner: Session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        self.backend.runs[self.graph] += 1
        if "row_latent" in feeds:
            self.backend.rows[self.graph] += feeds["row_latent"].shape[0]
        return self.inner.run(feeds)
