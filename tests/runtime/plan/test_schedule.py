"""The DDIM tables against diffusers' schedulers and against the reference implementation's formula.

Where diffusers differs, and why the runtime does not follow it:

- diffusers keeps ``alphas_cumprod`` in single precision, as a product of a thousand rounded factors; the runtime's
  are double. That is a relative difference of some 1e-6, and the only one in a step with uniform timesteps.
- ``DDIMScheduler.step`` takes the level below a timestep to be ``t - total // steps`` whatever the spacing. With
  "trailing" and "linspace" and a number of steps that does not divide the total, that is not the next timestep of its
  own list: a step ends at one level and the next begins at another. Here levels are those of the list, so that
  inversion and denoising meet at each; below the lowest timestep, where there is no list, diffusers' rule is taken.
- With "leading", an offset and almost as many steps as the total, diffusers' list passes the end of the schedule and
  its step fails with an IndexError; the list is clamped here.
- ``DDIMInverseScheduler.step`` shifts the timestep it is given by one stride back and steps from that level to the
  given one. A loop that gives the same timestep to the U-Net thus runs it at the level it goes *to*, as the reference
  does; both connect the same levels, and the coefficients agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import SchedulerSpec
from freeprompt.export.checkpoint.scheduler import config_to_scheduler
from freeprompt.runtime.plan.schedule import Coefficients, Schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALL_STEPS = (1, 2, 3, 7, 10, 20, 50, 100, 250, 500, 999, 1000)
SPACINGS = [
    pytest.param("leading", 1, id="leading 1"),
    pytest.param("leading", 0, id="leading 0"),
    pytest.param("trailing", 0, id="trailing"),
    pytest.param("linspace", 0, id="linspace"),
]
# diffusers' alphas_cumprod differ by some 1e-6 (relative, tested below). A coefficient's sensitivity to that is below 1
# except for sqrt(1 - a) near a = 1, where 1 - a = 8.5e-4 makes 4e-5 (relative) of the rounding of a to single precision
# (6e-8), of a coefficient of 0.03. The sum of both stays below this.
TOLERANCE = 1e-5


def spec(prediction: Any = "epsilon", spacing: Any = "leading", offset: int = 1, one: bool = False) -> SchedulerSpec:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return SchedulerSpec(tuple(np.cumprod(1.0 - betas).tolist()), prediction, spacing, offset, one)


def diffusers_scheduler(kind: type[Any], prediction: str, spacing: str, offset: int, one: bool) -> Any:
    return kind(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=one,
        steps_offset=offset,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )


def coefficients_of(step: Any) -> Coefficients:
    """Read a linear step's two coefficients off its answers to (1, 0) and (0, 1)."""
    answers = step(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64))
    return Coefficients(float(answers[0]), float(answers[1]))


def sampled_levels(steps: int) -> list[int]:
    """All levels, or both ends and every thirteenth of a long schedule."""
    every = 1 if steps <= 250 else 13
    return sorted({*range(1, steps + 1, every), 2, steps - 1, steps} & set(range(1, steps + 1)))


def close(got: Coefficients, want: Coefficients) -> bool:
    return abs(got.latent_scale - want.latent_scale) < TOLERANCE * max(1.0, abs(want.latent_scale)) and abs(
        got.noise_scale - want.noise_scale
    ) < TOLERANCE * max(1.0, abs(want.latent_scale))


@pytest.mark.parametrize("steps", ALL_STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_timesteps_are_diffusers(steps: int, spacing: str, offset: int) -> None:
    theirs = diffusers_scheduler(DDIMScheduler, "epsilon", spacing, offset, False)
    theirs.set_timesteps(steps)
    # Beyond the schedule's end diffusers' own step fails; that is the one difference.
    expected = [min(int(t), 999) for t in theirs.timesteps]
    schedule = Schedule.create(spec(spacing=spacing, offset=offset), steps)
    assert list(reversed(schedule.timesteps)) == expected
    assert schedule.steps == steps == len(schedule.timesteps)
    assert len(schedule.alphas_cumprod) == steps + 1


def test_clamped_where_diffusers_fails() -> None:
    theirs = diffusers_scheduler(DDIMScheduler, "epsilon", "leading", 1, False)
    theirs.set_timesteps(1000)
    one = torch.ones(1)
    with pytest.raises(IndexError):
        theirs.step(one, int(theirs.timesteps[0]), one)
    schedule = Schedule.create(spec(), 1000)
    assert schedule.timesteps[-2:] == (999, 999)
    c = schedule.denoise(1000)
    assert (c.latent_scale, c.noise_scale) == pytest.approx((1.0, 0.0), abs=1e-15), "no length"


@pytest.mark.parametrize("one", [False, True], ids=["first alpha", "alpha one"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", ALL_STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_denoising_is_diffusers_step(spacing: str, offset: int, steps: int, prediction: str, one: bool) -> None:
    theirs = diffusers_scheduler(DDIMScheduler, prediction, spacing, offset, one)
    theirs.set_timesteps(steps)
    schedule = Schedule.create(spec(prediction, spacing, offset, one), steps)
    stride = 1000 // steps
    compared = 0
    levels = sampled_levels(steps)
    for level in levels:
        timestep = schedule.timesteps[level - 1]
        if offset + (level - 1) * stride > 999 and spacing == "leading":
            continue  # diffusers fails
        lower = schedule.timesteps[level - 2] if level > 1 else None
        if lower is not None and lower != timestep - stride:
            continue  # not uniform here: diffusers' step ends at a level that is not in its list
        want = coefficients_of(lambda x, e, t=timestep: theirs.step(e, t, x).prev_sample)
        assert close(schedule.denoise(level), want), (level, schedule.denoise(level), want)
        compared += 1
    if spacing == "leading" or (1000 % steps == 0 and spacing == "trailing"):
        assert compared >= len(levels) - 1, "uniform spacing must be compared throughout"
    assert compared >= 1


@pytest.mark.parametrize(("steps", "spacing"), [(7, "trailing"), (50, "linspace"), (3, "linspace")])
def test_levels_meet_where_diffusers_leaves_gaps(steps: int, spacing: str) -> None:
    """x_0 and eps fixed, the ideal network: each step must arrive exactly at the next level's mixture of them."""
    schedule = Schedule.create(spec(spacing=spacing, offset=0), steps)
    alphas = spec().alphas_cumprod
    clean, noise = 0.7, -1.3
    for level in range(steps, 1, -1):
        a = alphas[schedule.timesteps[level - 1]]
        b = alphas[schedule.timesteps[level - 2]]
        here, there = (x**0.5 * clean + (1.0 - x) ** 0.5 * noise for x in (a, b))
        c = schedule.denoise(level)
        assert c.latent_scale * here + c.noise_scale * noise == pytest.approx(there, abs=1e-12)


def reference_next_step(alphas: Any, t: int, stride: int, x: float, eps: float) -> float:
    """The reference implementation's inversion step, in double precision: from ``t - stride`` to ``t``, network at t.

    alpha of negative timesteps is alphas_cumprod[0] (set_alpha_to_one is False).
    """
    a = alphas[t - stride] if t - stride >= 0 else alphas[0]
    b = alphas[t]
    clean = (x - (1 - a) ** 0.5 * eps) / a**0.5
    return float(b**0.5 * clean + (1 - b) ** 0.5 * eps)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 50, 100, 250, 500])
def test_inversion_is_the_reference(steps: int) -> None:
    schedule = Schedule.create(spec(), steps)
    stride = 1000 // steps
    for level in range(steps):
        t = level * stride + 1
        assert schedule.timesteps[level] == t
        c = schedule.invert(level)
        for x, eps in ((1.0, 0.0), (0.0, 1.0), (0.3, -2.0)):
            want = reference_next_step(spec().alphas_cumprod, t, stride, x, eps)
            assert c.latent_scale * x + c.noise_scale * eps == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 10, 50, 250, 500])
def test_inversion_is_diffusers_inverse_step_at_the_next_timestep(steps: int, prediction: str) -> None:
    theirs = diffusers_scheduler(DDIMInverseScheduler, prediction, "leading", 1, False)
    theirs.set_timesteps(steps)
    schedule = Schedule.create(spec(prediction), steps)
    assert tuple(int(t) for t in theirs.timesteps) == schedule.timesteps
    for level in range(steps):
        timestep = schedule.timesteps[level]
        want = coefficients_of(lambda x, e, t=timestep: theirs.step(e, t, x).prev_sample)
        assert close(schedule.invert(level), want), level


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 50, 999, 1000])
def test_inverting_then_denoising_is_the_identity(steps: int, one: bool, prediction: str) -> None:
    """With one noise for both, for which the output of a v-predicting network differs between the two levels."""
    schedule = Schedule.create(spec(prediction, one=one), steps)
    rng = np.random.default_rng(0)
    for level in range(steps):
        x, noise = rng.standard_normal(2)
        low, high = schedule.alphas_cumprod[level], schedule.alphas_cumprod[level + 1]

        def output(a: float, latents: float, eps: float = noise) -> float:
            if prediction == "epsilon":
                return eps
            clean = (latents - (1.0 - a) ** 0.5 * eps) / a**0.5
            return float(a**0.5 * eps - (1.0 - a) ** 0.5 * clean)

        up = schedule.invert(level)
        above = up.latent_scale * x + up.noise_scale * output(low, x)
        down = schedule.denoise(level + 1)
        back = down.latent_scale * above + down.noise_scale * output(high, above)
        # Up to 1 / sqrt(alpha) = 15 times double precision's rounding at one step over the whole schedule.
        assert back == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_estimate_is_x_0(prediction: str) -> None:
    schedule = Schedule.create(spec(prediction), 20)
    clean, noise = 0.4, 1.7
    for level in range(21):
        a = schedule.alphas_cumprod[level]
        latents = a**0.5 * clean + (1 - a) ** 0.5 * noise
        out = noise if prediction == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * clean
        c = schedule.clean(level)
        assert c.latent_scale * latents + c.noise_scale * out == pytest.approx(clean, abs=1e-12)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, 50.0, True, "50", None, float("nan")])
def test_steps_that_cannot_be(steps: Any) -> None:
    with pytest.raises(UsageError, match="steps must be"):
        Schedule.create(spec(), steps)


def test_numpy_steps() -> None:
    steps: Any = np.int64(50)
    assert Schedule.create(spec(), steps) == Schedule.create(spec(), 50)


def test_zero_terminal_signal() -> None:
    """At a signal of zero v-prediction has a clean estimate (-v), epsilon-prediction has none."""
    alphas = (*spec().alphas_cumprod[:-1], 0.0)
    trailing = SchedulerSpec(alphas, "v_prediction", "trailing", 0, False)
    schedule = Schedule.create(trailing, 10)
    assert schedule.clean(10) == Coefficients(0.0, -1.0)
    assert all(np.isfinite([c.latent_scale, c.noise_scale]).all() for c in map(schedule.denoise, range(1, 11)))
    with pytest.raises(UsageError, match="signal of zero"):
        Schedule.create(SchedulerSpec(alphas, "epsilon", "trailing", 0, False), 10)
    leading = SchedulerSpec(alphas, "epsilon", "leading", 1, False)
    assert Schedule.create(leading, 10).alphas_cumprod[-1] > 0.0, "not reached with fewer steps"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(BETAS, id="scaled_linear"),
        pytest.param({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, id="linear"),
        pytest.param({"beta_schedule": "squaredcos_cap_v2"}, id="squaredcos"),
        pytest.param({"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()}, id="trained"),
        pytest.param({**BETAS, "num_train_timesteps": 250}, id="250"),
        pytest.param({**BETAS, "rescale_betas_zero_snr": True}, id="zero SNR"),
        pytest.param({}, id="defaults"),
    ],
)
def test_betas_are_diffusers(config: dict[str, Any]) -> None:
    theirs = DDIMScheduler(**config)
    ours = np.array(config_to_scheduler(dict(theirs.config)).alphas_cumprod)
    want = theirs.alphas_cumprod.numpy()
    assert want.dtype == np.float32 and want.shape == ours.shape
    # A thousand factors, each 1 - beta rounded to single precision (6e-8) and each product again: errors of random sign
    # add to sqrt(2000) * 3e-8 = 1.3e-6 relative; 1e-5 leaves room for those that do not cancel.
    tolerance = 1e-5
    if config.get("beta_schedule") == "squaredcos_cap_v2":
        # Near the end 1 - beta falls to 1e-3, whose rounding (6e-8 absolute) is 6e-5 relative.
        tolerance = 1e-4
    if config.get("rescale_betas_zero_snr"):
        # sqrt(alphas_cumprod) minus its last value cancels: an absolute error of 1e-7 against 1e-4 at the last but one.
        tolerance = 1e-3
        assert ours[-1] == 0.0 and want[-1] < 1e-6
        ours, want = ours[:-1], want[:-1]
    np.testing.assert_allclose(ours, want, rtol=tolerance)
