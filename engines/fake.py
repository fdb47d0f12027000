"""A backend without a model, for tests of whatever drives sessions (shipped, so that users can test theirs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.manifest import Manifest, TensorSpec
from freeprompt.contract.session import Array, Feed, HostArray, NumpyArray, check_feeds, check_results

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

    behaviour: Behaviour | None = None
    calls: list[Call] = field(default_factory=list)
    name: str = "fake"
    device: str = "fake"

    def open(self, bundle: Bundle, graph: str) -> FakeSession:
        spec = bundle.manifest.graph(graph)
        return FakeSession(self, graph, spec.inputs, spec.outputs, bundle.manifest)

    def upload(self, array: NumpyArray) -> Array:
        return HostArray(np.array(array))


@dataclass
class FakeSession:
    """A session of ``FakeBackend``; ``scale``: pixels for each latent."""

    backend: FakeBackend
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        sizes = check_feeds(self.graph, self.inputs, feeds)
        values = {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in feeds.items()}
        self.backend.calls.append(Call(self.graph, values))
        if self.backend.behaviour is not None:
            results = self.backend.behaviour(self.graph, values)
        else:
            known = _with_derived(sizes, self.manifest)
            results = {
                spec.name: np.zeros(tuple(d if isinstance(d, int) else known.get(d, 1) for d in spec.shape), spec.dtype)
                for spec in self.outputs
            }
        arrays: dict[str, Array] = {name: HostArray(value) for name, value in results.items()}
        check_results(self.graph, self.outputs, arrays, sizes)
        return arrays


def _with_derived(sizes: dict[str, int], manifest: Manifest) -> dict[str, int]:
    """Sizes of inputs, and those of outputs that follow from them."""
    scale, sizes = manifest.latents.scale, dict(sizes)
    for name in ("height", "width"):
        if f"image_{name}" in sizes:
            sizes[name] = sizes[f"image_{name}"] // scale
        elif name in sizes:
            sizes[f"image_{name}"] = sizes[name] * scale
    for layer in manifest.layers:
        sizes[f"tokens_{layer.level}"] = sizes.get("height", 1) * sizes.get("width", 1) // 4**layer.level
    return sizes
