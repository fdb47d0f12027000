"""Our types for TensorRT's API against the libraries' real Python bindings; our source and the fake against the types.

No GPU and no TensorRT is needed: see ``bindings``. What the libraries *do* is not tested here but on a GPU.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import ModuleType
from typing import Any

import pytest

from freeprompt.engines.tensorrt import api, rtx_api
from tests.engines import bindings, conformance
from tests.engines.bindings import TENSORRT, Wheel, describe, run_python
from tests.engines.cuda.fake_cuda import FakeCuda
from tests.engines.tensorrt import fake_tensorrt
from tests.engines.tensorrt.fake_tensorrt import FakeTensorRT

RTX = "tensorrt_rtx_bindings"
# What each library has to have: types, and which of them are of the module itself. This is all that tells them apart.
COMMON: tuple[tuple[ModuleType, tuple[str, ...]], ...] = ((api, ("TensorRT", "BuildingTensorRT")),)
RTX_TOO = (*COMMON, (rtx_api, ("TensorRTRTX",)))

tensorrt_versions = pytest.mark.parametrize("wheel", TENSORRT, ids=lambda wheel: wheel.version)


def enums(fake: FakeTensorRT) -> dict[str, set[str]]:
    """Enumerators of the fake by their classes."""
    kinds = {name: kind for name, kind in vars(fake).items() if isinstance(kind, type) and issubclass(kind, IntEnum)}
    return {name: set(kind.__members__) for name, kind in kinds.items()}


def described(wheels: tuple[Wheel, ...], module: str, fake: FakeTensorRT) -> dict[str, Any]:
    wanted = set[str]().union(*(conformance.names(types, modules) for types, modules in RTX_TOO), enums(fake))
    return describe(wheels, wanted, module)


def wrong(library: dict[str, Any], fake: FakeTensorRT, required: Any) -> list[str]:
    found = [line for types, modules in required for line in conformance.problems(types, modules, library)]
    for name, members in enums(fake).items():
        known = library.get(name, {"members": {}})["members"]
        found += [f"the fake's {name}.{member} does not exist" for member in sorted(members - known.keys())]
    return found


@tensorrt_versions
def test_tensorrt_has_what_is_used(wheel: Wheel) -> None:
    fake = FakeTensorRT(wheel.version, FakeCuda())
    assert wrong(described((wheel,), "tensorrt_bindings", fake), fake, COMMON) == []


def test_tensorrt_rtx_has_what_is_used() -> None:
    pytest.importorskip(RTX, reason="TensorRT-RTX is not for this platform")
    fake = FakeTensorRT("1.7.1.116", FakeCuda(), "tensorrt-rtx")
    library = described((), RTX, fake)
    assert wrong(library, fake, RTX_TOO) == []
    # And whatever is taken away from it is missed.
    for types, modules in RTX_TOO:
        for name, kind in conformance.classes(types).items():
            for member, _ in conformance.declared(kind):
                less = {**library}
                if name in modules:
                    del less[member]
                else:
                    less[name] = {**library[name], "members": {**library[name]["members"]}}
                    del less[name]["members"][member]
                assert f"{name}.{member} does not exist" in wrong(less, fake, RTX_TOO)


FAKES: dict[type, tuple[type, ...]] = {
    fake_tensorrt.BaseLogger: (api.ILogger,),
    fake_tensorrt.BaseProfiler: (api.IProfiler,),
    fake_tensorrt.BaseMonitor: (api.IProgressMonitor,),
    fake_tensorrt.Runtime: (api.Runtime, rtx_api.Runtime),
    fake_tensorrt.FakeEngine: (api.ICudaEngine, rtx_api.ICudaEngine),
    fake_tensorrt.Inspector: (api.EngineInspector,),
    fake_tensorrt.FakeContext: (api.IExecutionContext,),
    fake_tensorrt.RuntimeConfig: (rtx_api.IRuntimeConfig,),
    fake_tensorrt.RuntimeCache: (rtx_api.IRuntimeCache,),
}


def for_mypy(
    runtime: fake_tensorrt.Runtime, engine: fake_tensorrt.FakeEngine, cache: fake_tensorrt.RuntimeCache
) -> tuple[rtx_api.Runtime, rtx_api.ICudaEngine, rtx_api.IRuntimeCache]:
    """Where our source takes TensorRT-RTX's own by a cast, mypy sees here that the fake has it."""
    return runtime, engine, cache


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_the_fake_adds_nothing(fake: type) -> None:
    """That it lacks nothing, and takes what the types say, is for mypy: it is passed where they are expected."""
    assert conformance.inventions(fake, *FAKES[fake]) == []


SUBCLASSES = """
import json, sys, warnings
warnings.simplefilter("error")
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from freeprompt.engines.tensorrt.library import load_library
from freeprompt.engines.tensorrt.building.progress import BuildProgress, create_monitor
library = load_library("tensorrt")
trt, messages = library.trt, library.messages
# As the library calls it: the method of the base class dispatches to ours.
messages.logger.log(trt.ILogger.ERROR, "bad")
messages.logger.log(trt.ILogger.INTERNAL_ERROR, "worse")
messages.logger.log(trt.ILogger.WARNING, "hm")
messages.logger.log(trt.ILogger.INFO, "chatter")
lines = []
monitor = create_monitor(trt, BuildProgress("b", lines.append, iter(range(0, 1000, 10)).__next__))
monitor.phase_start("a", None, 2)
assert monitor.step_complete("a", 0) is True
monitor.phase_finish("a")
said = list(messages.errors)
from freeprompt.engines.tensorrt.engine import Engine
from freeprompt.contract.errors import BackendError
refused = []
try:
    Engine(library, b"")
except BackendError as error:
    refused.append(str(error))
from freeprompt.engines.tensorrt.timing import LayerTimes, create_profiler
times = LayerTimes()
profiler = create_profiler(trt, times)
# By the name under which the library finds it, as a keyword and with a number of its own.
assert isinstance(profiler, trt.IProfiler)
profiler.report_layer_time(layer_name="a", ms=1.5)
assert times.samples == {"a": [1.5]}
print(json.dumps([said, list(messages.warnings), lines, refused]))
"""


@tensorrt_versions
def test_our_subclasses_and_the_absence_of_a_gpu(wheel: Wheel) -> None:
    """Logger and monitor are subclasses of the bindings' classes; without a GPU the library gives no runtime."""
    errors, warned, lines, refused = json.loads(run_python((wheel,), SUBCLASSES))
    assert errors == ["bad", "worse"]
    assert warned == ["hm"]
    assert lines == ["b: 50 % after 10 s, about 10 s left"]
    assert len(refused) == 1
    assert refused[0].startswith("TensorRT could not start its runtime")


def test_wheels_of_both_generations_are_named() -> None:
    majors = [wheel.version.split(".")[0] for wheel in bindings.TENSORRT]
    assert majors == ["10", "10", "11"]
