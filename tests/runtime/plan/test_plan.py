"""Plans: which rows, which maps, which coefficients, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan.plan import Plan, RecordPass, plan_to_text, step_to_inputs
from freeprompt.runtime.plan.planner import plan_edit, plan_generation, plan_inversion, plan_synthesis
from freeprompt.runtime.plan.records import choose_passes
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings

DEFAULT = EditSettings(7.5, 0.8, "", (1, 2, 3, 4))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle, verify=False).manifest


def schedule(manifest: Manifest, steps: int = 50) -> Schedule:
    return Schedule.create(manifest.scheduler, steps)


def total(plans: Sequence[Plan]) -> float:
    return sum(plan.rows for plan in plans)


@pytest.mark.parametrize(
    ("settings", "targets", "rows"),
    [
        (DEFAULT, 1, 40 * 3 + 10 * 2),
        (DEFAULT, 5, 40 * 11 + 10 * 10),
        (replace(DEFAULT, guidance=1.0), 1, 40 * 2 + 10),
        (replace(DEFAULT, guidance=0.0), 1, 40 * 2 + 10),
        (replace(DEFAULT, guidance=0.5), 5, 40 * 6 + 10 * 5),
        (replace(DEFAULT, guidance=1.001), 1, 40 * 3 + 10 * 2),
        (replace(DEFAULT, replace_fraction=0.0), 1, 100),
        (replace(DEFAULT, replace_fraction=1.0), 1, 150),
        (replace(DEFAULT, replace_fraction=0.59), 1, 29 * 3 + 21 * 2),
        (replace(DEFAULT, replace_layers=()), 1, 100),
        (replace(DEFAULT, replace_layers=(), replace_cross_layers=(2,)), 1, 140),
    ],
)
def test_rows_of_an_edit(manifest: Manifest, settings: EditSettings, targets: int, rows: int) -> None:
    prompts = tuple(f"target {n}" for n in range(targets))
    assert plan_edit(manifest, schedule(manifest), "", prompts, settings).rows == rows


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_without_guidance_the_prompts_own_prediction_is_used(manifest: Manifest, guidance: float) -> None:
    """As in diffusers, which guides where guidance_scale is above 1; the negative prompt is not even encoded."""
    settings = replace(DEFAULT, guidance=guidance, negative_prompt="unused")
    steps = schedule(manifest, 2)
    edit = plan_edit(manifest, steps, "", ("a", "b"), replace(settings, replace_fraction=0.0))
    assert (edit.texts, edit.rows_by_kind) == (("", "a", "b"), {"cond_tgt": 4})
    assert edit.steps[0].row_weight == ((1.0, 0.0), (0.0, 1.0))
    joint = plan_synthesis(manifest, steps, "s", ("t",), settings)
    assert (joint.texts, joint.rows_by_kind) == (("s", "t"), {"cond_src": 2, "cond_tgt": 2})
    alone = plan_generation(manifest, steps, "p", settings)
    assert (alone.texts, alone.rows) == (("p",), 2)
    assert alone.steps[0].row_weight == ((1.0,),)


def test_rows_by_kind(manifest: Manifest) -> None:
    plans = plan_inversion(manifest, schedule(manifest)), plan_edit(manifest, schedule(manifest), "", ("t",), DEFAULT)
    assert total(plans) == 190
    assert plans[0].rows_by_kind == {"inversion": 50}
    assert plans[1].rows_by_kind == {"cond_src": 40, "uncond_tgt": 50, "cond_tgt": 50}
    assert plan_to_text(plans).splitlines()[-1] == "total: 190 rows"
    joint = plan_synthesis(manifest, schedule(manifest), "s", ("t",), replace(DEFAULT, replace_fraction=0.4))
    assert joint.rows_by_kind == {"uncond_src": 50, "cond_src": 50, "uncond_tgt": 50, "cond_tgt": 50}
    assert plan_generation(manifest, schedule(manifest), "p", DEFAULT).rows == 100


def test_an_edit_entry_by_entry(manifest: Manifest) -> None:
    settings = EditSettings(3.0, 0.5, "not this", (2, 4))
    steps = schedule(manifest, 2)
    plan = plan_edit(manifest, steps, "", ("a", "b"), settings)
    assert plan.texts == ("", "not this", "a", "b")
    first, second = plan.steps
    assert (first.level, first.next_level, first.pinned, first.timestep) == (2, 1, 2, steps.timesteps[1])
    assert (second.level, second.next_level, second.pinned, second.timestep) == (1, 0, None, steps.timesteps[0])
    feeds = step_to_inputs(plan, first)
    # Rows: cond_src reads the pinned latent after the two targets; then uncond and cond of each target.
    np.testing.assert_array_equal(feeds["row_latent"], [2, 0, 0, 1, 1])
    np.testing.assert_array_equal(feeds["row_text"], [0, 1, 2, 1, 3])
    np.testing.assert_array_equal(feeds["timestep"], np.full(5, steps.timesteps[1], np.float32))
    own, replaced = [0, 1, 2, 3, 4], [0, 1, 0, 3, 0]
    np.testing.assert_array_equal(feeds["map_row"], [own, replaced, own, replaced])
    np.testing.assert_array_equal(feeds["cross_map_row"], [own] * 4)
    np.testing.assert_array_equal(feeds["row_weight"], [[0, -2, 3, 0, 0], [0, 0, 0, -2, 3]])
    c = steps.denoise(2)
    np.testing.assert_array_equal(feeds["latent_scale"], np.array([c.latent_scale] * 2, np.float32))
    np.testing.assert_array_equal(feeds["noise_scale"], np.array([c.noise_scale] * 2, np.float32))
    later = step_to_inputs(plan, second)
    np.testing.assert_array_equal(later["map_row"], [[0, 1, 2, 3]] * 4)
    np.testing.assert_array_equal(later["row_weight"], [[-2, 3, 0, 0], [0, 0, -2, 3]])
    dtypes = {name: array.dtype for name, array in feeds.items()}
    for name in ("row_latent", "row_text", "map_row", "cross_map_row"):
        assert dtypes.pop(name) == np.int32
    assert set(dtypes.values()) == {np.dtype(np.float32)}


def test_a_recorded_edit_entry_by_entry(manifest: Manifest) -> None:
    steps = schedule(manifest, 4)
    passes = choose_passes((), range(4, 0, -1), steps, capacity=3, batch=2)
    assert passes == (
        RecordPass((4, 3), (steps.timesteps[3], steps.timesteps[2])),
        RecordPass((2,), (steps.timesteps[1],)),
    )
    plan = plan_edit(manifest, steps, "", ("a",), replace(DEFAULT, replace_fraction=1.0), passes, made=1)
    assert [step.graph for step in plan.steps] == ["step_recorded"] * 3 + ["step"]
    assert [step.record for step in plan.steps] == [0, 0, 1, None]
    assert [step.pinned for step in plan.steps] == [None, None, None, 1]
    # Two rows of its own, so that the recorded ones are 2 and 3; uncond keeps its own map.
    rows = [step_to_inputs(plan, step)["map_row"][0].tolist() for step in plan.steps]
    assert rows == [[0, 2], [0, 3], [0, 2], [0, 1, 0]]
    assert plan.record_rows == 1, "the first pass was made before"
    assert plan.rows == pytest.approx(2 * 3 + 3 + plan.record_cost)
    assert 0 < plan.record_cost < 1


def test_passes_are_extended_not_remade(manifest: Manifest) -> None:
    steps = schedule(manifest, 10)
    held = choose_passes((), (10, 9, 8), steps, capacity=99, batch=2)
    more = choose_passes(held, range(10, 4, -1), steps, capacity=5, batch=4)
    assert more[: len(held)] == held
    assert [record.levels for record in more[len(held) :]] == [(7, 6)], "five rows fit in all"
    assert choose_passes(held, range(10, 0, -1), steps, capacity=0) == held


def test_inversion_steps_run_at_the_higher_levels_timestep(manifest: Manifest) -> None:
    steps = schedule(manifest, 3)
    plan = plan_inversion(manifest, steps, recording=1)
    assert [(s.level, s.next_level, s.timestep) for s in plan.steps] == [
        (level, level + 1, steps.timesteps[level]) for level in range(3)
    ]
    assert [s.graph for s in plan.steps] == ["step", "step", "step_recording"], "the noisiest are recorded"


def test_no_targets_and_wrong_ones(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="at least one"):
        plan_edit(manifest, schedule(manifest), "", (), DEFAULT)
    with pytest.raises(UsageError, match="must be a string"):
        plan_edit(manifest, schedule(manifest), "", (3,), DEFAULT)  # type: ignore[arg-type]
