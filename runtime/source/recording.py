"""Recording: the source's hidden states, kept so that every further edit costs its own rows only.

A target row that takes the source's map needs the source's normalised hidden states in each replaced layer, at that
step. They depend on the source's latents, the timestep and the source's text alone, not on the target, guidance or
negative
prompt: once recorded they serve every edit of that source. The record graph computes them and stops after the last
layer that is recorded; source rows of several timesteps go through it as one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from freeprompt.contract.errors import UsageError
from freeprompt.contract.graphs import RECORD, STEP_RECORDED, STEP_RECORDING
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.record_size import RECORD_ROWS
from freeprompt.contract.session import Array, Backend, HostArray, NumpyArray, fetch, spill
from freeprompt.runtime.execute import RecordedRows
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings
from freeprompt.runtime.sessions import Graphs

# How an edit comes by the source's hidden states:
AUTO = "auto"  # "exact" where the bundle and the chosen layers allow it, else "none"
EXACT = "exact"  # recorded by rows of their own: the result of the one-engine plan
NONE = "none"  # not recorded: a source row in every step that replaces
FROM_INVERSION = "inversion"  # taken while inverting, one level too clean: approximate
MODES = (AUTO, EXACT, NONE, FROM_INVERSION)


@dataclass(frozen=True)
class Snapshot:
    """The rows of a record at one moment, whatever other threads make of the record while they are read."""

    rows: tuple[RecordedRows, ...]
    on_device: tuple[bool, ...]


@dataclass
class Record:
    """Recorded rows, by pass. ``rows[i]`` maps input names of the step graph to [rows of the pass, N, C].

    ``on_device`` says of each pass whether it lies in the backend's own memory, or waits in the host's. Whoever changes
    the record of an ``Inversion`` holds its lock; whoever runs steps reads a ``snapshot``.
    """

    passes: list[RecordPass] = field(default_factory=list)
    rows: list[RecordedRows] = field(default_factory=list)
    on_device: list[bool] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for rows in tuple(self.rows) for array in rows.values())

    @property
    def levels(self) -> set[int]:
        return {level for record in self.passes for level in record.levels}

    def append(self, record: RecordPass, rows: RecordedRows, on_device: bool = True) -> None:
        self.passes.append(record)
        self.rows.append(rows)
        self.on_device.append(on_device)

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(self.rows), tuple(self.on_device))

    def on_host(self) -> Record:
        """A copy that no backend is needed for."""
        rows: list[RecordedRows] = [_to_host(each) for each in self.rows]
        return Record(list(self.passes), rows, [False] * len(rows))

    def move_to_host(self) -> None:
        """Leave a backend's memory, to be placed in another's."""
        for number, rows in enumerate(self.rows):
            self.rows[number] = _to_host(rows)
            self.on_device[number] = False

    def place(self, backend: Backend, resident: int, start: int = 0) -> None:
        """Keep the first ``resident`` passes on the device and the others on the host, from pass ``start`` on.

        They go one by one, so that there is never more on the device than before and after.
        """
        for number in reversed(range(start, len(self.rows))):  # to the host first: that makes room
            wanted = number < resident
            if not wanted:
                self.rows[number] = spill(backend, self.rows[number])
            elif not self.on_device[number]:
                self.rows[number] = fetch(backend, self.rows[number])
            self.on_device[number] = wanted


class Reader:
    """Recorded rows while a plan runs: passes that wait on the host come back one ahead of the steps that read them.

    ``reader[n]`` are the rows of pass n, the same arrays until another pass is asked for.
    """

    def __init__(self, record: Snapshot, plan: Plan, backend: Backend) -> None:
        self._record = record
        self._backend = backend
        used = list(dict.fromkeys(step.record for step in plan.steps if step.record is not None))
        self._next = dict(itertools.pairwise(used))
        self._fetched: dict[int, RecordedRows] = {}
        self._current: int | None = None

    def __getitem__(self, number: int) -> RecordedRows:
        if number != self._current:
            self._current = number
            ahead = self._next.get(number)
            # The pass before this one is let go first: two are on the device at most.
            self._fetched = {n: rows for n, rows in self._fetched.items() if n in (number, ahead)}
            for wanted in (number, ahead):
                if wanted is not None and not self._record.on_device[wanted] and wanted not in self._fetched:
                    self._fetched[wanted] = fetch(self._backend, self._record.rows[wanted])
        return self._fetched.get(number, self._record.rows[number])


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


def choose_mode(mode: str, manifest: Manifest, settings: EditSettings) -> str:
    """Resolve "auto" and check that the bundle can do what is asked for.

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
        return NONE if obstacle else EXACT
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
        batch: rows of a new pass (``freeprompt.contract.record_size.record_rows``).
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


def make_passes(
    graphs: Graphs,
    record: Record,
    plan: Plan,
    trajectory: NumpyArray,
    encoder_hidden_states: Array,
    check: Callable[[], None],
) -> None:
    """Make the passes that a plan uses and a record lacks, and place all of them.

    Args:
        trajectory, encoder_hidden_states: see ``run_record_pass``.
        check: called before each pass; what it raises leaves the record with the passes made so far.
    """
    resident = len(plan.passes) if plan.resident is None else plan.resident
    record.place(graphs.backend, resident)
    for made in plan.passes[len(record.passes) :]:
        check()
        # No name for the rows here: whoever holds them keeps their device memory from being used again.
        record.append(made, run_record_pass(graphs, made, trajectory, encoder_hidden_states))
        record.place(graphs.backend, resident, len(record.rows) - 1)


def run_record_pass(
    graphs: Graphs, record: RecordPass, trajectory: NumpyArray, encoder_hidden_states: Array
) -> RecordedRows:
    """Record the source's rows of one pass.

    Args:
        trajectory: the source's latents [steps + 1, 1, C, h, w] float32.
        encoder_hidden_states: of which the first text is the source's.
    """
    rows = np.arange(len(record.levels), dtype=np.int32)
    return graphs[RECORD].run(
        {
            "latents": np.ascontiguousarray(trajectory[list(record.levels), 0]),
            "encoder_hidden_states": encoder_hidden_states,
            "row_latent": rows,
            "row_text": np.zeros_like(rows),
            "timestep": np.array(record.timesteps, np.float32),
        }
    )


def _to_host(rows: RecordedRows) -> RecordedRows:
    return {name: HostArray(array.numpy()) for name, array in rows.items()}
