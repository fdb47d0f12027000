"""The drawn world is a pure function of its parameters, and its words are whole tokens."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from benchmarks.embedded import model, world


def test_scenes_and_pixels_repeat() -> None:
    first, second = world.sample_scenes(12, 5), world.sample_scenes(12, 5)
    assert first == second
    assert first != world.sample_scenes(12, 6)
    images = world.render(first)
    assert images.shape == (12, 64, 64, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, world.render(second))
    # A scene looks the same whatever it is drawn together with.
    assert np.array_equal(images[3:5], world.render(first[3:5]))


def test_objects_stay_inside() -> None:
    for shape in world.SHAPES:
        for x, y in ((27.5, 27.5), (35.5, 35.5)):
            scene = world.Scene(shape, "red", "gray", world.MAX_RADIUS, x, y, 0)
            cover = world.coverage([scene])[0].copy()
            cover[2:-2, 2:-2] = 0
            assert not cover.any(), shape


def test_colours_are_apart() -> None:
    for name, rgb in world.COLOURS.items():
        others = [c for n, c in world.COLOURS.items() if n != name]
        distances = [float(np.linalg.norm(np.subtract(rgb, o))) for o in others]
        distances += [float(np.linalg.norm(np.subtract(rgb, b))) for b in world.BACKGROUNDS.values()]
        assert min(distances) > 85, name


def test_drawing_is_fast() -> None:
    scenes = world.sample_scenes(200, 1)
    start = time.process_time()
    world.render(scenes)
    assert 200 / (time.process_time() - start) >= 500


def test_captions() -> None:
    scene = world.sample_scenes(1, 3)[0]
    text = world.caption(scene)
    assert text == f"a {scene.colour} {scene.shape} on a {scene.background} background"
    changed = dataclasses.replace(scene, colour="cyan", shape="star", background="pink")
    assert world.caption(changed) == "a cyan star on a pink background"
    rng = np.random.default_rng(0)
    drawn = [world.sample_caption(scene, rng, 0.17, 0.05) for _ in range(2000)]
    empty = drawn.count("") / len(drawn)
    assert 0.14 < empty < 0.20
    short = drawn.count(f"a {scene.colour} {scene.shape}") / len(drawn)
    assert 0.03 < short < 0.07
    assert len(set(drawn)) == len(world.TEMPLATES) + 2


def test_tokenizer() -> None:
    tokenizer = model.make_tokenizer()
    for word in model.world_words():
        ids = tokenizer(word)["input_ids"]
        assert len(ids) == 3, word
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
    # Any other text is spelled out, and no byte is unknown (the unknown token is the end token).
    text = "".join(chr(code) for code in range(33, 127))
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == text.lower()
    ids = tokenizer("Über-größe 図")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1
    padded = model.tokenize(tokenizer, ["", "a red circle " * 40])
    assert padded.shape == (2, 77)
    assert padded[0].tolist() == [tokenizer.bos_token_id] + 76 * [tokenizer.eos_token_id]
    assert padded[1, -1] == tokenizer.eos_token_id


def test_linear_latents() -> None:
    images = model.to_tensor(world.render(world.sample_scenes(300, 9)))
    latents = model.linear_latents(images) * model.SCALING_FACTOR
    assert latents.shape == (300, 4, 16, 16)
    assert np.allclose(latents[:, :3].std((0, 2, 3)), 1, atol=0.15)
    assert float(latents[:, 3].mean().abs()) < 0.02
