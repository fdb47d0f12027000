"""ONNX Runtime's CUDA provider as ``BoundSession`` uses it: bound addresses in the memory of ``FakeCudart``.

Computes on the CPU, when the stream gets there; what is bound without an address gets memory of its own.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.engines.cuda.fake_cuda import FakeCudart
from tests.engines.tensorrt.fake_tensorrt import open_onnx, read


@dataclass(frozen=True)
class Place:
    """Where a tensor is; ``address`` 0: the library chooses."""

    dtype: Any
    shape: tuple[int, ...]
    address: int


@dataclass
class FakeBinding:
    """Stands for ``onnxruntime.IOBinding``."""

    inputs: dict[str, Place] = field(default_factory=dict)
    outputs: dict[str, Place] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)

    def bind_input(self, name: str, device: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        assert device == "cuda"
        self.inputs[name] = Place(np.dtype(dtype), tuple(shape), address)

    def bind_output(
        self, name: str, device: str, device_id: int = 0, dtype: Any = None, shape: Any = (), address: int = 0
    ) -> None:
        assert device == "cuda"
        self.outputs[name] = Place(np.dtype(dtype), tuple(shape), address)

    def get_outputs(self) -> list[Any]:
        return self.results


class FakeOrtSession:
    """Stands for ``onnxruntime.InferenceSession`` on the CUDA provider.

    ``numbers`` are the graph ids of the runs: -1 is not captured.
    """

    def __init__(self, path: str, cudart: FakeCudart) -> None:
        self._session = open_onnx(path)
        self._cudart = cudart
        self.numbers: list[int] = []
        self.get_inputs = self._session.get_inputs
        self.get_outputs = self._session.get_outputs

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        self.numbers.append(int(options.get_run_config_entry("gpu_graph_id")))
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self._cudart.calls["enqueue"] += 1
        self._cudart.enqueue(lambda: self._compute(binding))
        if any(not place.address for place in binding.outputs.values()):
            self._cudart.drain()

    def _compute(self, binding: FakeBinding) -> None:
        cudart = self._cudart
        feeds = {n: read(cudart, p.address, p.shape, p.dtype) for n, p in binding.inputs.items()}
        names = [value.name for value in self.get_outputs()]
        values = self._session.run(names, feeds)
        binding.results = [ort.OrtValue.ortvalue_from_numpy(value) for value in values]
        for name, value in zip(names, values, strict=True):
            place = binding.outputs[name]
            if place.address:
                assert (place.shape, place.dtype) == (value.shape, value.dtype)
                cudart.check(place.address, value.nbytes)
                ctypes.memmove(place.address, np.ascontiguousarray(value).ctypes.data, value.nbytes)
