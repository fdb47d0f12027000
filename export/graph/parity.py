"""Comparing an exported graph with the module it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from freeprompt.contract.errors import ExportError
from freeprompt.contract.parity import NOT_FINITE, Parity, compare

# float32: the two differ by the order of summation only; 1e-5 is twenty times what was measured on graphs of one and of
# sixteen attention layers (4e-7), and far below what a wrong weight or route gives. float16: the graph rounds every
# activation to 11 bits, torch is computed in float32; measured 1e-3 to 5e-3 on step graphs.
THRESHOLDS = {"float32": 1e-5, "float16": 2e-2}

NumpyArray = npt.NDArray[Any]
# The shapes in words, and the arguments of a module.
Case = tuple[str, tuple[Any, ...]]


class ParityError(ExportError):
    """A graph does not compute what its model computes."""


@dataclass(frozen=True)
class Expectation:
    """What a model computes from seeded inputs.

    Attributes:
        shapes: of the inputs, in words.
        inputs: arrays, in the order of the traced graph's inputs.
        outputs: arrays, in the order of the traced graph's outputs.
    """

    shapes: str
    inputs: tuple[NumpyArray, ...]
    outputs: tuple[NumpyArray, ...]


def module_to_expectations(reference: nn.Module, cases: Sequence[Case]) -> tuple[Expectation, ...]:
    """Run a module in float32; nested tuples of its arguments are flattened.

    Before it is traced, since its weights may then be halved in place.
    """
    found = []
    for shapes, args in cases:
        with torch.no_grad():
            result = reference(*args)
        outputs = result if isinstance(result, tuple) else (result,)
        found.append(Expectation(shapes, tuple(_flatten(args)), tuple(output.numpy() for output in outputs)))
    return tuple(found)


def graph_to_parity(
    name: str,
    path: Path,
    expectations: Sequence[Expectation],
    input_names: Sequence[str],
    outputs: slice,
    precision: str,
) -> tuple[Parity, ...]:
    """Run a graph on the inputs of its model.

    Args:
        name: of the graph, for messages.
        path: the ONNX file.
        expectations: of the model it was cut from.
        input_names: of the expectations' inputs; those the graph does not have are left out.
        outputs: which of the expectations' outputs the graph has.
        precision: of the graph's weights.

    Raises:
        ExportError: the graph does not run.
        ParityError: not finite, or past the threshold.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        has = {value.name for value in session.get_inputs()}
        found = []
        for expected in expectations:
            feeds = dict(zip(input_names, expected.inputs, strict=True))
            got = session.run(None, {k: v for k, v in feeds.items() if k in has})
            found.append(_compare(name, expected.shapes, expected.outputs[outputs], got, precision))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"graph {name} does not run in ONNX Runtime: {error}") from error
    worst = max(found, key=lambda parity: parity.relative_l2)
    if worst.relative_l2 > THRESHOLDS[precision]:
        raise ParityError(
            f"graph {name} differs from the model by {worst.relative_l2:.2e} (relative L2, {worst.shapes}); "
            f"{THRESHOLDS[precision]:.0e} is allowed in {precision}"
        )
    return tuple(found)


def _flatten(args: tuple[Any, ...]) -> list[NumpyArray]:
    flat: list[NumpyArray] = []
    for arg in args:
        flat.extend(_flatten(arg) if isinstance(arg, tuple) else [arg.numpy()])
    return flat


def _compare(
    name: str, shapes: str, expected: Sequence[NumpyArray], got: Sequence[NumpyArray], precision: str
) -> Parity:
    def by_place(values: Sequence[NumpyArray]) -> dict[str, NumpyArray]:
        return {f"output {number}": value for number, value in enumerate(values, 1)}

    if not all(np.isfinite(want).all() for want in expected):
        raise ExportError(
            f"the model of graph {name} gives values that are not finite ({shapes}) in float32 already: its "
            "weights are damaged"
        )
    try:
        found = compare(shapes, by_place(expected), by_place(got))
    except ValueError as error:
        raise ExportError(f"graph {name} is not its model's: {error}") from error
    if found.relative_l2 >= NOT_FINITE:
        advice = (
            "it overflows in half precision; export with float32"
            if precision == "float16"
            else "PyTorch's are; ONNX Runtime computes it wrongly here"
        )
        raise ParityError(f"graph {name} gives values that are not finite ({shapes}): {advice}")
    return found
