"""How long each layer of an engine takes, as TensorRT itself reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt.api import IProfiler, TensorRT


@dataclass
class LayerTimes:
    """Milliseconds by layer, one number for each run, in the engine's order."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, layer: str, ms: float) -> None:
        self.samples.setdefault(layer, []).append(ms)


def create_profiler(trt: TensorRT, times: LayerTimes) -> IProfiler:
    """TensorRT's profiler interface over ``times``. A context that has one runs layer by layer and waits for each."""

    base: Any = trt.IProfiler

    class Profiler(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, float(ms))

    profiler: IProfiler = Profiler()
    return profiler
