"""Deciding what is recorded of a source: in which mode, in which passes, and how many of them stay on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from freeprompt.contract.errors import UsageError
from freeprompt.contract.graphs import RECORD, STEP_RECORDED, STEP_RECORDING
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.record_size import RECORD_ROWS
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings

# How an edit comes by the source's hidden states:
AUTO = "auto"  # "exact" where it pays and the bundle and the chosen layers allow it, else "none": ``choose_mode``
EXACT = "exact"  # recorded by rows of their own: the result of the one-engine plan
NONE = "none"  # not recorded: a source row in every step that replaces
FROM_INVERSION = "inversion"  # taken while inverting, one level too clean: approximate
MODES = (AUTO, EXACT, NONE, FROM_INVERSION)


def resident_passes(passes: Sequence[RecordPass], bytes_each: int, budget: int | None) -> int:
    """How many passes, from the first, stay on the device.

    Each is read once in an edit, so that any choice of as many costs the same traffic; the first are kept, since
    nothing has to be waited for then when the steps begin. Where some are not kept, two are on the device at a time:
    the one that is read and the one that comes next. They are taken off the budget, and are there even if it is less.

    Args:
        bytes_each: of a recorded row.
        budget: bytes; None: no bound.
    """
    sizes = [bytes_each * len(record.levels) for record in passes]
    if budget is None or sum(sizes) <= budget:
        return len(sizes)
    left = budget - 2 * max(sizes)
    count = 0
    for size in sizes:
        left -= size
        if left < 0:
            break
        count += 1
    return count


def choose_mode(mode: str, manifest: Manifest, settings: EditSettings, further_edits: bool = True) -> str:
    """Resolve "auto" and check that the bundle can do what is asked for.

    Args:
        further_edits: whether the source will be edited again, or its record is kept or there already. One edit alone
            needs one graph without a record, and two more to load with it: recording pays from the second on.

    Raises:
        UsageError: unknown mode, or one that the bundle's graphs or the chosen layers do not allow.
    """
    if mode not in MODES:
        raise UsageError(f"unknown record mode {mode!r}; known are {', '.join(MODES)}")
    recordable = {layer.number for layer in manifest.layers if layer.recordable}
    missing = set(settings.replace_layers) - recordable
    obstacle = None
    needed = {EXACT: (RECORD, STEP_RECORDED), FROM_INVERSION: (STEP_RECORDING, STEP_RECORDED)}
    for graph in needed.get(EXACT if mode == AUTO else mode, ()):
        if graph not in manifest.graphs:
            obstacle = f"the bundle has no graph {graph!r}; export it with the profile 'latency'"
    if missing:
        obstacle = f"layer {min(missing)} is not recordable in this bundle; it records {sorted(recordable)}"
    elif settings.replace_cross_layers:
        obstacle = "cross-attention maps are not recorded"
    if mode == AUTO:
        return EXACT if further_edits and not obstacle else NONE
    if obstacle and mode != NONE:
        raise UsageError(f"record={mode!r} is not possible: {obstacle}")
    return mode


def choose_passes(
    held: Sequence[RecordPass], levels: Iterable[int], schedule: Schedule, capacity: int, batch: int = RECORD_ROWS
) -> tuple[RecordPass, ...]:
    """The passes an edit uses: those held, then new ones for the levels that are missing, as far as they fit.

    Args:
        held: passes made before; a prefix of the result.
        levels: that replace maps, in order of use.
        capacity: rows that may be held in all; levels past it are left to a source row in the step.
        batch: rows of a new pass (``freeprompt.runtime.plan.record_size.record_rows``).
    """
    have = {level for record in held for level in record.levels}
    free = max(0, capacity - len(have))
    missing = [level for level in levels if level not in have][:free]
    passes = list(held)
    for start in range(0, len(missing), batch):
        chunk = tuple(missing[start : start + batch])
        passes.append(RecordPass(chunk, tuple(schedule.timesteps[level - 1] for level in chunk)))
    return tuple(passes)


def passes_of(plan: Plan) -> tuple[RecordPass, ...]:
    """The passes that an inversion makes on the way."""
    return tuple(
        RecordPass((step.next_level,), (step.timestep,)) for step in plan.steps if step.graph == STEP_RECORDING
    )
