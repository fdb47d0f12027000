"""A backend without a model, for tests of whatever drives sessions (shipped, so that users can test theirs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np

from freeprompt.bundle import Bundle
from freeprompt.engines.session import Array, Feed, HostArray, NumpyArray, check_feeds, check_results
from freeprompt.manifest import TensorSpec

Behaviour = Callable[[str, Mapping[str, NumpyArray]], dict[str, NumpyArray]]


@dataclass(frozen=True)
class Call:
    """One run of a fake session: which graph, and what it was given."""

    graph: str
    feeds: dict[str, NumpyArray]


@dataclass
class FakeBackend:
    """Checks feeds as a real backend does, notes every call, and computes zeros or what ``behaviour`` says.

    Args:
        behaviour: maps (graph name, inputs) to outputs; None gives zeros of the manifest's shapes.
    """

    behaviour: Optional[Behaviour] = None
    calls: list[Call] = field(default_factory=list)
    name: str = "fake"
    device: str = "fake"

    def open(self, bundle: Bundle, graph: str) -> FakeSession:
        spec = bundle.manifest.graph(graph)
        return FakeSession(self, graph, spec.inputs, spec.outputs, bundle.manifest.latents.scale)

    def upload(self, array: NumpyArray) -> Array:
        return HostArray(np.array(array))


@dataclass
class FakeSession:
    """A session of ``FakeBackend``; ``scale``: pixels for each latent."""

    backend: FakeBackend
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scale: int = 1

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        sizes = check_feeds(self.graph, self.inputs, feeds)
        values = {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in feeds.items()}
        self.backend.calls.append(Call(self.graph, values))
        if self.backend.behaviour is not None:
            results = self.backend.behaviour(self.graph, values)
        else:
            known = dict(sizes)
            for side in ("height", "width"):
                # On the other side of the autoencoder.
                known.setdefault(f"image_{side}", sizes.get(side, 1) * self.scale)
                known.setdefault(side, sizes.get(f"image_{side}", self.scale) // self.scale)
            results = {
                spec.name: np.zeros(
                    tuple(d if isinstance(d, int) else known.get(d, 1) for d in spec.shape),
                    spec.dtype,
                )
                for spec in self.outputs
            }
        arrays: dict[str, Array] = {name: HostArray(value) for name, value in results.items()}
        check_results(self.graph, self.outputs, arrays, sizes)
        return arrays
