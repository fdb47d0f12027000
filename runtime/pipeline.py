"""Latents to latents: inversion, edits and generation over the graphs of one bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
from tokenizers import Tokenizer

from freeprompt.engines.session import Array, NumpyArray
from freeprompt.errors import InversionError, UsageError
from freeprompt.manifest import Manifest
from freeprompt.recordsize import record_row_bytes, record_rows
from freeprompt.runtime import recording, stages
from freeprompt.runtime.execute import Records, StepResult, run_steps
from freeprompt.runtime.graphs import Graphs
from freeprompt.runtime.inversion import Inversion
from freeprompt.runtime.plan import Plan, RecordPass
from freeprompt.runtime.planner import (
    plan_edit,
    plan_generation,
    plan_inversion,
    plan_synthesis,
    replaced_levels,
    rows_per_target,
)
from freeprompt.runtime.prompt import load_tokenizer
from freeprompt.runtime.schedule import Schedule
from freeprompt.runtime.settings import EditSettings

# Embeddings of a few sets of prompts, so that a server's memory does not grow with every prompt it has seen.
_KEPT_EMBEDDINGS = 8


@dataclass(frozen=True)
class Limits:
    """What an edit may use.

    Attributes:
        rows: most rows of one evaluation; more targets than fit are edited in chunks.
        record_bytes: most bytes of recorded rows that one inversion holds; steps that do not fit are given a
            source row instead, with the same result.
        device_record_bytes: most bytes of these that are in the device's memory; what is beyond waits in page-locked
            host memory and comes back while earlier steps run, with the same result. Two passes (of
            ``recordsize.record_rows`` rows) are on the device in any case. None: all of them. Says nothing on the CPU.
    """

    rows: int = 8
    record_bytes: int = 2 << 30
    device_record_bytes: int | None = None

    def __post_init__(self) -> None:
        fields = [("max_rows", self.rows, 3), ("record_bytes", self.record_bytes, 0)]
        if self.device_record_bytes is not None:
            fields.append(("device_record_bytes", self.device_record_bytes, 0))
        for name, value, least in fields:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} must be a whole number from {least} on, not {value!r}")


# Called after every step: (plan, number of the step from 1, result, schedule).
Observer = Callable[[Plan, int, StepResult, Schedule], None]


def ignore(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
    """An observer that does nothing."""


class Pipeline:
    """Runs plans on the graphs of one bundle. Not for use from two threads at once."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self._tokenizer: Tokenizer | None = None
        self._embeddings: dict[tuple[str, ...], Array] = {}

    @property
    def manifest(self) -> Manifest:
        return self.graphs.bundle.manifest

    def schedule(self, steps: int) -> Schedule:
        """Raises UsageError if there is no such schedule."""
        return Schedule.create(self.manifest.scheduler, steps)

    def invert(
        self,
        latents: Array,
        steps: int,
        mode: str = recording.NONE,
        limits: Limits | None = None,
        observer: Observer = ignore,
    ) -> Inversion:
        """Invert clean latents [1, C, h, w] with the empty prompt; mode "inversion" records on the way."""
        schedule = self.schedule(steps)
        height, width = latents.shape[2:]
        plan = self.plan_inversion(schedule, mode, height, width, limits or Limits())
        levels, record = [latents], recording.Record()
        resident = self._resident(recording.passes_of(plan), (height, width), limits or Limits())
        for result in self._run(plan, schedule, latents, observer):
            levels.append(result.after)
            if result.recorded:
                step = result.step
                record.append(RecordPass((step.next_level,), (step.timestep,)), result.recorded)
                record.place(self.graphs.backend, resident, len(record.rows) - 1)
        bundle, backend = self.graphs.bundle, self.graphs.backend
        inversion = Inversion.from_levels(schedule.steps, "", bundle.sha256, tuple(levels), backend)
        inversion.records[recording.FROM_INVERSION] = record
        return inversion

    def plan_inversion(self, schedule: Schedule, mode: str, height: int, width: int, limits: Limits) -> Plan:
        """The plan of ``invert``."""
        if mode not in recording.MODES:
            raise UsageError(f"unknown record mode {mode!r}; known are {', '.join(recording.MODES)}")
        count = 0
        if mode == recording.FROM_INVERSION:
            size = record_row_bytes(self.manifest, height, width)
            if not size:
                raise UsageError("record='inversion' is not possible: the bundle records no layer")
            count = min(schedule.steps, limits.record_bytes // size)
        return plan_inversion(self.manifest, schedule, recording=count)

    def plan_edits(
        self,
        schedule: Schedule,
        source_prompt: str,
        targets: tuple[str, ...],
        settings: EditSettings,
        size: tuple[int, int],
        mode: str = recording.AUTO,
        limits: Limits | None = None,
        held: Sequence[RecordPass] = (),
    ) -> tuple[Plan, ...]:
        """A plan for each chunk of targets; passes that the first makes are there for the others.

        Raises:
            UsageError: see ``recording.choose_mode``.
        """
        limits = limits or Limits()
        mode = recording.choose_mode(mode, self.manifest, settings)
        bytes_each = record_row_bytes(self.manifest, *size)
        levels = replaced_levels(schedule, settings)
        passes: tuple[RecordPass, ...] = ()
        if mode == recording.EXACT:
            capacity, batch = limits.record_bytes // bytes_each, record_rows(self.manifest, *size)
            passes = recording.choose_passes(held, levels, schedule, capacity, batch)
        elif mode == recording.FROM_INVERSION:
            missing = set(levels) - {level for record in held for level in record.levels}
            if missing:
                raise UsageError(
                    f"this inversion recorded nothing for {len(missing)} of the steps: "
                    "invert with record='inversion', or lower replace_fraction, or raise record_bytes"
                )
            passes = tuple(held)
        source = 0 if mode != recording.NONE and {*levels} <= {n for p in passes for n in p.levels} else 1
        chunk = max(1, (limits.rows - source) // rows_per_target(settings))
        plans, made = [], len(held) if passes else 0
        for start in range(0, max(1, len(targets)), chunk):
            plan = plan_edit(
                self.manifest, schedule, source_prompt, targets[start : start + chunk], settings, passes, made
            )
            resident = self._resident(passes, size, limits)
            plans.append(replace(plan, record_bytes=bytes_each, resident=resident) if passes else plan)
            made = len(passes)
        return tuple(plans)

    def edit(
        self,
        inversion: Inversion,
        targets: tuple[str, ...],
        settings: EditSettings,
        mode: str = recording.AUTO,
        limits: Limits | None = None,
        observer: Observer = ignore,
    ) -> NumpyArray:
        """Final latents of each target, [targets, C, h, w] float32.

        Raises:
            InversionError: the inversion was made with another bundle.
            UsageError: an argument cannot be used.
        """
        if inversion.bundle_sha256 != self.graphs.bundle.sha256:
            raise InversionError(
                "this inversion was made with another bundle; its latents mean nothing to this model: "
                "invert the image again"
            )
        limits = limits or Limits()
        schedule = self.schedule(inversion.steps)
        mode = recording.choose_mode(mode, self.manifest, settings)
        levels = inversion.levels_on(self.graphs.backend)
        record = inversion.records.get(mode) or recording.Record()
        if record.nbytes > limits.record_bytes:
            record = inversion.records[mode] = recording.Record()  # made under a larger budget
        plans = self.plan_edits(
            schedule, inversion.prompt, targets, settings, inversion.size, mode, limits, tuple(record.passes)
        )
        finished, backend = [], self.graphs.backend
        for plan in plans:
            embeddings = self.embed(plan.texts)
            resident = len(plan.passes) if plan.resident is None else plan.resident
            record.place(backend, resident)
            for made in plan.passes[len(record.passes) :]:
                # No name for the rows here: whoever holds them keeps their device memory from being used again.
                record.append(made, recording.run_record_pass(self.graphs, made, inversion.trajectory, embeddings))
                record.place(backend, resident, len(record.rows) - 1)
            start, count = levels[-1], len(plan.steps[0].row_weight)
            if count > 1:
                start = backend.upload(np.repeat(start.numpy(), count, axis=0))
            reader = recording.Reader(record, plan, backend)
            results = self._run(plan, schedule, start, observer, levels, reader)
            finished.append(_last(results, start))
        return np.concatenate(finished)

    def generate(
        self,
        prompt: str,
        noise: NumpyArray,
        steps: int,
        settings: EditSettings,
        observer: Observer = ignore,
    ) -> Inversion:
        """Generate from noise [1, C, h, w] and keep every level's latents."""
        schedule = self.schedule(steps)
        plan = plan_generation(self.manifest, schedule, prompt, settings)
        start = self.graphs.backend.upload(noise)
        levels = [start]
        levels.extend(result.after for result in self._run(plan, schedule, start, observer))
        bundle, backend = self.graphs.bundle, self.graphs.backend
        reverse = tuple(reversed(levels))
        return Inversion.from_levels(schedule.steps, prompt, bundle.sha256, reverse, backend)

    def synthesize(
        self,
        source: str,
        targets: tuple[str, ...],
        noise: NumpyArray,
        steps: int,
        settings: EditSettings,
        limits: Limits | None = None,
        observer: Observer = ignore,
    ) -> NumpyArray:
        """Final latents of source and targets from one noise [1, C, h, w]: [1 + targets, C, h, w] float32.

        Together in one run where their rows fit, else the source first and then its edits: the result is the same.
        """
        limits = limits or Limits()
        schedule = self.schedule(steps)
        plan = plan_synthesis(self.manifest, schedule, source, targets, settings)
        if max(len(step.rows) for step in plan.steps) > limits.rows:
            generated = self.generate(source, noise, steps, settings, observer)
            edited = self.edit(generated, targets, settings, limits=limits, observer=observer)
            return np.concatenate([generated.trajectory[0], edited])
        start = self.graphs.backend.upload(np.repeat(noise, 1 + len(targets), axis=0))
        return _last(self._run(plan, schedule, start, observer), start)

    def embed(self, texts: tuple[str, ...]) -> Array:
        """Embeddings of a set of prompts [texts, tokens, channels] float32, kept for a while."""
        if texts not in self._embeddings:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(
                    self.graphs.bundle.read(self.manifest.tokenizer), self.manifest.tokenizer
                )
            embeddings = stages.prompts_to_embeddings(self.graphs, self._tokenizer, texts)
            while len(self._embeddings) >= _KEPT_EMBEDDINGS:
                del self._embeddings[next(iter(self._embeddings))]
            self._embeddings[texts] = embeddings
        return self._embeddings[texts]

    def _resident(self, passes: Sequence[RecordPass], size: tuple[int, int], limits: Limits) -> int:
        """How many of the passes stay in the device's memory."""
        budget = None if self.graphs.backend.device == "cpu" else limits.device_record_bytes
        return recording.resident_passes(passes, record_row_bytes(self.manifest, *size), budget)

    def _run(
        self,
        plan: Plan,
        schedule: Schedule,
        latents: Array,
        observer: Observer,
        trajectory: Sequence[Array] = (),
        records: Records = (),
    ) -> Iterator[StepResult]:
        embeddings = self.embed(plan.texts)
        results = run_steps(self.graphs, plan, latents, embeddings, trajectory, records)
        for number, result in enumerate(results, 1):
            observer(plan, number, result, schedule)
            yield result


def _last(results: Iterable[StepResult], start: Array) -> NumpyArray:
    last = start
    for result in results:
        last = result.after
    return last.numpy()
