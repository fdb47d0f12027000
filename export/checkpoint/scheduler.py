"""The noise schedule of a checkpoint, from its scheduler's configuration."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, cast

import diffusers
import numpy as np
import numpy.typing as npt

from freeprompt.contract.errors import CheckpointError
from freeprompt.contract.manifest import SchedulerSpec
from freeprompt.export.settings import Spacing

Betas = npt.NDArray[np.float64]
_SPACINGS = ("leading", "trailing", "linspace")
_MOST_TIMESTEPS = 1 << 16


def config_to_scheduler(config: Mapping[str, Any], spacing: Spacing = "auto") -> SchedulerSpec:
    """Betas and their cumulative product in double precision (diffusers computes both in single).

    From the checkpoint come what it was trained with, betas and prediction type. How the timesteps of an edit are
    spaced is the method's own affair, whatever sampler the checkpoint was saved with: "leading" with an offset of 1 and
    the first training timestep's value below them, as the published code has it. Two kinds were trained for
    "trailing": those whose configuration says so (Turbo), and those whose noise ends at a signal of zero.

    Args:
        config: of any of diffusers' schedulers; what it leaves out takes the defaults of its ``_class_name``.
        spacing: "auto" as above, "checkpoint" for the configuration's own, or one of diffusers' names.

    Raises:
        CheckpointError: an unknown scheduler, beta schedule, prediction type or spacing, or flow matching.
    """
    name = str(config.get("_class_name", "DDIMScheduler"))
    config = {**_defaults(name), **config}
    prediction, own = config.get("prediction_type", "epsilon"), config.get("timestep_spacing", "leading")
    if prediction not in ("epsilon", "v_prediction") or config.get("use_flow_sigmas"):
        prediction = "flow_prediction" if config.get("use_flow_sigmas") else prediction
        raise CheckpointError(
            f"the checkpoint's {name} has prediction type {prediction!r}, which cannot be inverted with DDIM; "
            "epsilon and v_prediction can"
        )
    if own not in _SPACINGS:
        raise CheckpointError(f"the checkpoint's {name} has an unknown timestep_spacing {own!r}")
    try:
        betas = _betas(config)
        zero_snr = bool(config.get("rescale_betas_zero_snr"))
        if zero_snr:
            betas = _rescale_to_zero_snr(betas)
        alphas_cumprod = np.asarray(np.cumprod(1.0 - betas), np.float64)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"the checkpoint's {name} has betas that are no numbers: {error}") from error
    if not _falls(alphas_cumprod):
        raise CheckpointError(f"the checkpoint's {name} has betas outside 0 to 1")
    taken, _ = _choose(config, spacing)
    # diffusers sets this offset for every Stable Diffusion, whatever its configuration says.
    offset = 1 if taken == "leading" else 0
    return SchedulerSpec(tuple(float(a) for a in alphas_cumprod), prediction, taken, offset, set_alpha_to_one=False)


def spacing_to_words(config: Mapping[str, Any], spacing: Spacing = "auto") -> tuple[str, bool]:
    """Which spacing ``config_to_scheduler`` takes and why, beside the checkpoint's own; and whether they differ."""
    name = str(config.get("_class_name", "DDIMScheduler"))
    config = {**_defaults(name), **config}
    taken, reason = _choose(config, spacing)
    own, above = config.get("timestep_spacing", "leading"), bool(config.get("set_alpha_to_one"))
    words = f"{taken}, {reason}; the checkpoint's {name} has {own}"
    if above:
        words += " and set_alpha_to_one, which the method has not"
    return words, above or taken != own


def _choose(config: Mapping[str, Any], spacing: Spacing) -> tuple[Any, str]:
    own, zero_snr = config.get("timestep_spacing", "leading"), bool(config.get("rescale_betas_zero_snr"))
    if spacing != "auto":
        return (own if spacing == "checkpoint" else spacing), "as asked for"
    if zero_snr and config.get("prediction_type", "epsilon") == "epsilon":
        # The last timestep, where "trailing" begins, has no signal that noise could be told from.
        return "leading", "the method's"
    if zero_snr:
        return "trailing", "for a schedule that ends at a signal of zero"
    return ("trailing", "as it was trained for") if own == "trailing" else ("leading", "the method's")


def _defaults(name: str) -> dict[str, Any]:
    """What the constructor of diffusers' scheduler ``name`` takes where a configuration says nothing."""
    cls = getattr(diffusers, name, None) if re.fullmatch(r"[A-Za-z0-9]+Scheduler", name) else None
    parameters = {} if cls is None else inspect.signature(cast(Any, cls).__init__).parameters
    if "beta_start" not in parameters:
        what = "not one of diffusers' schedulers" if cls is None else "not of the kind that has betas (flow matching)"
        raise CheckpointError(f"the checkpoint's scheduler {name!r} is {what}, and cannot be inverted with DDIM")
    return {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _falls(alphas_cumprod: Betas) -> bool:
    return bool(
        np.isfinite(alphas_cumprod).all()
        and len(alphas_cumprod) >= 2
        and alphas_cumprod[0] <= 1.0
        and alphas_cumprod[-1] >= 0.0
        and (np.diff(alphas_cumprod) < 0.0).all()
    )


def _betas(config: Mapping[str, Any]) -> Betas:
    trained = config.get("trained_betas")
    if trained is not None:
        return np.asarray(trained, np.float64).reshape(-1)
    kind = config["beta_schedule"]
    start, end, count = float(config["beta_start"]), float(config["beta_end"]), int(config["num_train_timesteps"])
    if not 2 <= count <= _MOST_TIMESTEPS or min(start, end) < 0.0:
        raise ValueError(f"num_train_timesteps {count}, beta_start {start}, beta_end {end}")
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
