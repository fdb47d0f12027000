"""Settings of a training run and the learning rate that follows from them."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; written beside its checkpoints.

    Attributes:
        seed: of weights and data.
        samples: samples to see in all; the learning rate's schedule ends there.
        batch: samples a step.
        rate: peak learning rate.
        warmup: samples of linear warm-up.
        decay: last part of the run, 0..1, in which the rate falls (cosine) to a hundredth.
        ema: decay of the average of the weights, which is what is scored and shipped.
        drop: probability of an empty caption; it trains the empty prompt that inversion uses.
        short: probability of a caption without background.
        late: part of the timesteps drawn from `late_from`..999 and not from 0..999.
        late_from: see `late`.
        ahead: part of the samples whose timestep is told too high, as inversion does: there the
            U-Net sees latents of one level with the timestep of the next.
        ahead_most: by how much at most, uniformly from 0.
        snr_cap: min-SNR weighting's gamma.
        noise_cap: largest extra weight of steps that are mostly noise.
        clip: largest norm of the gradient.
    """

    seed: int = 1
    samples: int = 150_000
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 6_400
    decay: float = 0.4
    ema: float = 0.998
    drop: float = 0.17
    short: float = 0.05
    late: float = 0.5
    late_from: int = 400
    ahead: float = 0.0
    ahead_most: int = 120
    snr_cap: float = 5.0
    noise_cap: float = 4.0
    clip: float = 1.0


def learning_rate(config: TrainConfig, samples: int) -> float:
    """Rate after `samples` samples: linear warm-up, constant, cosine fall."""
    warm = min(1.0, (samples + config.batch) / max(config.warmup, 1))
    left = max(0.0, 1 - samples / config.samples) / config.decay
    fall = 1.0 if left >= 1 else 0.01 + 0.99 * (0.5 - 0.5 * float(np.cos(np.pi * left)))
    return config.rate * warm * fall
