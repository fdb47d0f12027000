"""How long each layer of an engine takes, as TensorRT itself reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LayerTimes:
    """Milliseconds by layer, one number for each run, in the engine's order."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, layer: str, ms: float) -> None:
        self.samples.setdefault(layer, []).append(ms)


def create_profiler(trt: Any, times: LayerTimes) -> Any:
    """TensorRT's profiler interface over ``times``. A context that has one runs layer by layer and waits for each."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, float(ms))

    return Profiler()
