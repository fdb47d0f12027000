"""The runtime against the published method, literally computed (benchmarks/peers/literal.py), in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.peers.literal import LiteralReference
from freeprompt import Editor, Inversion
from freeprompt.export.checkpoint.load import quiet

# Over 50 steps single precision itself costs 2e-5 on this model (tests/tiny.py), for the reference as for us.
TOLERANCE = 1e-4
STEPS = 50
TARGETS = ("a red cat", "a photo of a dog")

Array = np.ndarray[Any, Any]


def relative_l2(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> LiteralReference:
    torch.set_num_threads(1)
    with quiet():
        return LiteralReference(StableDiffusionPipeline.from_pretrained(tiny_checkpoint))


@pytest.fixture(scope="module")
def editor(tiny_bundle: Path) -> Editor:
    return Editor.load(tiny_bundle, backend="cpu", threads=1)


def picture(height: int, width: int) -> Array:
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3))
    return np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)


Case = tuple[Inversion, list[torch.Tensor]]


def invert_both(editor: Editor, reference: LiteralReference, image: Array) -> Case:
    height, width = image.shape[:2]
    tensor = image.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
    levels = reference.invert(reference.encode(tensor), STEPS)
    return editor.invert(image, STEPS, size=(width, height)), levels


@pytest.fixture(scope="module")
def case(editor: Editor, reference: LiteralReference) -> Case:
    return invert_both(editor, reference, picture(64, 64))


@pytest.fixture(scope="module")
def answers() -> dict[str, Array]:
    """The reference's results, computed once for both ways of getting them."""
    return {}


def test_inversion_equals_reference(case: Case) -> None:
    inversion, levels = case
    assert inversion.trajectory.shape == (STEPS + 1, 1, 4, 16, 16)
    assert inversion.trajectory.dtype == np.float32
    expected = np.stack([level.numpy() for level in levels])
    assert relative_l2(inversion.trajectory, expected) < TOLERANCE
    # Each level by itself too: the large ones must not hide an error in the small.
    for level, want in zip(inversion.trajectory, expected, strict=True):
        assert relative_l2(level, want) < TOLERANCE


@pytest.mark.parametrize("mode", ["none", "exact"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param({"negative_prompt": "blue dog"}, {"negative": "blue dog"}, id="negative"),
        pytest.param({"replace_fraction": 0.0}, {"fraction": 0.0}, id="fraction 0"),
        pytest.param({"replace_fraction": 0.4}, {"fraction": 0.4}, id="fraction 0.4"),
        pytest.param({"replace_fraction": 1.0}, {"fraction": 1.0}, id="fraction 1"),
        pytest.param({"guidance": 1.0}, {"guidance": 1.0}, id="guidance 1"),
        pytest.param({"guidance": 0}, {"guidance": 1.0}, id="guidance 0"),
        pytest.param({"guidance": 3.0}, {"guidance": 3.0}, id="guidance 3"),
        pytest.param({"replace_layers": "level:1"}, {"layers": (2,)}, id="level 1"),
        pytest.param({"replace_layers": [1, 4]}, {"layers": (1, 4)}, id="layers 1 and 4"),
        pytest.param({"replace_layers": "none"}, {"layers": ()}, id="no layer"),
        pytest.param(
            {"replace_layers": "none", "replace_cross_layers": [1, 2, 3, 4]},
            {"layers": (), "cross_layers": (1, 2, 3, 4)},
            id="cross-attention",
        ),
    ],
)
def test_real_edit_equals_reference(
    editor: Editor,
    reference: LiteralReference,
    case: Case,
    mode: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    answers: dict[str, Array],
) -> None:
    inversion, levels = case
    if mode == "exact" and "replace_cross_layers" in ours:
        pytest.skip("cross-attention is not recorded")
    key = repr(sorted(theirs.items()))
    if key not in answers:
        layers: Sequence[int] = editor.manifest.replaced_layers
        answers[key] = reference.edit(levels, TARGETS[:1], **{"layers": layers, **theirs}).numpy()
    got = editor.edit_latents(inversion, TARGETS[:1], record=mode, **ours)
    assert relative_l2(got, answers[key]) < TOLERANCE


def test_two_targets_in_one_call_equal_reference(editor: Editor, reference: LiteralReference, case: Case) -> None:
    inversion, levels = case
    expected = reference.edit(levels, TARGETS, layers=editor.manifest.replaced_layers).numpy()
    got = editor.edit_latents(inversion, TARGETS)
    for mine, want in zip(got, expected, strict=True):
        assert relative_l2(mine, want) < TOLERANCE
    assert relative_l2(expected[0], expected[1]) > 0.01, "the two targets must differ for this to test"


def test_replacement_matters(editor: Editor, case: Case) -> None:
    """The tests above would pass on a model whose attention does nothing."""
    inversion, _ = case
    replaced = editor.edit_latents(inversion, TARGETS[:1], record="none")
    free = editor.edit_latents(inversion, TARGETS[:1], replace_layers="none")
    assert relative_l2(replaced, free) > 100 * TOLERANCE


def test_non_square_equals_reference(editor: Editor, reference: LiteralReference) -> None:
    inversion, levels = invert_both(editor, reference, picture(48, 80))
    assert inversion.trajectory.shape[-2:] == (12, 20)
    expected = reference.edit(levels, TARGETS[:1], layers=editor.manifest.replaced_layers)
    assert relative_l2(editor.edit_latents(inversion, TARGETS[:1]), expected.numpy()) < TOLERANCE


def test_synthesised_edit_equals_reference(editor: Editor, reference: LiteralReference) -> None:
    noise = editor.noise(seed=3)
    expected = reference.synthesize(
        torch.from_numpy(noise),
        *TARGETS,
        STEPS,
        negative="blue",
        layers=editor.manifest.replaced_layers,
    ).numpy()
    got = editor.synthesize_latents(*TARGETS, noise, steps=STEPS, negative_prompt="blue")
    for mine, want in zip(got, expected, strict=True):
        assert relative_l2(mine, want) < TOLERANCE
