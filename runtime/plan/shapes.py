"""From plans to the sizes of every graph's dimensions: what an engine has to be built for.

Rows, latents, height and width are exactly those that a plan's steps have. The other sizes may be larger than a run's,
and are a little, so that one engine serves more runs (``freeprompt.engines.shapes`` says how):

- ``texts``: two more than rows, or as many as the plans have. An edit has its rows' prompts, the empty one and a
  negative one: never more;
- ``pinned``: as many as latents;
- ``record_rows``, and rows and latents of the record graph: as many as the largest pass records.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from freeprompt.contract.defaults import GUIDANCE, REAL_FRACTION, STEPS
from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.contract.graphs import RECORD, STEP, STEP_RECORDED, STEP_RECORDING
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan import records
from freeprompt.runtime.plan.edits import Planner
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.plan import Plan
from freeprompt.runtime.plan.record_size import record_rows
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings, choice_to_layers

EXTRA_TEXTS = 2
# For each graph the sizes of its inputs' named dimensions, one mapping for each set of them that is run.
GraphSizes = Mapping[str, Sequence[Mapping[str, int]]]


@dataclass(frozen=True, order=True)
class Batch:
    """A batch of the U-Net: its rows, and the latents that they step."""

    rows: int
    latents: int

    @classmethod
    def parse(cls, text: str) -> Batch:
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


def usual_plans(planner: Planner, prompts: Iterable[int] = (1,), modes: Iterable[str] | None = None) -> Iterator[Plan]:
    """Inversion, generation, and edits with so many prompts: what users run.

    Args:
        planner: its limits say into which chunks many prompts are cut.
        modes: how the edits record, other than "auto"; None: in every way that the bundle allows.

    Raises:
        UsageError: a mode that the bundle does not allow, or more prompts than the limits do.
    """
    manifest = planner.manifest
    layers = tuple(layer.number for layer in manifest.layers if layer.recordable)
    # Which layers are chosen changes no shape, as long as they can be recorded.
    settings = EditSettings(GUIDANCE, REAL_FRACTION, "negative", layers or choice_to_layers(None, manifest.layers))
    yield planner.inversion()
    yield planner.generation("prompt", settings)
    # Steps whose rows do not fit cannot be edited in the mode "inversion": they ask for no shape.
    unbounded = replace(planner, limits=replace(planner.limits, record_bytes=1 << 62))
    for mode in _allowed(manifest, settings) if modes is None else modes:
        from_inversion = mode == records.FROM_INVERSION
        inversion = unbounded.inversion(mode)
        if from_inversion:
            yield inversion
        for count in prompts:
            targets = tuple(map(str, range(count)))
            chosen = unbounded if from_inversion else planner
            yield from chosen.edits("", targets, settings, mode, records.passes_of(inversion))


def plans_to_sizes(
    manifest: Manifest, plans: Iterable[Plan], size: tuple[int, int], recorded: int | None = None
) -> GraphSizes:
    """The sizes that plans need, of each graph that they run.

    Args:
        size: (height, width) of the latents.
        recorded: rows of a record pass; None: those of the largest.

    Raises:
        BackendError: a graph has a dimension that is not known here.
    """
    batches: dict[str, set[Batch]] = {}
    texts, largest = 0, 1
    for plan in plans:
        texts = max(texts, len(plan.texts))
        largest = max([largest, *(len(made.levels) for made in plan.passes)])
        for step in plan.steps:
            batches.setdefault(step.graph, set()).add(Batch(len(step.rows), len(step.row_weight)))
        if plan.record_rows:
            batches[RECORD] = set()
    recorded = recorded or largest
    if RECORD in batches:
        batches[RECORD] = {Batch(recorded, recorded)}
    return _to_sizes(manifest, {graph: sorted(each) for graph, each in batches.items()}, size, recorded, texts)


def batches_to_sizes(
    manifest: Manifest, batches: Sequence[Batch], size: tuple[int, int], recorded: int | None = None
) -> GraphSizes:
    """The sizes for batches of one's own choice, of every graph; the rest as for ``plans_to_sizes``."""
    recorded = recorded or record_rows(manifest, *size)
    # The source's row is recorded: two rows a target are left.
    even = [batch for batch in batches if batch.rows % 2 == 0]
    by_graph: dict[str, Sequence[Batch]] = {
        STEP: batches,
        STEP_RECORDED: even or batches,
        STEP_RECORDING: [Batch(1, 1)],
        RECORD: [Batch(recorded, recorded)],
    }
    return _to_sizes(manifest, by_graph, size, recorded)


def usual_sizes(
    manifest: Manifest,
    sizes: Iterable[tuple[int, int]],
    prompts: Sequence[int] = (1,),
    modes: Sequence[str] | None = None,
    limits: Limits | None = None,
    recorded: int | None = None,
) -> GraphSizes:
    """What ``usual_plans`` need, at each (height, width) of the latents. Raises UsageError as they do."""
    schedule = Schedule.create(manifest.scheduler, STEPS)
    planners = [Planner(manifest, schedule, size, limits or Limits(), on_host=True) for size in sizes]
    return joined(plans_to_sizes(manifest, usual_plans(p, prompts, modes), p.size, recorded) for p in planners)


def joined(several: Iterable[GraphSizes]) -> GraphSizes:
    """All of them, without repetition."""
    found: dict[str, list[Mapping[str, int]]] = {}
    for sizes in several:
        for graph, each in sizes.items():
            known = found.setdefault(graph, [])
            known.extend(dims for dims in each if dims not in known)
    return found


def _allowed(manifest: Manifest, settings: EditSettings) -> Iterator[str]:
    for mode in (records.NONE, records.EXACT, records.FROM_INVERSION):
        with contextlib.suppress(UsageError):
            yield records.choose_mode(mode, manifest, settings)


def _to_sizes(
    manifest: Manifest,
    batches: Mapping[str, Sequence[Batch]],
    size: tuple[int, int],
    recorded: int,
    texts: int = 0,
) -> GraphSizes:
    (height, width), scale = size, manifest.latents.scale
    fixed = {
        "record_rows": recorded,
        "height": height,
        "width": width,
        "images": 1,
        "image_height": height * scale,
        "image_width": width * scale,
        **{f"tokens_{layer.level}": height * width // 4**layer.level for layer in manifest.layers},
    }
    most = max(batch.rows for batch in batches[STEP])
    found: dict[str, list[Mapping[str, int]]] = {}
    for graph, spec in manifest.graphs.items():
        names = dict.fromkeys(name for tensor in spec.inputs for name in tensor.shape if isinstance(name, str))
        for batch in batches.get(graph, ()) if graph in _OF_UNET else [Batch(most, most)]:
            dims = {
                **fixed,
                "rows": batch.rows,
                "latents": batch.latents,
                "pinned": batch.latents,
                "texts": max(texts, batch.rows + EXTRA_TEXTS),
            }
            unknown = names.keys() - dims.keys()
            if unknown:
                raise BackendError(f"graph {graph} has a dimension {min(unknown)!r} that this freeprompt does not know")
            chosen = {name: dims[name] for name in names}
            if chosen not in found.setdefault(graph, []):
                found[graph].append(chosen)
    return found


_OF_UNET = frozenset({STEP, STEP_RECORDED, STEP_RECORDING, RECORD})
