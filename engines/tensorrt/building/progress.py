"""How far a build is, from TensorRT's progress monitor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt.api import IProgressMonitor, TensorRT

# Lines of text: a terminal shows them one below the other, a log keeps them.
Reporter = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 5.0


class BuildProgress:
    """Estimates the share done from the nesting of TensorRT's phases, each taken as evenly spread over its steps.

    Args:
        label: what is being built.
        progress: takes the lines.
        clock: for tests.
    """

    def __init__(self, label: str, progress: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._progress = progress
        self._clock = clock
        self._start = self._last = clock()
        # Phase -> (parent, steps, steps done), in the order in which they began.
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._done_before = 0.0

    @property
    def fraction(self) -> float:
        """Share done, 0 to 1; never falls, since a new top-level phase takes its share of what is left."""
        return min(1.0, max(self._done_before, self._nested(None)))

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases[phase] = (parent, max(1, steps), 0)

    def step(self, phase: str, step: int) -> None:
        if phase in self._phases:
            parent, steps, _ = self._phases[phase]
            self._phases[phase] = (parent, steps, min(steps, step + 1))
        self._done_before = self.fraction
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        fraction, elapsed = self.fraction, now - self._start
        # Early on the estimate is mostly noise.
        left = "" if fraction < 0.05 else f", about {elapsed * (1 - fraction) / fraction:.0f} s left"
        self._progress(f"{self._label}: {100 * fraction:.0f} % after {elapsed:.0f} s{left}")

    def end(self, phase: str) -> None:
        if phase in self._phases:
            parent, steps, _ = self._phases[phase]
            if parent is None:
                self._phases[phase] = (parent, steps, steps)
            else:
                del self._phases[phase]

    def _nested(self, parent: str | None) -> float:
        """Share done of the phases under ``parent``."""
        children = [(name, v) for name, v in self._phases.items() if v[0] == parent]
        if not children:
            return 0.0
        total = 0.0
        for name, (_, steps, done) in children:
            total += min(1.0, (done + (self._nested(name) if done < steps else 0.0)) / steps)
        return total / len(children)


def create_monitor(trt: TensorRT, state: BuildProgress) -> IProgressMonitor:
    """TensorRT's monitor interface over ``state``."""

    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.begin(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            state.end(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            state.step(phase_name, step)
            return True  # False would cancel the build

    monitor: IProgressMonitor = Monitor()
    return monitor
