"""How far what was computed is from what should have been: the one measure of export, engines and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from freeprompt.contract.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

# Bounds on the relative L2 difference of whatever runs a graph. float32: other orders of summation and Winograd
# convolutions, TF32 switched off. float16: the export allows 2e-2 against float32 PyTorch, and an engine rounds
# elsewhere than the reference. A wrong kernel gives 0.1 and more.
THRESHOLDS = {"float32": 1e-3, "float16": 2e-2}
# Of values that are not finite. Not NaN or infinity: JSON has neither, and this exceeds every bound.
NOT_FINITE = 1e30


@dataclass(frozen=True)
class Parity:
    """One comparison on seeded inputs: of a graph with its model in float32, or of an engine with the graph.

    Attributes:
        shapes: of the inputs, in words.
        relative_l2: ||got - expected|| / ||expected|| over all outputs together.
        max_abs: the largest difference of a value.
    """

    shapes: str
    relative_l2: Annotated[float, msgspec.Meta(ge=0.0)]
    max_abs: Annotated[float, msgspec.Meta(ge=0.0)]


def compare(shapes: str, expected: Mapping[str, npt.NDArray[Any]], got: Mapping[str, npt.NDArray[Any]]) -> Parity:
    """Compare outputs by name, in double precision; ``NOT_FINITE`` where one of ``got`` has a value that is not finite.

    Raises:
        BackendError: other outputs or other shapes than expected.
    """
    import numpy as np  # late: manifests hold parities and are read without NumPy

    square = total = largest = 0.0
    if expected.keys() != got.keys():
        raise BackendError(f"the outputs are {', '.join(sorted(got))}, expected were {', '.join(sorted(expected))}")
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape:
            raise BackendError(f"output {name} has shape {have.shape}, expected was {want.shape}")
        if not np.isfinite(have).all():
            return Parity(f"{shapes}: {name} is not finite", NOT_FINITE, NOT_FINITE)
        difference = have.astype(np.float64) - want.astype(np.float64)
        square += float(np.sum(difference**2))
        total += float(np.sum(want.astype(np.float64) ** 2))
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
    return Parity(shapes, (square / total) ** 0.5 if total else square**0.5, largest)
