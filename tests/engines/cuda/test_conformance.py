"""Our types for cuda.core and cuda.bindings.driver against the real packages, and the fake against the types."""

from __future__ import annotations

import pytest

from freeprompt.engines.cuda import api
from tests.engines import conformance
from tests.engines.bindings import CUDA, Wheel, describe
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


@pytest.mark.parametrize("wheels", [(), CUDA], ids=["installed", "oldest"])
def test_cuda_core_has_what_is_used(wheels: tuple[Wheel, ...]) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not for this platform")
    library = describe(wheels, conformance.names(api, MODULES), *PACKAGES)
    assert conformance.problems(api, MODULES, library) == []


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_the_fake_adds_nothing(fake: type) -> None:
    """That it lacks nothing, and takes what the types say, is for mypy: it is passed where they are expected."""
    assert conformance.inventions(fake, FAKES[fake]) == []
