"""Our types for cuda.core and cuda.bindings.driver against the real packages, and the fake against the types."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from freeprompt.engines.cuda import api
from tests.engines import conformance
from tests.engines.bindings import CUDA, Wheel, compile_library, describe, run_python
from tests.engines.cuda import fake_core

MODULES = ("Core", "Driver")
# Where the classes are, whatever exports them.
PACKAGES = ("cuda.core", "cuda.core.graph", "cuda.core._device", "cuda.bindings.driver")
FAKES: dict[type, type] = {
    fake_core.FakeBuffer: api.Buffer,
    fake_core.FakeEvent: api.Event,
    fake_core.FakeStream: api.Stream,
    fake_core.FakeGraphBuilder: api.GraphBuilder,
    fake_core.FakeGraph: api.Graph,
    fake_core.FakeMemoryResource: api.DeviceMemoryResource,
    fake_core.FakeLockedMemoryResource: api.LegacyPinnedMemoryResource,
    fake_core.FakeDevice: api.Device,
    fake_core.FakeCore: api.Core,
    fake_core.FakeDriver: api.Driver,
}


versions = pytest.mark.parametrize("wheels", [(), CUDA], ids=["installed", "oldest"])


@versions
def test_cuda_core_has_what_is_used(wheels: tuple[Wheel, ...]) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not for this platform")
    library = describe(wheels, conformance.names(api, MODULES), *PACKAGES)
    assert conformance.problems(api, MODULES, library) == []


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_the_fake_adds_nothing(fake: type) -> None:
    """That it lacks nothing, and takes what the types say, is for mypy: it is passed where they are expected."""
    assert conformance.inventions(fake, FAKES[fake]) == []


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver of CUDA's that needs no GPU."""
    pytest.importorskip("cuda.core", reason="cuda-core is not for this platform")
    if sys.platform != "linux":
        pytest.skip("the driver of stubs is for Linux")
    folder = tmp_path_factory.mktemp("driver")
    compile_library(Path(__file__).with_name("stub_driver.c"), folder / "libcuda.so.1")
    return folder


@versions
@pytest.mark.parametrize("without_pools", ["", "1"])
def test_our_code_runs_on_cuda_core_itself(wheels: tuple[Wheel, ...], without_pools: str, driver: Path) -> None:
    variables = {"STUB_WITHOUT_POOLS": without_pools} if without_pools else {}
    code = "from tests.engines.cuda.real_core import main; main()"
    found = json.loads(run_python(wheels, code, LD_LIBRARY_PATH=str(driver), **variables))
    assert found["gpu"] == ["Stub GPU", "9.0", 1 << 30]
    no_device, no_memory = found["refused"]
    assert no_device == "there is no GPU 3; CUDA sees 1"
    assert no_memory.startswith("the GPU has no 1099511.6 MB left: 1074 of 1074 MB are free")
    x, table, scale, y = found["fixed"]
    assert (x, table, scale) == ([1.0] * 8 + [0.0] * 4, [0, 1, 2, 3], [0.5] * 4)
    assert y == [[[3.0039215087890625] * 2] * 2] * 2, "0x40404040"
    captured, calls, fallback, *waits = found["captured"]
    assert (captured, calls, fallback) == (True, 2, None), "once enqueued, once captured"
    assert waits[0] is False and "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in waits[1] and waits[2] is False
    assert found["spilled"] == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert found["left"] == 0
