"""What every graph of a bundle must give for known inputs: so a runtime that computes something else is found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from freeprompt.contract.errors import OutputError
from freeprompt.contract.manifest import KnownAnswer

NumpyArray = npt.NDArray[Any]


class KnownAnswers:
    """The tensors of one bundle's known answers. The graphs of a U-Net read the same inputs: these are kept once."""

    def __init__(self) -> None:
        self._tensors: dict[str, NumpyArray] = {}

    def add(self, inputs: Mapping[str, NumpyArray], outputs: Mapping[str, NumpyArray]) -> KnownAnswer:
        """Keep a graph's inputs, and what its model computes from them in float32.

        Returns:
            what the manifest says of it.
        """
        return KnownAnswer(self._keep(inputs), self._keep(outputs))

    def write(self, path: Path) -> None:
        """Raises OutputError."""
        try:
            path.write_bytes(safetensors.numpy.save(self._tensors))
        except OSError as error:
            raise OutputError(f"cannot write {path.name}: {error.strerror or error}") from error

    def _keep(self, values: Mapping[str, NumpyArray]) -> dict[str, str]:
        kept = {}
        for name, value in values.items():
            # The format takes the memory as it lies.
            array = np.ascontiguousarray(value)
            digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()
            kept[name] = f"{name}-{digest[:12]}"
            self._tensors[kept[name]] = array
        return kept
