"""Recording: the source's hidden states, kept so that every further edit costs its own rows only.

A target row that takes the source's map needs the source's normalised hidden states in each replaced layer, at that
step. They depend on the source's latents, the timestep and the source's text alone, not on the target, guidance or
negative prompt: once recorded they serve every edit of that source. The record graph computes them and stops after the
last layer that is recorded; source rows of several timesteps go through it as one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from freeprompt.contract.graphs import RECORD
from freeprompt.contract.session import Array, Backend, HostArray, NumpyArray, fetch, spill
from freeprompt.runtime.execute import RecordedRows
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.sessions import Graphs


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

    def place(self, backend: Backend, resident: int | None, start: int = 0) -> None:
        """Keep the first ``resident`` passes (None: all) on the device and the others on the host, from ``start`` on.

        They go one by one, so that there is never more on the device than before and after.
        """
        for number in reversed(range(start, len(self.rows))):  # to the host first: that makes room
            wanted = resident is None or number < resident
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
    record.place(graphs.backend, plan.resident)
    for made in plan.passes[len(record.passes) :]:
        check()
        # No name for the rows here: whoever holds them keeps their device memory from being used again.
        record.append(made, run_record_pass(graphs, made, trajectory, encoder_hidden_states))
        record.place(graphs.backend, plan.resident, len(record.rows) - 1)


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
