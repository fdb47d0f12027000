"""What a user may choose about an edit, and how it is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import ImageCroppedWarning, NegativePromptUnusedWarning, UsageError
from freeprompt.contract.manifest import LayerSpec
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime.inputs.arguments import choices_to_settings
from freeprompt.runtime.plan.settings import EditSettings, choice_to_layers

# Stable Diffusion 1.5's self-attention layers.
LEVELS = (0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0)
LAYERS = tuple(
    LayerSpec(number, f"layer {number}", level, 4096 >> 2 * level, 8, 320, level > 0)
    for number, level in enumerate(LEVELS, 1)
)
REPLACED = tuple(range(3, 14))


def edit_settings(**changes: Any) -> EditSettings:
    values: dict[str, Any] = {
        "guidance": 7.5,
        "replace_fraction": 0.8,
        "negative_prompt": "",
        "replace_layers": (),
    }
    return EditSettings(**{**values, **changes})


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, REPLACED),
        ("default", REPLACED),
        ("all", tuple(range(1, 17))),
        ("none", ()),
        ("7", (7,)),
        ("3-13", REPLACED),
        ("16-16", (16,)),
        ("5,3,3-4", (3, 4, 5)),
        (" 3 - 4 ".replace(" - ", "-"), (3, 4)),
        ("1, 16", (1, 16)),
        ("level:0", (1, 2, 14, 15, 16)),
        ("level:3", (7,)),
        ("level:1-3", REPLACED),
        ("level:2-9", (5, 6, 7, 8, 9, 10)),
        ("LEVEL:3,All,None", tuple(range(1, 17))),
        ("none,7", (7,)),
        ("007", (7,)),
        ([], ()),
        ([3, 1, 3], (1, 3)),
        (range(3, 14), REPLACED),
        (np.array([2, 1]), (1, 2)),
        ((n for n in (4, 2)), (2, 4)),
    ],
)
def test_choice_of_layers(choice: Any, expected: tuple[int, ...]) -> None:
    chosen = choice_to_layers(choice, LAYERS)
    assert chosen == expected
    assert all(type(n) is int for n in chosen)


@pytest.mark.parametrize(
    "choice",
    [
        "",
        ",",
        "3,",
        "0",
        "17",
        "-1",
        "1-",
        "-",
        "5-3",
        "0-3",
        "3-17",
        "1-2-3",
        "1.5",
        "level:",
        "level:4",
        "level:3-1",
        "level:-1",
        "block:1",
        "level:level:1",
        "²",
        "3;4",
        "9" * 5000,
        "1-" + "9" * 5000,
        "level:" + "9" * 5000,
        [0],
        [17],
        [1.5],
        [math.nan],
        [True],
        ["3"],
        [None],
        [[1]],
        5,
        1.5,
        True,
    ],
    ids=lambda c: repr(c)[:20],
)
def test_wrong_choice_of_layers(choice: Any) -> None:
    with pytest.raises(UsageError, match=r"layer") as raised:
        choice_to_layers(choice, LAYERS)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


@hypothesis_settings(derandomize=True, deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.text("0123456789-:,levaldefaultnone ", max_size=12)))
def test_any_text_is_layers_or_a_clear_error(choice: str) -> None:
    try:
        chosen = choice_to_layers(choice, LAYERS)
    except UsageError:
        return
    assert set(chosen) <= set(range(1, 17))


@pytest.mark.parametrize("guidance", [1, 0, -0.0, 0.5, 7.5, 1e6, np.float64(3.0), np.float32(3.0)])
def test_guidance(guidance: Any) -> None:
    settings = edit_settings(guidance=guidance)
    assert settings.guidance == guidance
    assert settings.guided == (guidance > 1)


@pytest.mark.parametrize("guidance", [-3.5, -1e-9, -1, np.float32(-7.5)])
def test_guidance_away_from_the_prompt(guidance: Any) -> None:
    with pytest.raises(UsageError, match=r"guidance must be 0 or more.*away from the prompt.*negative_prompt"):
        edit_settings(guidance=guidance)


@pytest.mark.parametrize(
    "guidance",
    [math.nan, math.inf, -math.inf, "7.5", None, True, 7.5j, 10**400, 1e39, -1e39],
    ids=lambda g: repr(g)[:10],
)
def test_guidance_that_is_no_finite_number(guidance: Any) -> None:
    with pytest.raises(UsageError, match="guidance must be a finite number"):
        edit_settings(guidance=guidance)


@pytest.mark.parametrize("fraction", [-0.01, 1.01, math.nan, math.inf, "0.5", None, True, 2, -1])
def test_fraction_outside(fraction: Any) -> None:
    with pytest.raises(UsageError, match="replace_fraction must be from 0 to 1"):
        edit_settings(replace_fraction=fraction)


@pytest.mark.parametrize("prompt", [None, 3, b"bytes", ["a"]])
def test_negative_prompt_that_is_no_string(prompt: Any) -> None:
    with pytest.raises(UsageError, match="negative_prompt must be a string"):
        edit_settings(negative_prompt=prompt)


@pytest.mark.parametrize(
    ("steps", "fraction", "replaced"),
    [
        (50, 0.8, 40),
        (50, 0.4, 20),
        (50, 0, 0),
        (50, 1, 50),
        (1, 0.99, 0),
        (7, 0.5, 3),
        # Rounded down after a product in double precision, as the reference's int(steps * fraction).
        (100, 0.29, 28),
        (10, 0.7, 7),
        (1000, 0.999, 999),
    ],
)
def test_replaced_steps(steps: int, fraction: float, replaced: int) -> None:
    assert edit_settings(replace_fraction=fraction).replaced_steps(steps) == replaced


@hypothesis_settings(derandomize=True, deadline=None)
@given(st.integers(1, 1000), st.floats(0.0, 1.0))
def test_replaced_steps_as_python_counts(steps: int, fraction: float) -> None:
    replaced = edit_settings(replace_fraction=fraction).replaced_steps(steps)
    assert replaced == math.floor(steps * fraction)
    assert 0 <= replaced <= steps


def test_an_unknown_choice_is_refused_by_name(tiny_bundle: Path) -> None:
    """Editor's keywords travel as a dictionary; a misspelt one must not be passed over."""
    editor = Editor.load(tiny_bundle, FakeBackend(lambda graph, feeds: {}), verify=False)
    misspelt: dict[str, Any] = {"guidence": 3.0}
    with pytest.raises(TypeError, match=r"guidence.*guidance"):
        editor.plan("x", **misspelt)


@pytest.mark.parametrize(
    ("guidance", "negative", "told"), [(1, "dog", True), (0, "dog", True), (1, "", False), (1.5, "dog", False)]
)
def test_a_negative_prompt_without_guidance_is_told(
    tiny_bundle: Path, guidance: float, negative: str, told: bool
) -> None:
    editor = Editor.load(tiny_bundle, FakeBackend(lambda graph, feeds: {}), verify=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        editor.plan("a cat", guidance=guidance, negative_prompt=negative)
    assert [w.category for w in caught] == [NegativePromptUnusedWarning] * told


@pytest.mark.parametrize(
    ("width", "height", "kept"),
    [
        (64, 64, None),
        (96, 64, None),  # 3:2, what cameras make: 67 %
        (64, 96, None),
        (160, 90, 56),
        (90, 160, 56),
        (300, 100, 33),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_crop_that_leaves_much_out_is_told(
    tiny_bundle: Path, width: int, height: int, kept: int | None, fit: str
) -> None:
    editor = Editor.load(tiny_bundle, "cpu", threads=1, verify=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        editor.invert(np.zeros((height, width, 3), np.uint8), 1, fit=fit)
    told = [f"fit='crop' keeps {kept} % of the picture ({width}x{height} to 64x64); fit='pad' keeps all of it"]
    assert [str(w.message) for w in caught] == (told if kept and fit == "crop" else [])
    assert all(w.category is ImageCroppedWarning and w.filename == __file__ for w in caught)


def test_the_default_fraction_holds_where_none_is_chosen(tiny_bundle: Path) -> None:
    """Zero is a choice, None is not."""
    manifest = Bundle.open(tiny_bundle, verify=False).manifest
    assert choices_to_settings(manifest, 0.4).replace_fraction == 0.4
    assert choices_to_settings(manifest, 0.4, replace_fraction=None).replace_fraction == 0.4
    assert choices_to_settings(manifest, 0.4, replace_fraction=0.0).replace_fraction == 0.0
