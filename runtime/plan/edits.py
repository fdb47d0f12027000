"""Planning whole computations: chunks of targets, record passes, and what of these stays on the device.

What is returned is complete: whoever runs it decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan import planner, records
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.record_size import record_row_bytes, record_rows
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings


@dataclass(frozen=True)
class Planner:
    """Plans what is computed for one source, or refuses it.

    Attributes:
        size: (height, width) of the latents.
        limits: what exceeds ``rows``, ``record_bytes`` or ``device_record_bytes`` is planned another way, what exceeds
            any other limit is refused with UsageError.
        on_host: whether the device's memory is the host's, so that all that is recorded stays where it is.
    """

    manifest: Manifest
    schedule: Schedule
    size: tuple[int, int]
    limits: Limits
    on_host: bool

    def inversion(self, mode: str = records.NONE) -> Plan:
        """DDIM inversion with the empty prompt. Mode "inversion" records in the last steps, as many as fit.

        Raises:
            UsageError: unknown mode, one that the bundle has no graphs for, or a limit is exceeded.
        """
        if mode not in records.MODES:
            raise UsageError(f"unknown record mode {mode!r}; known are {', '.join(records.MODES)}")
        self._check()
        count = 0
        if mode == records.FROM_INVERSION:
            if not self._row_bytes:
                raise UsageError("record='inversion' is not possible: the bundle records no layer")
            count = min(self.schedule.steps, self.limits.record_bytes // self._row_bytes)
        plan = planner.plan_inversion(self.manifest, self.schedule, recording=count)
        made = records.passes_of(plan)
        return replace(plan, record_bytes=self._row_bytes, resident=self._resident(made)) if made else plan

    def edits(
        self,
        source_prompt: str,
        targets: tuple[str, ...],
        settings: EditSettings,
        mode: str = records.AUTO,
        held: Sequence[RecordPass] = (),
    ) -> tuple[Plan, ...]:
        """A plan for each chunk of targets; passes that the first makes are there for the others.

        Args:
            mode: see ``records.choose_mode``.
            held: passes that the source's record has in that mode.

        Raises:
            UsageError: no target, a mode that the bundle or the source's record does not allow, or a limit is exceeded.
        """
        planner.check_targets(targets)
        self._check(targets, (source_prompt, settings.negative_prompt))
        mode = records.choose_mode(mode, self.manifest, settings)
        levels = planner.replaced_levels(self.schedule, settings)
        passes = self._passes(mode, levels, held)
        source = 0 if mode != records.NONE and {*levels} <= {n for p in passes for n in p.levels} else 1
        chunk = max(1, (self.limits.rows - source) // planner.rows_per_target(settings))
        plans, made = [], len(held) if passes else 0
        for start in range(0, len(targets), chunk):
            some = targets[start : start + chunk]
            plan = planner.plan_edit(self.manifest, self.schedule, source_prompt, some, settings, passes, made)
            if passes:
                plan = replace(
                    plan,
                    record_bytes=self._row_bytes,
                    resident=self._resident(passes),
                    approximate=mode == records.FROM_INVERSION and len(levels) > 0,
                )
            plans.append(plan)
            made = len(passes)
        return tuple(plans)

    def generation(self, prompt: str, settings: EditSettings) -> Plan:
        """Raises UsageError if a limit is exceeded."""
        self._check((), (prompt, settings.negative_prompt))
        return planner.plan_generation(self.manifest, self.schedule, prompt, settings)

    def synthesis(self, source: str, targets: tuple[str, ...], settings: EditSettings) -> Plan:
        """Source and targets from one noise in one run; see ``fits``. Raises UsageError if a limit is exceeded."""
        planner.check_targets((source, *targets))
        self._check(targets, (source, settings.negative_prompt))
        return planner.plan_synthesis(self.manifest, self.schedule, source, targets, settings)

    def fits(self, plan: Plan) -> bool:
        """Whether no step has more rows than the limits allow. What does not is edited after it is generated."""
        return max(len(step.rows) for step in plan.steps) <= self.limits.rows

    @property
    def _row_bytes(self) -> int:
        return record_row_bytes(self.manifest, *self.size)

    def _check(self, targets: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
        self.limits.check(self.manifest.latents, self.schedule.steps, self.size, targets, texts)

    def _passes(self, mode: str, levels: range, held: Sequence[RecordPass]) -> tuple[RecordPass, ...]:
        if mode == records.EXACT:
            capacity, batch = self.limits.record_bytes // self._row_bytes, record_rows(self.manifest, *self.size)
            return records.choose_passes(held, levels, self.schedule, capacity, batch)
        if mode == records.FROM_INVERSION:
            missing = set(levels) - {level for record in held for level in record.levels}
            if missing:
                raise UsageError(
                    f"this inversion recorded nothing for {len(missing)} of the steps: "
                    "invert with record='inversion', or lower replace_fraction, or raise record_bytes or "
                    "total_record_bytes"
                )
            return tuple(held)
        return ()

    def _resident(self, passes: Sequence[RecordPass]) -> int:
        """How many of the passes stay in the device's memory."""
        budget = None if self.on_host else self.limits.device_record_bytes
        return records.resident_passes(passes, self._row_bytes, budget)
