"""Our TensorRT and CUDA code against the libraries' real Python bindings: names, members and signatures.

No GPU and no TensorRT is needed: see ``bindings``. What the libraries *do* is not tested here but on a GPU.
"""

from __future__ import annotations

import inspect
import json
from enum import IntEnum

import pytest

from tests.engines.cuda.fake_cuda import FakeCuda
from tests.engines.tensorrt import bindings, fake_tensorrt
from tests.engines.tensorrt.api_uses import MODULE, TYPES, Use, find_uses, problems, sources
from tests.engines.tensorrt.bindings import ROOT, TENSORRT, Wheel, describe, describe_installed, run_python

ENGINES = ROOT / "engines"
TENSORRT_SOURCES = (
    "tensorrt/library.py",
    "tensorrt/compile.py",
    "tensorrt/engine.py",
    "tensorrt/progress.py",
    "tensorrt/timing.py",
)
# What TensorRT-RTX has beside the common API.
RTX_SOURCES = ("tensorrt/rtx.py",)

tensorrt_versions = pytest.mark.parametrize("wheel", TENSORRT, ids=lambda wheel: wheel.version)


@tensorrt_versions
def test_every_use_exists_in_this_version(wheel: Wheel) -> None:
    library = describe(wheel, "tensorrt_bindings")
    for name, source in sources(ENGINES, TENSORRT_SOURCES).items():
        found = problems(find_uses(source, wheel.version), library)
        assert not found, f"{name} with TensorRT {wheel.version}: " + "; ".join(found)


def test_every_use_exists_in_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    library = describe_installed("tensorrt_rtx_bindings")
    for name, source in sources(ENGINES, (*TENSORRT_SOURCES, *RTX_SOURCES)).items():
        found = problems(find_uses(source, "11.4"), library)
        assert not found, f"{name} with TensorRT-RTX: " + "; ".join(found)


def test_the_sources_use_every_class_that_is_looked_for() -> None:
    """A variable renamed in the sources would silently no longer be checked."""
    used = set()
    for source in sources(ENGINES, (*TENSORRT_SOURCES, *RTX_SOURCES)).values():
        used |= {use.owner for use in find_uses(source, "10.3")}
    assert set(TYPES.values()) <= used


def test_nothing_else_touches_the_libraries() -> None:
    """Other modules reach TensorRT through the ones that are checked."""
    for path in sorted(ENGINES.rglob("*.py")):
        if path.relative_to(ENGINES).as_posix() not in (*TENSORRT_SOURCES, *RTX_SOURCES):
            uses = [u for u in find_uses(path.read_text(), "10.3") if u.owner == MODULE]
            assert all(use.name == "__version__" for use in uses), (path, uses)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 does not exist"),
        ("size = engine.device_memory_size", "ICudaEngine.device_memory_size does not exist"),
        ("context.set_device_memory(1)", "called with 1 arguments"),
        ("config.set_memory_pool_limit(pool_size=3)", "called with 0 arguments"),
        ("engine.num_layers = 3", "cannot be set"),
        ("flag = trt.BuilderFlag\nx = flag.INT8", "BuilderFlag.INT8 does not exist"),
        ("builder = trt.Builder()", "called with 0 arguments"),
        ("self._trt.no_such_function()", "no_such_function does not exist"),
        ("if not at_least(trt, '10.3'):\n  pass\nelse:\n  trt.BuilderFlag.FP16", "FP16 does not exist"),
    ],
)
def test_what_the_newest_version_lacks_is_found(code: str, complaint: str) -> None:
    wheel = TENSORRT[-1]
    (found,) = problems(find_uses(code, wheel.version), describe(wheel, "tensorrt_bindings"))
    assert complaint in found


def test_code_for_an_older_version_is_not_held_against_a_newer() -> None:
    code = "if at_least(trt, '10.3'):\n  pass\nelse:\n  config.set_flag(trt.BuilderFlag.FP16)"
    assert find_uses(code, "11.4") == []
    assert {use.name for use in find_uses(code, "10.2.0")} == {"set_flag", "BuilderFlag", "FP16"}


SUBCLASSES = """
import json, sys, warnings
warnings.simplefilter("error")
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from freeprompt.engines.tensorrt.library import FLAVOURS, Library, Messages, load_library
from freeprompt.engines.tensorrt.progress import BuildProgress, create_monitor
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
print(json.dumps([said, messages.warnings, lines, refused]))
"""


@tensorrt_versions
def test_our_subclasses_and_the_absence_of_a_gpu(wheel: Wheel) -> None:
    """Logger and monitor are subclasses of the bindings' classes; without a GPU the library gives no runtime."""
    errors, warned, lines, refused = json.loads(run_python(wheel, SUBCLASSES))
    assert errors == ["bad", "worse"]
    assert warned == ["hm"]
    assert lines == ["b: 50 % after 10 s, about 10 s left"]
    assert len(refused) == 1
    assert refused[0].startswith("TensorRT could not start its runtime")


FAKES: dict[type, str] = {
    fake_tensorrt.Runtime: "Runtime",
    fake_tensorrt.FakeEngine: "ICudaEngine",
    fake_tensorrt.Inspector: "EngineInspector",
    fake_tensorrt.FakeContext: "IExecutionContext",
}
# And what TensorRT-RTX alone has, methods of classes above included.
RTX_FAKES: dict[type, str] = {
    fake_tensorrt.RuntimeConfig: "IRuntimeConfig",
    fake_tensorrt.RuntimeCache: "IRuntimeCache",
}
RTX_METHODS = ("get_engine_validity", "create_runtime_config")


def fake_uses(fake: type, owner: str) -> list[Use]:
    """The public methods and properties of a fake, as uses with as many arguments as they take."""
    uses = []
    for name, value in vars(fake).items():
        if name.startswith("_"):
            continue
        if inspect.isfunction(value):
            parameters = list(inspect.signature(value).parameters.values())[1:]
            required = sum(p.default is inspect.Parameter.empty for p in parameters)
            uses.append(Use(owner, name, 0, required))
        else:
            uses.append(Use(owner, name, 0))
    return uses


@tensorrt_versions
def test_the_fake_invents_nothing(wheel: Wheel) -> None:
    """What the unit tests run against has the names and arguments of the real bindings of that version."""
    library = describe(wheel, "tensorrt_bindings")
    module = fake_tensorrt.FakeTensorRT(wheel.version, FakeCuda())
    found = problems([Use(MODULE, name, 0) for name in vars(module) if name[0].isupper()], library)
    for name, enum in vars(module).items():
        if isinstance(enum, type) and issubclass(enum, IntEnum):
            found += problems([Use(name, member, 0) for member in enum.__members__], library)
    for fake, owner in FAKES.items():
        found += problems([use for use in fake_uses(fake, owner) if use.name not in RTX_METHODS], library)
    assert found == []


def test_the_fake_of_tensorrt_rtx_invents_nothing() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    library = describe_installed("tensorrt_rtx_bindings")
    module = fake_tensorrt.FakeTensorRT("1.7.1.116", FakeCuda(), "tensorrt-rtx")
    found = problems([Use(MODULE, name, 0) for name in vars(module) if name[0].isupper()], library)
    for name, enum in vars(module).items():
        if isinstance(enum, type) and issubclass(enum, IntEnum):
            found += problems([Use(name, member, 0) for member in enum.__members__], library)
    for fake, owner in {**FAKES, **RTX_FAKES}.items():
        found += problems(fake_uses(fake, owner), library)
    assert found == []


def test_wheels_of_both_generations_are_named() -> None:
    majors = [wheel.version.split(".")[0] for wheel in bindings.TENSORRT]
    assert majors == ["10", "10", "11"]
