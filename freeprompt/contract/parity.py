"""Comparing what a graph gives with what it should: one measure for export, engines and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    import numpy.typing as npt

# What a value that is not finite counts as. Not NaN or infinity: JSON has neither, and this exceeds every bound.
NOT_FINITE = 1e30


@dataclass(frozen=True)
class Parity:
    """One comparison, on seeded inputs.

    Attributes:
        shapes: of the inputs, in words.
        relative_l2: ||got - expected|| / ||expected|| over all outputs together; ``NOT_FINITE`` where a value is not.
        max_abs: the largest difference of two values.
    """

    shapes: str
    relative_l2: Annotated[float, msgspec.Meta(ge=0.0)]
    max_abs: Annotated[float, msgspec.Meta(ge=0.0)]


def compare(shapes: str, expected: Mapping[str, npt.NDArray[Any]], got: Mapping[str, npt.NDArray[Any]]) -> Parity:
    """Compare outputs by name, in double precision.

    Raises:
        ValueError: other outputs, or of other shapes.
    """
    import numpy as np  # here: who reads a manifest, which holds such comparisons, compares nothing

    if expected.keys() != got.keys():
        raise ValueError(f"it gives {sorted(got)}, expected {sorted(expected)}")
    square = total = largest = 0.0
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape:
            raise ValueError(f"it gives {name} as {have.shape}, expected {want.shape}")
        if not np.isfinite(have).all():
            return Parity(f"{shapes}: {name} is not finite", NOT_FINITE, NOT_FINITE)
        difference = have.astype(np.float64) - want.astype(np.float64)
        square += float(np.sum(difference**2))
        total += float(np.sum(want.astype(np.float64) ** 2))
        largest = max(largest, float(np.abs(difference).max()))
    return Parity(shapes, (square / total) ** 0.5 if total else square**0.5, largest)
