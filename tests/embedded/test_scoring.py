"""Scores through the runtime: the same pictures as by the literal reference, whoever shares the work."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.embedded import oracle, score, verdict, world
from benchmarks.embedded.scoring import tables
from benchmarks.embedded.scoring.editing import edit
from benchmarks.embedded.scoring.literal_editing import LiteralEditing
from benchmarks.embedded.scoring.observe import DIFFERENCE, EDITS, GENERATION, RECONSTRUCTION, Part, observe, table
from benchmarks.embedded.scoring.pool import Model, observe_all
from benchmarks.embedded.scoring.runtime_editing import RuntimeEditing
from benchmarks.embedded.world import HELD_OUT, edited_scene

CHECKPOINT = pathlib.Path(__file__).parents[2] / "benchmarks" / "embedded" / "checkpoint"
STEPS = 4
# The order of summation over four steps. The same with a method's replacement left out differs by 0.1 or more.
TOLERANCE = 1e-4
SCENES = world.sample_scenes(2, HELD_OUT)


@pytest.fixture(scope="module")
def literal() -> Iterator[LiteralEditing]:
    torch.set_num_threads(1)
    yield LiteralEditing.open(CHECKPOINT)


@pytest.fixture()
def runtime(tmp_path: pathlib.Path) -> RuntimeEditing:
    return RuntimeEditing.open("demo", cache=tmp_path / "cache")


def relative_l2(one: world.FloatArray, two: world.FloatArray) -> float:
    return float(np.linalg.norm(one - two) / np.linalg.norm(two))


@pytest.mark.parametrize("name", ["none", "self", "cross", "both", "reused"])
def test_runtime_edits_as_the_literal_method_does(name: str, literal: LiteralEditing, runtime: RuntimeEditing) -> None:
    """The oracle runs every row and every map that the method's description names."""
    method = score.methods(0.5 if name == "self" else 1.0)[name]
    images = world.render(SCENES)
    sources = [world.caption(scene) for scene in SCENES]
    targets = [[world.caption(edited_scene(scene, kind)) for scene in SCENES] for kind in ("colour", "shape")]
    mine = runtime.edit_latents(images, sources, targets, STEPS, method)
    literally = literal.edit_latents(images, sources, targets, STEPS, method)
    assert len(mine) == len(literally) == 2
    for one, two in zip(mine, literally):
        assert one.shape == two.shape == (2, 4, 16, 16)
        assert relative_l2(one, two) < TOLERANCE
    for picture, two in zip(edit(runtime, images, sources, targets, STEPS, method), literally):
        # A float that falls on the other side of a half is one grey level.
        assert np.abs(picture.astype(int) - literal.decode_latents(two)).max() <= 1


def test_methods_differ(literal: LiteralEditing) -> None:
    """So that the comparison above tells them apart."""
    images = world.render(SCENES[:1])
    sources = [world.caption(SCENES[0])]
    target = [[world.caption(edited_scene(SCENES[0], "colour"))]]
    found = [literal.edit_latents(images, sources, target, STEPS, m)[0] for m in score.methods().values()]
    for number, one in enumerate(found):
        for two in found[:number]:
            assert relative_l2(one, two) > 20 * TOLERANCE


def test_runtime_reconstructs_as_the_literal_method_does(literal: LiteralEditing, runtime: RuntimeEditing) -> None:
    images = world.render(SCENES)
    one, two = runtime.reconstruct(images, STEPS), literal.reconstruct(images, STEPS)
    assert np.abs(one.astype(int) - two).max() <= 1


def test_generation_has_a_seed_of_its_own_for_each_picture(literal: LiteralEditing, runtime: RuntimeEditing) -> None:
    prompts = [world.caption(scene) for scene in SCENES]
    for editing in (literal, runtime):
        together = editing.generate(prompts, 2, 3.0, 5)
        alone = editing.generate(prompts[1:], 2, 3.0, 6)
        # Batched and single kernels of PyTorch sum in another order: at most a grey level.
        assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
        other = editing.generate(prompts[1:], 2, 3.0, 7)
        assert np.abs(other[0].astype(int) - alone[0]).max() > 10


def test_inversions_are_kept(runtime: RuntimeEditing, monkeypatch: pytest.MonkeyPatch) -> None:
    image = world.render(SCENES[:1])[0]
    first = runtime.invert(image, STEPS)
    assert runtime.invert(image, STEPS) is first
    other = RuntimeEditing(runtime.editor, runtime.cache)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("inverted again")

    with monkeypatch.context() as patched:
        patched.setattr(runtime.editor, "invert", refuse)
        again = other.invert(image, STEPS)
        assert np.array_equal(again.trajectory, first.trajectory)
        for changed in ((image, STEPS + 1), (255 - image, STEPS)):
            with pytest.raises(AssertionError, match="inverted again"):
                other.invert(*changed)
        # Recorded on the way: a saved one does not hold that.
        with pytest.raises(AssertionError, match="inverted again"):
            other.invert(image, STEPS, reuse=True)
    recorded = runtime.invert(image, STEPS, reuse=True)
    assert len(recorded.records["inversion"].passes) == STEPS
    assert np.array_equal(recorded.trajectory, first.trajectory)
    assert runtime.invert(image, STEPS) is recorded


def test_few_inversions_are_held(runtime: RuntimeEditing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.embedded.scoring.runtime_editing.HELD", 2)
    for image in world.render(world.sample_scenes(3, 0)):
        runtime.invert(image, 1)
    assert len(runtime._held) == 2


def test_processes_change_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.embedded.scoring.pool.SHARE", 1)
    scenes = world.sample_scenes(3, 0)
    methods = score.methods()
    parts = [
        Part(RECONSTRUCTION, methods["none"], 2),
        Part(EDITS, methods["self"], 2, ("colour", "shape")),
        Part(GENERATION, methods["self"], 2),
        Part(DIFFERENCE, methods["reused"], 2, ("colour",)),
    ]
    alone = list(observe_all(Model(cache=tmp_path / "one"), parts, scenes))
    shared = list(observe_all(Model(cache=tmp_path / "two"), parts, scenes, processes=2))
    assert [part for part, _ in shared] == [part for part, _ in alone] == parts
    for (_, one), (_, two) in zip(alone, shared):
        assert one == two
        assert all(len(outcomes) == 3 for outcomes in one.values())
    assert [set(sections) for _, sections in alone] == [
        {"Reconstruction"},
        {"Edits of colour", "Edits of shape"},
        {"Generation"},
        {"Difference to the exact edit of colour"},
    ]


class PerfectEditing:
    """Draws what is asked for, as a model without error would; latents are pictures in disguise."""

    def __init__(self, spoil: bool = False) -> None:
        self.spoil = spoil

    def _scene(self, image: world.ByteArray) -> world.Scene:
        return next(scene for scene in SCENES if np.array_equal(world.render([scene])[0], image))

    def generate(self, prompts: list[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        scenes = [scene for prompt in prompts for scene in SCENES if world.caption(scene) == prompt]
        return world.render(scenes[::-1] if self.spoil else scenes)

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        return images[::-1] if self.spoil else images

    def edit_latents(
        self,
        images: world.ByteArray,
        sources: list[str],
        targets: list[list[str]],
        steps: int,
        method: object,
    ) -> list[world.FloatArray]:
        out = []
        for prompts in targets:
            goals = []
            for image, prompt in zip(images, prompts):
                colour, shape, background = prompt.split()[1], prompt.split()[2], prompt.split()[5]
                goal = dataclasses.replace(self._scene(image), colour=colour, shape=shape, background=background)
                goals.append(self._scene(image) if self.spoil else goal)
            out.append(world.render(goals).astype(np.float32))
        return out

    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        return latents.astype(np.uint8)


@pytest.mark.parametrize("spoil", [False, True])
def test_a_perfect_model_scores_full_marks_and_one_that_does_nothing_none(spoil: bool) -> None:
    editing = PerfectEditing(spoil)
    method = score.methods()["self"]
    for what, column in ((GENERATION, "all right"), (RECONSTRUCTION, "good"), (EDITS, "right")):
        sections = observe(editing, Part(what, method, 2), SCENES)  # type: ignore[arg-type]
        assert sections.keys() == (
            {f"Edits of {kind}" for kind in world.KINDS} if what == EDITS else {what.capitalize()}
        )
        for outcomes in sections.values():
            found = table(outcomes)
            assert found[column].value == (0.0 if spoil else 1.0)
            assert found[column].count == 2
    same = observe(editing, Part(DIFFERENCE, method, 2, ("colour",)), SCENES)  # type: ignore[arg-type]
    figures_of = table(same["Difference to the exact edit of colour"])
    assert figures_of["relative L2 of latents"].value == 0.0


def test_goals_are_the_scenes_own() -> None:
    scenes = world.sample_scenes(200, 9)
    for kind in world.KINDS:
        goals = [edited_scene(scene, kind) for scene in scenes]
        assert goals == [edited_scene(scene, kind) for scene in scenes]
        for scene, goal in zip(scenes, goals):
            assert getattr(scene, kind) != getattr(goal, kind)
            assert dataclasses.replace(goal, **{kind: getattr(scene, kind)}) == scene
        # Every value is a goal now and then.
        assert len({getattr(goal, kind) for goal in goals}) == len({getattr(scene, kind) for scene in scenes})


def test_rows_are_kept_and_gathered(tmp_path: pathlib.Path) -> None:
    outcomes = [{"right": True, "IoU": 0.5}, {"right": False, "IoU": 1.0}]
    path = tmp_path / "made" / "rows.json"
    colour = (path, "Edits of colour", "a method, guidance 3", 25)
    tables.keep(*colour, table(outcomes[:1]), {"through": "x"})
    tables.keep(path, "Generation", "guidance 3", 50, table([{"all right": True}]), {})
    tables.keep(*colour, table(outcomes), {"through": "x"})
    assert [p.name for p in path.parent.iterdir()] == ["rows.json"]
    text = tables.gather(path)
    assert text.index("### Generation") < text.index("### Edits of colour")
    assert "| a method, guidance 3, 25 steps | 2 | 50.0 % [9.5, 90.5] | 0.750 [0.500, 1.000] |" in text


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown part 'edits'"):
        score.parts_of(["generation", "edits"], ("colour",), 25, 1.0, 3.0)
    named = score.parts_of(["self", "sheet", "difference", "generation"], ("shape",), 25, 0.8, 5.0)
    assert [part.row for part in named] == [
        "self-attention (FPE), guidance 5, fraction 0.8",
        "self-attention, record=inversion, guidance 5, fraction 0.8",
        "guidance 5",
    ]


def test_the_oracle_bounds_what_a_score_can_say() -> None:
    """Sources themselves pass as reconstructions: what a score lacks of 100 % is the model's."""
    scenes = world.sample_scenes(200, HELD_OUT)
    images = world.render(scenes)
    passed = [
        oracle.measure(image).colour == scene.colour
        and oracle.iou(oracle.measure(image).mask, oracle.true_mask(scene)) >= verdict.GOOD_IOU
        for scene, image in zip(scenes, images)
    ]
    assert sum(passed) >= 198


def test_the_committed_tables_say_what_the_committed_figures_say() -> None:
    results = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "embedded"
    text = tables.gather(results / "held-out.json")
    assert (results / "scores.md").read_text(encoding="utf-8") == text
    readme = (results.parents[1] / "embedded" / "README.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("|") and line not in readme] == []
