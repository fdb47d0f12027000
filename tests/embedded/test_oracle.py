"""The oracle is right on what the world draws, and says no to everything else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.embedded import oracle, verdict, world
from benchmarks.embedded.world import edited_scene

SCENES = world.sample_scenes(300, 314)


@pytest.fixture(scope="module")
def measured() -> list[oracle.Measurement]:
    return [oracle.measure(image) for image in world.render(SCENES)]


def test_fresh_scenes(measured: list[oracle.Measurement]) -> None:
    right = [
        (found.shape, found.colour, found.background) == (scene.shape, scene.colour, scene.background)
        for scene, found in zip(SCENES, measured)
    ]
    assert sum(right) / len(right) >= 0.99
    overlaps = [oracle.iou(found.mask, oracle.true_mask(scene)) for scene, found in zip(SCENES, measured)]
    assert min(overlaps) > 0.95


@pytest.mark.parametrize("kind", world.KINDS)
def test_wrong_attribute_is_seen(kind: str, measured: list[oracle.Measurement]) -> None:
    """No scene passes for one that differs in one attribute."""
    for scene, found in zip(SCENES, measured):
        other = edited_scene(scene, kind)
        assert getattr(found, kind) != getattr(other, kind)


@pytest.mark.parametrize("kind", world.KINDS)
def test_edits_are_judged(kind: str) -> None:
    """A perfect edit passes; no edit, and a perfect edit of something else, fail."""
    for scene in SCENES[:40]:
        target = edited_scene(scene, kind)
        before, after = world.render([scene, target])
        perfect = verdict.judge(kind, scene, target, before, after)
        assert perfect.right
        assert perfect.unchanged > 25
        assert not verdict.judge(kind, scene, target, before, before).reached
        wrong_kind = world.KINDS[(world.KINDS.index(kind) + 1) % 3]
        spoiled = edited_scene(target, wrong_kind)
        assert not verdict.judge(kind, scene, target, before, world.render([spoiled])[0]).right


def test_moved_object_fails() -> None:
    scene = dataclasses.replace(SCENES[0], colour="red", background="gray", x=28.0, radius=14.0)
    target = dataclasses.replace(scene, colour="blue")
    before, moved = world.render([scene, dataclasses.replace(target, x=36.0)])
    moved_verdict = verdict.judge("colour", scene, target, before, moved)
    assert moved_verdict.iou < verdict.GOOD_IOU
    assert not moved_verdict.right


def test_junk_has_no_name() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    assert oracle.measure(noise).shape is None
    flat = np.full((64, 64, 3), 135, np.uint8)
    found = oracle.measure(flat)
    assert (found.shape, found.colour, found.background) == (None, None, "gray")
    assert not found.mask.any()
    # A blot between the colours of the world has none of their names.
    flat[20:40, 20:40] = (90, 110, 90)
    assert oracle.measure(flat).colour is None
    half = world.render([dataclasses.replace(SCENES[0], shape="square", colour="red")])[0].copy()
    half[:, 32:] = 135
    half[:, :32] = 135
    half[16:48, 16:32] = world.COLOURS["red"]
    half[16:48, 32:48] = world.COLOURS["blue"]
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:36] = True
    assert oracle.colour_inside(half, mask) == "red"
    mask[16:48, 16:48] = True
    # Nor has an object of two colours, though their mean may have one.
    assert oracle.measure(half).colour is None


def test_psnr_and_iou() -> None:
    image = world.render(SCENES[:1])[0]
    everywhere = np.ones((64, 64), np.bool_)
    assert oracle.psnr(image, image, everywhere) == 99
    assert oracle.psnr(image, image, ~everywhere) == 99
    shifted = np.clip(image.astype(int) // 2 + 10, 0, 255).astype(np.uint8)
    expected = 10 * np.log10(255**2 / np.mean((image.astype(float) - shifted) ** 2))
    assert oracle.psnr(image, shifted, everywhere) == pytest.approx(expected)
    assert oracle.iou(everywhere, ~everywhere) == 0


def test_largest_component_is_a_component() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[2:10, 2:10] = True
    mask[20:50, 20:22] = True
    mask[48:50, 20:60] = True
    part = oracle.largest_component(mask)
    assert part.sum() == 30 * 2 + 2 * 38
    assert not part[5, 5]
    assert not oracle.largest_component(np.zeros((8, 8), np.bool_)).any()
