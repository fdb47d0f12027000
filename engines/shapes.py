"""The shapes an engine is built for, and which of them a run uses.

Static shapes fuse and tune best, so by default an engine knows a few exact sets of them. Some dimensions need not
match: a run with fewer texts, pinned latents or recorded rows than the engine was built for leaves the rest of its
buffers unused, since rows refer to them by index and they are the first axis wherever they occur. Where rows do not
mix at all (the record graph, the autoencoder) they may be fewer as well, and the outputs are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.contract.graphs import PADDED, padded_dimensions
from freeprompt.contract.manifest import TensorSpec


@dataclass(frozen=True)
class Profile:
    """For each named dimension of a graph's inputs the least, the usual and the greatest size.

    ``slack`` names those of which a run may have fewer.
    """

    dims: dict[str, tuple[int, int, int]]
    slack: tuple[str, ...] = PADDED

    @property
    def is_static(self) -> bool:
        return all(low == high for low, _, high in self.dims.values())

    def shape(self, spec: TensorSpec, which: int) -> tuple[int, ...]:
        """A tensor's shape at the least (0), usual (1) or greatest (2) sizes."""
        return tuple(d if isinstance(d, int) else self.dims[d][which] for d in spec.shape)

    def bind(self, sizes: Mapping[str, int]) -> dict[str, int] | None:
        """The sizes an engine runs at to serve a run of ``sizes``, or None if this profile cannot."""
        bound = {}
        for name, (low, _, high) in self.dims.items():
            size = sizes.get(name)
            if size is None or size > high or (size < low and name not in self.slack):
                return None
            bound[name] = high if name in self.slack else size
        return bound

    def waste(self, sizes: Mapping[str, int]) -> int:
        """How much larger than needed this profile is; less is better."""
        return sum(high - sizes[name] for name, (_, _, high) in self.dims.items())

    def __str__(self) -> str:
        def one(low: int, high: int) -> str:
            return str(low) if low == high else f"{low}-{high}"

        return ", ".join(f"{name} {one(low, high)}" for name, (low, _, high) in self.dims.items())


@dataclass(frozen=True)
class Shapes:
    """What to build for.

    Attributes:
        sizes: for each graph the sizes of its inputs' named dimensions, one mapping for each set of them that is run
            (``freeprompt.runtime.plan.shapes`` finds them); the first are the usual ones.
        ranged: one profile from the least to the greatest of everything instead of one for each set.
    """

    sizes: Mapping[str, Sequence[Mapping[str, int]]]
    ranged: bool = False

    def profiles(self, graph: str) -> tuple[Profile, ...]:
        """The profiles of one graph.

        Raises:
            UsageError: there are no sizes for it.
        """
        found = self.sizes.get(graph, ())
        if not found:
            known = ", ".join(self.sizes) or "none"
            raise UsageError(f"nothing that is built for runs graph {graph!r}; there are shapes of: {known}")
        slack = padded_dimensions(graph)
        if not self.ranged:
            return tuple(Profile({n: (s, s, s) for n, s in dims.items()}, slack) for dims in found)
        merged = {}
        for name in found[0]:
            values = [dims[name] for dims in found]
            merged[name] = (min(values), values[0], max(values))
        return (Profile(merged, slack),)


def choose_profile(profiles: tuple[Profile, ...], sizes: Mapping[str, int]) -> tuple[int, dict[str, int]] | None:
    """Number of the profile that serves ``sizes`` with the least waste, and the sizes it then runs at."""
    best: tuple[int, dict[str, int]] | None = None
    for number, profile in enumerate(profiles):
        bound = profile.bind(sizes)
        better = best is None or profile.waste(sizes) < profiles[best[0]].waste(sizes)
        if bound is not None and better:
            best = (number, bound)
    return best


def check_slack(graph: str, specs: tuple[TensorSpec, ...], profiles: tuple[Profile, ...]) -> None:
    """Raises BackendError if a dimension that need not match is not a first axis: the rest would not be at the end."""
    slack = {name for profile in profiles for name in profile.slack}
    for spec in specs:
        if slack.intersection(spec.shape[1:]):
            raise BackendError(f"graph {graph}: {spec} cannot be padded along {', '.join(sorted(slack))}")
