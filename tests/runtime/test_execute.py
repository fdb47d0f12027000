"""Running plans on the fake backend: what is fed, what is kept, how it is cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.errors import Cancelled, UsageError
from freeprompt.editor import Progress
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime.pipeline import Limits

Array = np.ndarray[Any, Any]
STEPS = 5


def behaviour(graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A model whose noise_pred is a known constant, so that latents follow from the tables alone."""
    if graph == "text_encoder":
        return {"encoder_hidden_states": np.zeros((len(feeds["input_ids"]), 77, 32), np.float32)}
    if graph == "vae_encoder":
        return {"latents": np.ones((1, 4, 16, 16), np.float32)}
    if graph == "vae_decoder":
        return {"image": np.zeros((1, 3, 64, 64), np.float32)}
    latents = feeds["latents"]
    if graph == "record":
        return {"record_01": np.zeros((len(feeds["row_latent"]), 256, 16), np.float32)}
    scale = (feeds["latent_scale"][:, None, None, None], feeds["noise_scale"][:, None, None, None])
    return {"next_latents": scale[0] * latents + scale[1] * np.float32(0.5)}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(behaviour)


@pytest.fixture
def editor(tiny_bundle: Path, backend: FakeBackend) -> Editor:
    return Editor.load(tiny_bundle, backend, verify=False)


IMAGE = np.zeros((64, 64, 3), np.uint8)


def test_pinned_latents_are_those_of_the_step(editor: Editor, backend: FakeBackend) -> None:
    inversion = editor.invert(IMAGE, STEPS)
    assert [c.graph for c in backend.calls] == ["vae_encoder", "text_encoder"] + ["step"] * STEPS
    backend.calls.clear()
    editor.edit_latents(inversion, "x", record="none", replace_fraction=0.6)
    steps = [c for c in backend.calls if c.graph == "step"]
    assert len(steps) == STEPS
    for number, call in enumerate(steps):
        if number < 3:
            np.testing.assert_array_equal(call.feeds["pinned_latents"], inversion.trajectory[STEPS - number])
            assert len(call.feeds["row_latent"]) == 3
        else:
            assert len(call.feeds["row_latent"]) == 2
            assert call.feeds["row_latent"].max() == 0, "no row reads the pinned latents"


def test_latents_go_from_step_to_step_untouched(editor: Editor, backend: FakeBackend) -> None:
    inversion = editor.invert(IMAGE, STEPS)
    calls = [c for c in backend.calls if c.graph == "step"]
    for level, call in enumerate(calls):
        # The very array, not a copy: on a device nothing may cross the bus.
        assert call.feeds["latents"] is inversion.levels_on(backend)[level].numpy()


def test_clean_estimate_and_progress(editor: Editor) -> None:
    seen: list[tuple[str, int, int]] = []
    previews = []

    def callback(progress: Progress) -> None:
        seen.append((progress.stage, progress.step, progress.steps))
        previews.append(progress.preview()[0].size)

    editor.invert(IMAGE, STEPS, callback=callback)
    assert seen == [("inversion", n, STEPS) for n in range(1, STEPS + 1)]
    assert previews == [(64, 64)] * STEPS


def test_clean_estimate_is_the_schedules(editor: Editor) -> None:
    """From x and the constant noise_pred 0.5: x_0 = (x - sqrt(1 - a) / 2) / sqrt(a)."""
    alphas = editor.pipeline.schedule(STEPS).alphas_cumprod
    found = []

    def observer(plan: Any, number: int, result: Any, schedule: Any) -> None:
        x = result.before.numpy().astype(np.float64)
        a = alphas[result.step.level]
        expected = (x - np.sqrt(1 - a) * 0.5) / np.sqrt(a)
        # 1e-4: noise_pred is recovered from a difference of float32 latents.
        np.testing.assert_allclose(result.clean_estimate(schedule), expected, rtol=1e-4, atol=1e-4)
        found.append(number)

    start = editor.pipeline.graphs.backend.upload(np.ones((1, 4, 16, 16), np.float32))
    editor.pipeline.invert(start, STEPS, observer=observer)
    assert found == list(range(1, STEPS + 1))


def test_cancelling_leaves_everything_usable(editor: Editor, backend: FakeBackend) -> None:
    inversion = editor.invert(IMAGE, STEPS)

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise Cancelled("enough")

    backend.calls.clear()
    with pytest.raises(Cancelled):
        editor.edit(inversion, "x", record="none", callback=stop)
    assert len([c for c in backend.calls if c.graph == "step"]) == 2
    again = editor.edit_latents(inversion, "x", record="none")
    assert again.shape == (1, 4, 16, 16)
    with pytest.raises(Cancelled):
        editor.invert(IMAGE, STEPS, callback=stop)


def test_many_targets_are_chunked(tiny_bundle: Path, backend: FakeBackend) -> None:
    editor = Editor.load(tiny_bundle, backend, verify=False, limits=Limits(rows=5))
    inversion = editor.invert(IMAGE, 2)
    backend.calls.clear()
    prompts = [f"p{n}" for n in range(5)]
    assert editor.edit_latents(inversion, prompts, record="none", replace_fraction=1.0).shape[0] == 5
    rows = [len(c.feeds["row_latent"]) for c in backend.calls if c.graph == "step"]
    assert rows == [5, 5, 5, 5, 3, 3]


@pytest.mark.parametrize("limits", [{"rows": 2}, {"rows": True}, {"record_bytes": -1}, {"rows": 4.5}])
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        Limits(**limits)
