"""A plan: what every evaluation of the U-Net does, as plain data that can be printed, tested and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from freeprompt.contract.graphs import RECORD
from freeprompt.contract.session import NumpyArray

# What is said of a plan with ``approximate``.
APPROXIMATE = "approximate: the source's maps were recorded while inverting, from latents one level too clean"

# Kinds of rows. "inversion" steps the source towards noise; "cond_src" only lends its maps where the source is pinned.
INVERSION = "inversion"
UNCOND_SRC = "uncond_src"
COND_SRC = "cond_src"
UNCOND_TGT = "uncond_tgt"
COND_TGT = "cond_tgt"


@dataclass(frozen=True)
class Row:
    """One row of a U-Net batch.

    Attributes:
        kind: what it is for (accounting only).
        latent: index into the latents that are stepped, followed by the pinned latents.
        text: index into the plan's texts.
        map_row: whose self-attention maps it uses in the replaced layers: a row of this step, or, from the number of
            rows on, a recorded row. None: its own.
        cross_map_row: the same for cross-attention, rows of this step only.
    """

    kind: str
    latent: int
    text: int
    map_row: int | None = None
    cross_map_row: int | None = None


@dataclass(frozen=True)
class Step:
    """One evaluation of a step graph, from ``level`` to ``next_level``.

    Attributes:
        graph: ``STEP`` or ``STEP_RECORDED``.
        timestep: at which the U-Net runs, the same for all rows.
        row_weight: [latents][rows] guidance; noise_pred of a latent is the weighted sum of the rows.
        latent_scale, noise_scale: the scheduler's coefficients.
        pinned: level of the source trajectory that is given as pinned latents, or None.
        record: index into the plan's passes: whose recorded rows are given; None: none are.
    """

    graph: str
    level: int
    next_level: int
    timestep: int
    rows: tuple[Row, ...]
    row_weight: tuple[tuple[float, ...], ...]
    latent_scale: float
    noise_scale: float
    pinned: int | None = None
    record: int | None = None


@dataclass(frozen=True)
class RecordPass:
    """One evaluation that records: a source row for each of ``levels``, at ``timesteps``."""

    levels: tuple[int, ...]
    timesteps: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A whole computation.

    Attributes:
        name: what it computes.
        texts: the distinct prompts; the source's is the first.
        layers, cross_layers: number of self- and cross-attention layers of the model.
        replace_layers, replace_cross_layers: numbers (from 1) of the layers in which map_row applies.
        steps: in order.
        passes: record passes whose rows the steps use.
        made: how many of ``passes``, from the first, have been made before; the others are made first.
        record_cost: multiply-adds of a row of the record graph relative to a whole row.
        record_bytes: size of one recorded row over all recorded layers.
        resident: how many of ``passes``, from the first, are held on the device, the others on the host; None: all. Of
            an inversion that records: of those that it makes (``records.passes_of``).
        approximate: the passes were made while inverting, so that the result is not quite the published method's.
    """

    name: str
    texts: tuple[str, ...]
    layers: int
    cross_layers: int
    replace_layers: tuple[int, ...]
    replace_cross_layers: tuple[int, ...]
    steps: tuple[Step, ...]
    passes: tuple[RecordPass, ...] = field(default=())
    made: int = 0
    record_cost: float = 1.0
    record_bytes: int = 0
    resident: int | None = None
    approximate: bool = False

    @property
    def record_rows(self) -> int:
        """Rows of the record graph that this plan evaluates."""
        return sum(len(record.levels) for record in self.passes[self.made :])

    @property
    def rows_by_kind(self) -> dict[str, int]:
        """Rows of the step graphs by kind, and of the record graph under "record"."""
        count = Counter(row.kind for step in self.steps for row in step.rows)
        if self.record_rows:
            count[RECORD] = self.record_rows
        return dict(count)

    @property
    def rows(self) -> float:
        """Row-equivalents: whole rows, and record rows at their share of a whole row's multiply-adds."""
        return sum(len(step.rows) for step in self.steps) + self.record_rows * self.record_cost

    @property
    def total_record_bytes(self) -> int:
        """Bytes of recorded rows that are held while the plan runs."""
        return self.record_bytes * sum(len(record.levels) for record in self.passes)

    @property
    def host_record_bytes(self) -> int:
        """Those of them that wait in host memory. Two passes at a time of these are on the device besides."""
        waiting = () if self.resident is None else self.passes[self.resident :]
        return self.record_bytes * sum(len(record.levels) for record in waiting)

    @property
    def device_record_bytes(self) -> int:
        """Most bytes of recorded rows that are on the device at a time."""
        waiting = () if self.resident is None else self.passes[self.resident :]
        moving = sorted((len(record.levels) for record in waiting), reverse=True)[:2]
        return self.total_record_bytes - self.host_record_bytes + self.record_bytes * sum(moving)


def step_to_inputs(plan: Plan, step: Step) -> dict[str, NumpyArray]:
    """The small inputs of a step graph: everything except latents, embeddings and recorded rows.

    Returns:
        row_latent, row_text [R] int32; timestep [R] float32; map_row [layers, R], cross_map_row [cross_layers, R]
        int32; row_weight [L, R], latent_scale, noise_scale [L] float32.
    """
    rows, latents = len(step.rows), len(step.row_weight)
    own = np.arange(rows, dtype=np.int32)
    map_row = np.tile(own, (plan.layers, 1))
    cross_map_row = np.tile(own, (plan.cross_layers, 1))
    for index, row in enumerate(step.rows):
        if row.map_row is not None:
            map_row[[n - 1 for n in plan.replace_layers], index] = row.map_row
        if row.cross_map_row is not None:
            cross_map_row[[n - 1 for n in plan.replace_cross_layers], index] = row.cross_map_row
    return {
        "row_latent": np.array([row.latent for row in step.rows], np.int32),
        "row_text": np.array([row.text for row in step.rows], np.int32),
        "timestep": np.full(rows, step.timestep, np.float32),
        "map_row": map_row,
        "cross_map_row": cross_map_row,
        "row_weight": np.array(step.row_weight, np.float64).astype(np.float32),
        "latent_scale": np.full(latents, step.latent_scale, np.float64).astype(np.float32),
        "noise_scale": np.full(latents, step.noise_scale, np.float64).astype(np.float32),
    }


def plan_to_text(plans: tuple[Plan, ...]) -> str:
    """A readable account of plans that run one after the other: rows by kind, runs of equal steps, bytes."""
    lines: list[str] = []
    for plan in plans:
        lines.append(f"{plan.name}: {_number(plan.rows)} rows in {len(plan.steps)} steps")
        if plan.replace_layers and any(row.map_row is not None for step in plan.steps for row in step.rows):
            lines.append(f"  self-attention maps replaced in layers {_ranges(plan.replace_layers)}")
        if plan.replace_cross_layers:
            lines.append(f"  cross-attention maps replaced in layers {_ranges(plan.replace_cross_layers)}")
        if plan.passes:
            made = sum(len(record.levels) for record in plan.passes[: plan.made])
            lines.append(
                f"  record: {plan.record_rows} source rows in {len(plan.passes) - plan.made} passes, each "
                f"{plan.record_cost:.3f} of a row, {made} rows made before; "
                f"holds {plan.total_record_bytes / 1e6:.2f} MB ({plan.record_bytes / 1e6:.3f} MB a row)"
            )
            if plan.approximate:
                lines.append(f"  {APPROXIMATE}")
            if plan.host_record_bytes:
                lines.append(
                    f"  of it {plan.host_record_bytes / 1e6:.2f} MB wait in host memory and come back pass by pass; "
                    f"on the device are at most {plan.device_record_bytes / 1e6:.2f} MB"
                )
        lines.extend(f"  {line}" for line in _runs(plan))
    kinds: Counter[str] = Counter()
    for plan in plans:
        kinds.update(plan.rows_by_kind)
    lines.append("rows by kind: " + ", ".join(f"{kind} {n}" for kind, n in kinds.items()))
    lines.append(f"total: {_number(sum(plan.rows for plan in plans))} rows")
    return "\n".join(lines)


def _runs(plan: Plan) -> list[str]:
    """Successive steps with the same rows on one line."""
    lines: list[str] = []
    start = 0
    for index in range(1, len(plan.steps) + 1):
        if index < len(plan.steps) and _shape(plan.steps[index]) == _shape(plan.steps[start]):
            continue
        first, last = plan.steps[start], plan.steps[index - 1]
        rows = ", ".join(_row(row, first) for row in first.rows)
        lines.append(
            f"steps {start + 1}-{index}: timesteps {first.timestep}-{last.timestep}, "
            f"graph {first.graph}, {len(first.rows)} rows: {rows}"
        )
        start = index
    return lines


def _shape(step: Step) -> tuple[str, tuple[str, ...], tuple[bool, ...]]:
    kinds = tuple(row.kind for row in step.rows)
    return step.graph, kinds, tuple(row.map_row is not None for row in step.rows)


def _row(row: Row, step: Step) -> str:
    if row.map_row is None:
        return row.kind
    if row.map_row >= len(step.rows):
        return f"{row.kind} <- record"
    return f"{row.kind} <- {step.rows[row.map_row].kind}"


def _number(rows: float) -> str:
    return f"{rows:.1f}".removesuffix(".0")


def _ranges(numbers: tuple[int, ...]) -> str:
    parts: list[str] = []
    last = -1
    for number in numbers:
        if parts and number == last + 1:
            parts[-1] = parts[-1].split("-")[0] + f"-{number}"
        else:
            parts.append(str(number))
        last = number
    return ",".join(parts)
