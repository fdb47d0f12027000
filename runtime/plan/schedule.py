"""The DDIM schedule as tables of coefficients, in double precision.

Denoising by DDIM with eta = 0 (Song et al. 2020, arXiv 2010.02502, equation 12), its inversion (equation 13 read
backwards, as in Dhariwal and Nichol 2021, arXiv 2105.05233, appendix F) and both prediction types are linear in the
latents and in the network's output:

    next = latent_scale * latents + noise_scale * noise_pred

Noise *levels* number the states: level 0 is the clean latent, level ``steps`` the noisiest. Level n is the state
*after* the U-Net at ``timesteps[n - 1]`` has been applied while inverting; the U-Net always runs at the timestep of
the higher of the two levels it connects, also while inverting (Free-Prompt-Editing's public code does this,
and so does a plain loop over diffusers' DDIMInverseScheduler).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import SchedulerSpec


@dataclass(frozen=True)
class Coefficients:
    """One linear step: ``next = latent_scale * latents + noise_scale * noise_pred``."""

    latent_scale: float
    noise_scale: float


@dataclass(frozen=True)
class Schedule:
    """DDIM for one number of steps.

    Attributes:
        timesteps: ascending; ``timesteps[n - 1]`` belongs to level n.
        alphas_cumprod: of the levels 0 to steps; one longer than ``timesteps``.
        prediction_type: what the network's output is.
    """

    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...]
    prediction_type: str

    @classmethod
    def create(cls, spec: SchedulerSpec, steps: int) -> Schedule:
        """The schedule of ``steps`` steps.

        Raises:
            UsageError: steps is below 1 or above the number of training timesteps.
        """
        total = len(spec.alphas_cumprod)
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
            raise UsageError(f"steps must be a whole number, not {steps!r}")
        if not 1 <= steps <= total:
            raise UsageError(f"steps must be from 1 to {total}, not {steps}")
        timesteps = _timesteps(spec, int(steps), total)
        # Below the first timestep lies the training schedule's first value, or 1: the reference sets the former.
        final = 1.0 if spec.set_alpha_to_one else spec.alphas_cumprod[0]
        stride = total // int(steps)
        alphas = [_before(spec, timesteps[0] - stride, final)]
        alphas += [spec.alphas_cumprod[t] for t in timesteps]
        if alphas[-1] == 0.0 and spec.prediction_type == "epsilon":
            raise UsageError(
                "this schedule ends at a signal of zero, where an epsilon-predicting model has no clean estimate; "
                "use fewer steps or a v-predicting model"
            )
        return cls(timesteps, tuple(alphas), spec.prediction_type)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def denoise(self, level: int) -> Coefficients:
        """From ``level`` (1 to steps) to ``level - 1``; the U-Net runs at ``timesteps[level - 1]``."""
        return self._between(level, level - 1)

    def invert(self, level: int) -> Coefficients:
        """From ``level`` (0 to steps - 1) to ``level + 1``; the U-Net runs at ``timesteps[level]``."""
        return self._between(level, level + 1)

    def clean(self, level: int) -> Coefficients:
        """From ``level`` to the estimate of the clean latents x_0."""
        return self._linear(self.alphas_cumprod[level], 1.0)

    def _between(self, source: int, target: int) -> Coefficients:
        return self._linear(self.alphas_cumprod[source], self.alphas_cumprod[target])

    def _linear(self, a: float, b: float) -> Coefficients:
        """x_b = sqrt(b) x_0 + sqrt(1 - b) eps, with x_0 and eps as the prediction type gives them from x_a."""
        if self.prediction_type == "epsilon":
            return Coefficients(math.sqrt(b / a), math.sqrt(1.0 - b) - math.sqrt(b) * math.sqrt((1.0 - a) / a))
        return Coefficients(
            math.sqrt(b * a) + math.sqrt((1.0 - b) * (1.0 - a)),
            math.sqrt((1.0 - b) * a) - math.sqrt(b * (1.0 - a)),
        )


def _before(spec: SchedulerSpec, timestep: int, final: float) -> float:
    return spec.alphas_cumprod[timestep] if timestep >= 0 else final


def _timesteps(spec: SchedulerSpec, steps: int, total: int) -> tuple[int, ...]:
    """Ascending timesteps, as diffusers' DDIMScheduler spaces them.

    "leading" with an offset can pass the end of the training schedule when ``steps`` is near its length; the reference
    clamps there, diffusers fails.
    """
    if spec.timestep_spacing == "leading":
        values = np.arange(steps) * (total // steps) + spec.steps_offset
    elif spec.timestep_spacing == "trailing":
        values = np.round(np.arange(total, 0, -total / steps))[::-1][-steps:] - 1
    else:
        values = np.round(np.linspace(0, total - 1, steps))
    clamped = np.minimum(values.astype(np.int64), total - 1)
    return tuple(int(t) for t in clamped)
