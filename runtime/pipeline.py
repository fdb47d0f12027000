"""Latents to latents: inversion, edits and generation over the graphs of one bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from freeprompt.contract.errors import InversionError
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.session import Array, NumpyArray
from freeprompt.runtime import stages
from freeprompt.runtime.execute import Records, StepResult, run_steps
from freeprompt.runtime.inputs.prompt import PromptReader
from freeprompt.runtime.plan import memory, records
from freeprompt.runtime.plan.edits import Planner
from freeprompt.runtime.plan.limits import Deadline, Limits
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings
from freeprompt.runtime.sessions import Graphs
from freeprompt.runtime.source import recording
from freeprompt.runtime.source.inversion import Inversion
from freeprompt.runtime.source.inversion_check import check_inversion
from freeprompt.runtime.source.record_budget import RecordBudget

# Embeddings of a few sets of prompts, so that a server's memory does not grow with every prompt it has seen.
_KEPT_EMBEDDINGS = 8


# Called after every step: (plan, number of the step from 1, result, schedule).
Observer = Callable[[Plan, int, StepResult, Schedule], None]


def ignore(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
    """An observer that does nothing."""


class Pipeline:
    """Runs plans on the graphs of one bundle. Not for use from two threads at once.

    Where limits are given, what exceeds them is refused: see ``Limits``. A ``deadline`` is when the call has to have
    ended; None: after as many seconds from its start as ``limits`` allow.
    """

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self._prompts = PromptReader(graphs.bundle)
        self._embeddings: dict[tuple[str, ...], Array] = {}
        self.budget = RecordBudget()

    @property
    def manifest(self) -> Manifest:
        return self.graphs.bundle.manifest

    def schedule(self, steps: int) -> Schedule:
        """Raises UsageError if there is no such schedule."""
        return Schedule.create(self.manifest.scheduler, steps)

    def planner(self, steps: int, size: tuple[int, int], limits: Limits) -> Planner:
        """For latents of ``size`` (height, width). Raises UsageError if there is no schedule of so many steps."""
        return Planner(self.manifest, self.schedule(steps), size, limits, self._on_host)

    @property
    def _on_host(self) -> bool:
        return self.graphs.backend.device == "cpu"

    def invert(
        self,
        latents: Array,
        steps: int,
        mode: str = records.NONE,
        limits: Limits | None = None,
        observer: Observer = ignore,
        deadline: Deadline | None = None,
    ) -> Inversion:
        """Invert clean latents [1, C, h, w] with the empty prompt; mode "inversion" records on the way."""
        limits = limits or Limits()
        deadline = deadline or Deadline(limits.seconds)
        height, width = latents.shape[-2:]
        planner = self.planner(steps, (height, width), self.budget.limits_for(None, mode, limits))
        plan, schedule = planner.inversion(mode), planner.schedule
        self._check_memory((plan,), planner.size, limits)
        made_bytes = plan.record_bytes * len(records.passes_of(plan))
        self.budget.make_room(None, made_bytes, limits.total_record_bytes)
        levels, record = [latents], recording.Record()
        for result in self._run(plan, schedule, latents, observer, deadline):
            levels.append(result.after)
            if result.recorded:
                step = result.step
                record.append(RecordPass((step.next_level,), (step.timestep,)), result.recorded)
                record.place(self.graphs.backend, plan.resident, len(record.rows) - 1)
        bundle, backend = self.graphs.bundle, self.graphs.backend
        inversion = Inversion.from_levels(schedule.steps, "", bundle.sha256, tuple(levels), backend)
        inversion.records[records.FROM_INVERSION] = record
        self.budget.use(inversion)
        return inversion

    def plan(
        self,
        source: Inversion | tuple[int, tuple[int, int]],
        targets: tuple[str, ...],
        settings: EditSettings,
        mode: str,
        limits: Limits,
    ) -> tuple[Plan, ...]:
        """What ``edit`` would compute, and before that ``invert`` where there is no inversion yet.

        Args:
            source: an inversion; or the steps, and the (height, width) of the latents, of one that is to be made.

        Raises:
            InversionError, UsageError: see ``edit``.
        """
        mode = records.choose_mode(mode, self.manifest, settings)
        if not isinstance(source, Inversion):
            planner = self.planner(*source, self.budget.limits_for(None, mode, limits))
            inversion = planner.inversion(mode)
            planner = replace(planner, limits=limits)
            return (inversion, *planner.edits("", targets, settings, mode, records.passes_of(inversion)))
        limits = self.budget.limits_for(source, mode, limits)
        planner = self.planner(source.steps, source.size, limits)
        check_inversion(source, self.manifest, planner.schedule)
        held = source.records[mode].passes if mode in source.records else ()
        return planner.edits(source.prompt, targets, settings, mode, tuple(held))

    def edit(
        self,
        inversion: Inversion,
        targets: tuple[str, ...],
        settings: EditSettings,
        mode: str = records.AUTO,
        limits: Limits | None = None,
        observer: Observer = ignore,
        deadline: Deadline | None = None,
    ) -> NumpyArray:
        """Final latents of each target, [targets, C, h, w] float32.

        Raises:
            InversionError: the inversion was made with another bundle.
            UsageError: an argument cannot be used.
            LimitError: it needs more memory or time than there is.
        """
        if inversion.bundle_sha256 != self.graphs.bundle.sha256:
            raise InversionError(
                "this inversion was made with another bundle; its latents mean nothing to this model: "
                "invert the image again"
            )
        limits = limits or Limits()
        deadline = deadline or Deadline(limits.seconds)
        planner = self.planner(inversion.steps, inversion.size, limits)
        schedule = planner.schedule
        check_inversion(inversion, self.manifest, schedule)
        mode = records.choose_mode(mode, self.manifest, settings)
        backend = self.graphs.backend
        with inversion.lock:
            levels = inversion.levels_on(backend)
            limits = self.budget.limits_for(inversion, mode, limits)
            record = inversion.records.get(mode) or recording.Record()
            if record.nbytes > limits.record_bytes:
                record = inversion.records[mode] = recording.Record()  # made under a larger budget
            planner = replace(planner, limits=limits)
            plans = planner.edits(inversion.prompt, targets, settings, mode, tuple(record.passes))
            self.check_prompts(plans)
            self._check_memory(plans, inversion.size, limits)
            self.budget.use(inversion)
            wanted = inversion.record_bytes - record.nbytes + plans[0].total_record_bytes
            self.budget.make_room(inversion, wanted, limits.total_record_bytes)
            embeddings = self.embed(plans[0].texts)
            recording.make_passes(self.graphs, record, plans[0], inversion.trajectory, embeddings, deadline.check)
            held = record.snapshot()
        finished = []
        for plan in plans:
            start, count = levels[-1], len(plan.steps[0].row_weight)
            if count > 1:
                start = backend.upload(np.repeat(start.numpy(), count, axis=0))
            reader = recording.Reader(held, plan, backend)
            results = self._run(plan, schedule, start, observer, deadline, levels, reader)
            finished.append(_last(results, start))
        return np.concatenate(finished)

    def generate(
        self,
        prompt: str,
        noise: NumpyArray,
        steps: int,
        settings: EditSettings,
        observer: Observer = ignore,
        limits: Limits | None = None,
        deadline: Deadline | None = None,
    ) -> Inversion:
        """Generate from noise [1, C, h, w] and keep every level's latents."""
        limits = limits or Limits()
        deadline = deadline or Deadline(limits.seconds)
        planner = self.planner(steps, noise.shape[-2:], limits)
        plan, schedule = planner.generation(prompt, settings), planner.schedule
        self._check_memory((plan,), planner.size, limits)
        start = self.graphs.backend.upload(noise)
        levels = [start]
        levels.extend(result.after for result in self._run(plan, schedule, start, observer, deadline))
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
        deadline = Deadline(limits.seconds)
        planner = self.planner(steps, noise.shape[-2:], limits)
        plan = planner.synthesis(source, targets, settings)
        self.check_prompts((plan,))
        if not planner.fits(plan):
            generated = self.generate(source, noise, steps, settings, observer, limits, deadline)
            edited = self.edit(generated, targets, settings, limits=limits, observer=observer, deadline=deadline)
            return np.concatenate([generated.trajectory[0], edited])
        self._check_memory((plan,), planner.size, limits)
        start = self.graphs.backend.upload(np.repeat(noise, 1 + len(targets), axis=0))
        return _last(self._run(plan, planner.schedule, start, observer, deadline), start)

    def check_prompts(self, plans: Iterable[Plan]) -> None:
        """Read the prompts of plans, before the work that a wrong one would waste.

        Warns PromptTruncatedWarning where one is cut. Raises UsageError where one cannot be encoded.
        """
        self._prompts.ids(dict.fromkeys(text for plan in plans for text in plan.texts))

    def embed(self, texts: tuple[str, ...]) -> Array:
        """Embeddings of a set of prompts [texts, tokens, channels] float32, kept for a while."""
        if texts not in self._embeddings:
            embeddings = stages.ids_to_embeddings(self.graphs, self._prompts.ids(texts))
            while len(self._embeddings) >= _KEPT_EMBEDDINGS:
                del self._embeddings[next(iter(self._embeddings))]
            self._embeddings[texts] = embeddings
        return self._embeddings[texts]

    def _check_memory(self, plans: Sequence[Plan], size: tuple[int, int], limits: Limits) -> None:
        needed = memory.estimate(self.manifest, plans, size, self._on_host)
        memory.check_memory(needed, limits.memory_bytes)

    def _run(
        self,
        plan: Plan,
        schedule: Schedule,
        latents: Array,
        observer: Observer,
        deadline: Deadline,
        trajectory: Sequence[Array] = (),
        rows: Records = (),
    ) -> Iterator[StepResult]:
        deadline.check()
        embeddings = self.embed(plan.texts)
        results = run_steps(self.graphs, plan, latents, embeddings, trajectory, rows)
        for number, result in enumerate(results, 1):
            observer(plan, number, result, schedule)
            yield result
            if number < len(plan.steps):
                deadline.check()


def _last(results: Iterable[StepResult], start: Array) -> NumpyArray:
    last = start
    for result in results:
        last = result.after
    return last.numpy()


__all__ = ["Limits", "Observer", "Pipeline", "ignore"]
