"""Making plans: which rows every step evaluates, computing what the published method computes with no row too many.

The reference evaluates [uncond_src, uncond_tgt, cond_src, cond_tgt] at each of its denoising steps and two rows at each
step of the inversion: 300 rows for 50 steps. Left out here, because no result depends on them: the inversion's
second row (its prompt is empty, so guidance does nothing), uncond_src where the source is pinned to its trajectory,
cond_src once nothing is replaced any more, and the unconditional rows where guidance is off (1 or less).
What is left is 190.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freeprompt.contract.errors import UsageError
from freeprompt.contract.graphs import RECORD, STEP, STEP_RECORDED, STEP_RECORDING
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan.plan import (
    COND_SRC,
    COND_TGT,
    INVERSION,
    UNCOND_SRC,
    UNCOND_TGT,
    Plan,
    RecordPass,
    Row,
    Step,
)
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings


@dataclass(frozen=True)
class Texts:
    """Distinct texts in order of first use; ``index`` gives the place of each asked for."""

    all: tuple[str, ...]

    @classmethod
    def of(cls, *texts: str) -> Texts:
        return cls(tuple(dict.fromkeys(texts)))

    def index(self, text: str) -> int:
        return self.all.index(text)


def plan_inversion(manifest: Manifest, schedule: Schedule, prompt: str = "", recording: int = 0) -> Plan:
    """DDIM inversion with one row a step, from level 0 to level ``steps``.

    Args:
        recording: the last so many steps run in the graph that also gives the rows to record, for the approximate
            mode that takes them at the timestep of the denoising step but from the latents one level cleaner.
    """
    steps = []
    for level in range(schedule.steps):
        c = schedule.invert(level)
        row = Row(INVERSION, latent=0, text=0)
        steps.append(
            Step(
                STEP if level + 1 <= schedule.steps - recording else STEP_RECORDING,
                level,
                level + 1,
                schedule.timesteps[level],
                (row,),
                ((1.0,),),
                c.latent_scale,
                c.noise_scale,
            )
        )
    return _plan("inversion", manifest, Texts.of(prompt), tuple(steps))


def plan_edit(
    manifest: Manifest,
    schedule: Schedule,
    source_prompt: str,
    targets: tuple[str, ...],
    settings: EditSettings,
    passes: tuple[RecordPass, ...] = (),
    made: int = 0,
) -> Plan:
    """Injected denoising of ``targets``, the source pinned to its trajectory.

    While maps are replaced a step has one row cond_src and two rows a target, or the latter alone where its level is in
    one of ``passes``; after that two rows a target.

    Args:
        passes: record passes whose rows are used, ``made`` of which exist already (``records.choose_passes`` chooses).
    """
    check_targets(targets)
    texts = Texts.of(source_prompt, *_negative(settings), *targets)
    replaced = replaced_levels(schedule, settings)
    recorded = {
        level: (number, place) for number, record in enumerate(passes) for place, level in enumerate(record.levels)
    }
    steps = []
    for level in range(schedule.steps, 0, -1):
        rows: list[Row] = []
        if level not in replaced:
            weights = append_target_rows(rows, texts, targets, settings, map_row=None)
            steps.append(_denoise(schedule, level, rows, weights))
        elif level in recorded:
            number, place = recorded[level]
            # Recorded rows are numbered after the step's own.
            own = len(targets) * rows_per_target(settings)
            weights = append_target_rows(rows, texts, targets, settings, map_row=own + place)
            step = _denoise(schedule, level, rows, weights)
            steps.append(replace(step, graph=STEP_RECORDED, record=number))
        else:
            rows.append(Row(COND_SRC, latent=len(targets), text=texts.index(source_prompt)))
            weights = append_target_rows(rows, texts, targets, settings, map_row=0)
            step = _denoise(schedule, level, rows, weights)
            steps.append(replace(step, pinned=level))
    plan = _plan("edit", manifest, texts, tuple(steps), settings)
    if not passes:
        return plan
    return replace(plan, passes=passes, made=made, record_cost=record_cost(manifest))


def replaced_levels(schedule: Schedule, settings: EditSettings) -> range:
    """Levels whose steps replace maps, noisiest first; empty where no layer is chosen."""
    if not (settings.replace_layers or settings.replace_cross_layers):
        return range(0)
    return range(schedule.steps, schedule.steps - settings.replaced_steps(schedule.steps), -1)


def rows_per_target(settings: EditSettings) -> int:
    """Two, or one where guidance is off."""
    return 2 if settings.guided else 1


def record_cost(manifest: Manifest) -> float:
    """Multiply-adds of a row of the record graph relative to a whole row."""
    step, record = manifest.graphs[STEP].macs, manifest.graphs[RECORD].macs
    return record / step if step and record else 1.0


def plan_generation(manifest: Manifest, schedule: Schedule, prompt: str, settings: EditSettings) -> Plan:
    """Plain generation: two rows a step (one where guidance is off), nothing replaced."""
    texts = Texts.of(*_negative(settings), prompt)
    steps = []
    for level in range(schedule.steps, 0, -1):
        rows: list[Row] = []
        weights = append_target_rows(rows, texts, (prompt,), settings, map_row=None)
        steps.append(_denoise(schedule, level, rows, weights))
    return _plan("generation", manifest, texts, tuple(steps))


def plan_synthesis(
    manifest: Manifest,
    schedule: Schedule,
    source_prompt: str,
    targets: tuple[str, ...],
    settings: EditSettings,
) -> Plan:
    """Source and targets from one noise, both guided; the latents are [source, *targets]."""
    check_targets(targets)
    texts = Texts.of(*_negative(settings), source_prompt, *targets)
    replaced = replaced_levels(schedule, settings)
    steps = []
    for level in range(schedule.steps, 0, -1):
        rows: list[Row] = []
        source = append_target_rows(rows, texts, (source_prompt,), settings, None, kinds=(UNCOND_SRC, COND_SRC))
        source_row = len(rows) - 1
        map_row = source_row if level in replaced else None
        target = append_target_rows(rows, texts, targets, settings, map_row, first_latent=1)
        width = len(rows)
        weights = tuple(w + (0.0,) * (width - len(w)) for w in (*source, *target))
        steps.append(_denoise(schedule, level, rows, weights))
    return _plan("synthesis", manifest, texts, tuple(steps), settings)


def append_target_rows(
    rows: list[Row],
    texts: Texts,
    targets: tuple[str, ...],
    settings: EditSettings,
    map_row: int | None,
    first_latent: int = 0,
    kinds: tuple[str, str] = (UNCOND_TGT, COND_TGT),
) -> tuple[tuple[float, ...], ...]:
    """Append each target's rows to ``rows`` and return the guidance weights, [targets][rows].

    noise_pred = uncond + guidance * (cond - uncond) = (1 - guidance) * uncond + guidance * cond, or cond alone where
    guidance is off.
    """
    sparse: list[dict[int, float]] = []
    for number, target in enumerate(targets):
        latent = first_latent + number
        weights = {}
        if settings.guided:
            weights[len(rows)] = 1.0 - settings.guidance
            rows.append(Row(kinds[0], latent, texts.index(settings.negative_prompt)))
        weights[len(rows)] = float(settings.guidance) if settings.guided else 1.0
        rows.append(
            Row(
                kinds[1],
                latent,
                texts.index(target),
                map_row=map_row if settings.replace_layers else None,
                cross_map_row=map_row if settings.replace_cross_layers else None,
            )
        )
        sparse.append(weights)
    return tuple(tuple(w.get(i, 0.0) for i in range(len(rows))) for w in sparse)


def check_targets(targets: tuple[str, ...]) -> None:
    """Raises UsageError if there is no prompt, or one is not a string."""
    if not targets:
        raise UsageError("no prompt given; give at least one")
    for target in targets:
        if not isinstance(target, str):
            raise UsageError(f"a prompt must be a string, not {type(target).__name__}")


def _negative(settings: EditSettings) -> tuple[str, ...]:
    """The text of the unconditional rows, where there are any."""
    return (settings.negative_prompt,) if settings.guided else ()


def _denoise(schedule: Schedule, level: int, rows: list[Row], weights: tuple[tuple[float, ...], ...]) -> Step:
    c = schedule.denoise(level)
    return Step(
        STEP,
        level,
        level - 1,
        schedule.timesteps[level - 1],
        tuple(rows),
        weights,
        c.latent_scale,
        c.noise_scale,
    )


def _plan(
    name: str,
    manifest: Manifest,
    texts: Texts,
    steps: tuple[Step, ...],
    settings: EditSettings | None = None,
) -> Plan:
    return Plan(
        name,
        texts.all,
        len(manifest.layers),
        manifest.cross_layers,
        settings.replace_layers if settings else (),
        settings.replace_cross_layers if settings else (),
        steps,
    )
