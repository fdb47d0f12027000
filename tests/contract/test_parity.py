"""The one comparison: against sums written out by hand, and what manifests and engines say of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freeprompt.contract.parity import NOT_FINITE, Parity, compare
from freeprompt.contract.session import NumpyArray

ROOT = Path(__file__).parents[2]


def test_all_outputs_count_together() -> None:
    expected: dict[str, NumpyArray] = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.0]], np.float16)}
    got: dict[str, NumpyArray] = {"b": np.array([[4.0]], np.float16), "a": np.array([3.0, -0.5], np.float32)}
    # ||(0, -0.5, 0)|| / ||(3, 0, 4)||, exact in binary.
    assert compare("rows 2", expected, got) == Parity("rows 2", 0.5 / 5.0, 0.5)


def test_where_nothing_is_expected_the_difference_itself_counts() -> None:
    assert compare("", {"a": np.zeros(2)}, {"a": np.array([3.0, 4.0])}) == Parity("", 5.0, 4.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_exceed_every_bound_and_can_be_written(value: float) -> None:
    found = compare("rows 1", {"a": np.ones(2)}, {"a": np.array([1.0, value])})
    assert found.relative_l2 == found.max_abs == NOT_FINITE > 1.0
    assert "a is not finite" in found.shapes
    assert msgspec.json.decode(msgspec.json.encode(found), type=Parity) == found


def test_other_outputs_or_shapes_are_no_parity() -> None:
    with pytest.raises(ValueError, match=r"gives .*b.*expected .*a"):
        compare("", {"a": np.ones(1)}, {"b": np.ones(1)})
    with pytest.raises(ValueError, match=r"a as \(1,\), expected \(2,\)"):
        compare("", {"a": np.ones(2)}, {"a": np.ones(1)})


def test_there_is_one_parity() -> None:
    """Two that differ in a corner would let an engine pass what the export refuses."""
    sources = [path for room in ("freeprompt", "engines", "runtime", "export") for path in (ROOT / room).rglob("*.py")]
    defining = {path.resolve() for path in sources if re.search(r"^class \w*Parity:", path.read_text(), re.MULTILINE)}
    assert defining == {ROOT / "freeprompt/contract/parity.py"}
