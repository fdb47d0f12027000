"""The shapes an engine is built for, and which of them a run uses.

Static shapes fuse and tune best, so by default an engine knows a few exact sets of them. Some dimensions need not
match: a run with fewer texts, pinned latents or recorded rows than the engine was built for leaves the rest of its
buffers unused, since rows refer to them by index and they are the first axis wherever they occur. Where rows do not
mix at all (the record graph, the autoencoder) they may be fewer as well, and the outputs are cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.contract.graphs import PADDED, RECORD, STEP_RECORDED, STEP_RECORDING, TEXT_ENCODER, padded_dimensions
from freeprompt.contract.manifest import GraphSpec, Manifest, TensorSpec
from freeprompt.contract.record_size import record_rows

# An edit has its rows' prompts, the empty one and a negative one: never more texts than rows and two.
EXTRA_TEXTS = 2
# Inversion; two rows of guidance (generation, or an edit after its replaced steps); those and the source's row.
DEFAULT_ROWS = "1,2,3"


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
class Rows:
    """A batch of the U-Net: its rows, and the latents that they step."""

    rows: int
    latents: int

    @classmethod
    def parse(cls, text: str) -> Rows:
        """From "3" (latents as an edit or a generation has them: half the rows) or "4:4".

        Raises:
            UsageError: not of that form, or below 1.
        """
        found = re.fullmatch(r"\s*(\d{1,3})(?::(\d{1,3}))?\s*", text)
        if not found:
            raise UsageError(f"rows must be numbers such as 1,2,3 or ROWS:LATENTS, not {text!r}")
        rows = int(found.group(1))
        latents = int(found.group(2) or max(1, rows // 2))
        if not 1 <= latents <= rows:
            raise UsageError(f"rows must be at least 1, and latents from 1 to the rows, not {text!r}")
        return cls(rows, latents)


@dataclass(frozen=True)
class Shapes:
    """What to build for.

    Attributes:
        sizes: (width, height) in pixels.
        rows: batches of the step graphs.
        record_rows: recorded rows that are given to a step at once; None: as many as the runtime records at a size.
        ranged: one profile from the least to the greatest of everything instead of one for each combination.
    """

    sizes: tuple[tuple[int, int], ...]
    rows: tuple[Rows, ...]
    record_rows: int | None = None
    ranged: bool = False

    def profiles(self, manifest: Manifest, graph: str) -> tuple[Profile, ...]:
        """The profiles of one graph, without repetition.

        Raises:
            UsageError: nothing to build for, or a size that the model cannot take.
            BackendError: the graph has a dimension that is not known here.
        """
        if not self.sizes or not self.rows or (self.record_rows is not None and self.record_rows < 1):
            raise UsageError("give at least one size, one number of rows and one recorded row")
        spec = manifest.graph(graph)
        texts = max(r.rows for r in self.rows) + EXTRA_TEXTS
        found: list[dict[str, int]] = []
        for size in self.sizes:
            latents = manifest.latents
            recorded = self.record_rows or record_rows(manifest, size[1] // latents.scale, size[0] // latents.scale)
            for rows in self._batches(graph, recorded):
                dims = _dims(manifest, size, rows, recorded)
                if graph == TEXT_ENCODER:
                    dims["texts"] = texts
                chosen = {name: _known(dims, name, graph) for name in _names(spec)}
                if chosen not in found:
                    found.append(chosen)
        slack = padded_dimensions(graph)
        if not self.ranged:
            return tuple(Profile({n: (s, s, s) for n, s in dims.items()}, slack) for dims in found)
        merged = {}
        for name in found[0]:
            values = [dims[name] for dims in found]
            merged[name] = (min(values), values[0], max(values))
        return (Profile(merged, slack),)

    def _batches(self, graph: str, recorded: int) -> tuple[Rows, ...]:
        """Batches that the runtime gives to a graph (``freeprompt.runtime.plan.planner``)."""
        if graph == RECORD:
            return (Rows(recorded, recorded),)
        if graph == STEP_RECORDING:
            return (Rows(1, 1),)
        if graph == STEP_RECORDED:
            # The source's row is recorded: two rows a target are left.
            return tuple(r for r in self.rows if r.rows % 2 == 0) or self.rows
        return self.rows


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


def _dims(manifest: Manifest, size: tuple[int, int], rows: Rows, record_rows: int) -> dict[str, int]:
    latents = manifest.latents
    width, height = size
    block = latents.scale * latents.multiple
    if min(size) < 1 or width % block or height % block:
        raise UsageError(f"size {width}x{height} is not a multiple of {block} pixels, as the model needs")
    high, wide = height // latents.scale, width // latents.scale
    dims = {
        "rows": rows.rows,
        "latents": rows.latents,
        "pinned": rows.latents,
        "texts": rows.rows + EXTRA_TEXTS,
        "record_rows": record_rows,
        "height": high,
        "width": wide,
        "images": 1,
        "image_height": height,
        "image_width": width,
    }
    for layer in manifest.layers:
        dims[f"tokens_{layer.level}"] = high * wide // 4**layer.level
    return dims


def _names(spec: GraphSpec) -> list[str]:
    """Named dimensions of the inputs, in order of appearance."""
    names = [dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)]
    return list(dict.fromkeys(names))


def _known(dims: Mapping[str, int], name: str, graph: str) -> int:
    if name not in dims:
        raise BackendError(f"graph {graph} has a dimension {name!r} that this freeprompt does not know")
    return dims[name]
