"""How a caller follows a computation, and cancels it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from freeprompt.contract.session import NumpyArray
from freeprompt.runtime.execute import StepResult
from freeprompt.runtime.pipeline import Observer, ignore
from freeprompt.runtime.plan.plan import Plan
from freeprompt.runtime.plan.schedule import Schedule


@dataclass(frozen=True)
class Progress:
    """Where a computation stands; given to callbacks after each step.

    Attributes:
        stage: "inversion", "edit", "generation" or "synthesis".
        step: steps done, from 1.
        steps: of how many.
    """

    stage: str
    step: int
    steps: int
    _preview: Callable[[], list[Image.Image]]

    def preview(self) -> list[Image.Image]:
        """The current estimate of the finished images, decoded. Costs a transfer and a run of the decoder."""
        return self._preview()


Callback = Callable[[Progress], None]


def callback_to_observer(
    callback: Callback | None,
    decode: Callable[[NumpyArray], list[Image.Image]],
    pause: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Observer:
    """The observer of a pipeline that calls ``callback``.

    Args:
        decode: turns latents into images for its previews.
        pause: around each call: what makes that decoding possible meanwhile.
    """
    if callback is None:
        return ignore

    def observer(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
        with pause():
            callback(Progress(plan.name, number, len(plan.steps), lambda: decode(result.clean_estimate(schedule))))

    return observer
