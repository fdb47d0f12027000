"""Running plans: the host only looks tables up and enqueues; all arithmetic on latents is inside the graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from freeprompt.contract.session import Array, NumpyArray
from freeprompt.runtime.plan.plan import Plan, Step, step_to_inputs
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.sessions import Graphs

# Recorded rows of one pass: input name of the step graph (record_NN) -> [rows of the pass, N, C].
RecordedRows = Mapping[str, Array]


class Records(Protocol):
    """Recorded rows by pass: a list, or ``runtime.source.recording.Reader``."""

    def __getitem__(self, number: int, /) -> RecordedRows: ...


@dataclass(frozen=True)
class StepResult:
    """A step that was done. The arrays stay on the device until they are asked for.

    Attributes:
        before, after: latents [L, C, h, w] float32.
        recorded: rows to record, where the step's graph gives them.
    """

    step: Step
    before: Array
    after: Array
    recorded: RecordedRows

    def clean_estimate(self, schedule: Schedule) -> NumpyArray:
        """The current estimate of the clean latents x_0, [L, C, h, w] float32 (copies latents to the host).

        The network's output is recovered from the linear step itself: (after - latent_scale * before) / noise_scale.
        """
        before = self.before.numpy().astype(np.float64)
        after = self.after.numpy().astype(np.float64)
        if abs(self.step.noise_scale) < 1e-6:
            return after.astype(np.float32)  # a step of no length: there is nothing to divide by
        noise_pred = (after - self.step.latent_scale * before) / self.step.noise_scale
        c = schedule.clean(self.step.level)
        return (c.latent_scale * before + c.noise_scale * noise_pred).astype(np.float32)


def run_steps(
    graphs: Graphs,
    plan: Plan,
    latents: Array,
    encoder_hidden_states: Array,
    trajectory: Sequence[Array] = (),
    records: Records = (),
) -> Iterator[StepResult]:
    """Run a plan's steps one by one; stop iterating to cancel.

    Args:
        latents: [L, C, h, w] float32 at the level of the first step.
        encoder_hidden_states: [texts, tokens, channels] float32, in the order of ``plan.texts``.
        trajectory: source latents [1, C, h, w] by level, for steps with pinned latents.
        records: recorded rows of each of the plan's passes, for steps that use them.
    """
    for step in plan.steps:
        feeds: dict[str, Array | NumpyArray] = dict(step_to_inputs(plan, step))
        feeds["latents"] = latents
        # Where nothing is pinned no row reads these; the input still has to be there, best in a constant shape.
        feeds["pinned_latents"] = trajectory[step.pinned or 0] if trajectory else latents
        feeds["encoder_hidden_states"] = encoder_hidden_states
        if step.record is not None:
            feeds.update(records[step.record])
        outputs = graphs[step.graph].run(feeds)
        after = outputs.pop("next_latents")
        yield StepResult(step, latents, after, outputs)
        latents = after
