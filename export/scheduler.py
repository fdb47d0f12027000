"""The noise schedule of a checkpoint, from its scheduler's configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from freeprompt.errors import CheckpointError
from freeprompt.manifest import SchedulerSpec

Betas = npt.NDArray[np.float64]


def config_to_scheduler(config: dict[str, Any]) -> SchedulerSpec:
    """Betas and their cumulative product in double precision (diffusers computes both in single).

    Whatever scheduler the checkpoint names, its betas, prediction type and timesteps are used with DDIM, as the method
    does. Fields a scheduler does not have take DDIMScheduler's defaults, except ``steps_offset``, which diffusers
    rewrites to 1 for Stable Diffusion and which older checkpoints have as 0.

    Raises:
        CheckpointError: an unknown beta schedule, prediction type or spacing, or flow matching.
    """
    prediction = config.get("prediction_type", "epsilon")
    spacing = config.get("timestep_spacing", "leading")
    if prediction not in ("epsilon", "v_prediction"):
        raise CheckpointError(f"prediction type {prediction!r} cannot be inverted with DDIM")
    if spacing not in ("leading", "trailing", "linspace"):
        raise CheckpointError(f"unknown timestep spacing {spacing!r}")
    betas = _betas(config)
    if config.get("rescale_betas_zero_snr"):
        betas = _rescale_to_zero_snr(betas)
    alphas_cumprod = np.cumprod(1.0 - betas)
    return SchedulerSpec(
        alphas_cumprod=tuple(float(a) for a in alphas_cumprod),
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else int(config.get("steps_offset", 0)),
        set_alpha_to_one=bool(config.get("set_alpha_to_one", False)),
    )


def _betas(config: dict[str, Any]) -> Betas:
    trained = config.get("trained_betas")
    if trained is not None:
        return np.asarray(trained, np.float64)
    kind = config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    count = config.get("num_train_timesteps", 1000)
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    if kind == "squaredcos_cap_v2":
        edges = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        capped: Betas = np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
        return capped
    raise CheckpointError(f"unknown beta schedule {kind!r}")


def _rescale_to_zero_snr(betas: Betas) -> Betas:
    """Shift and scale sqrt(alphas_cumprod) so that the last is zero (Lin et al. 2023, arXiv 2305.08891, alg. 1)."""
    root = np.sqrt(np.cumprod(1.0 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    cumulative = root**2
    alphas = np.concatenate([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return 1.0 - alphas
