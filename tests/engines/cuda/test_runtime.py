"""CUDA on a device: what is missing, memory that is given back, threads, captures that fail."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.cuda.captured import Launcher
from freeprompt.engines.cuda.memory import DevicePool, UploadRing
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.cuda.spill import Spill
from tests.engines.conftest import Machine
from tests.engines.cuda.fake_core import FakeDriver
from tests.engines.cuda.fake_cuda import FakeCuda
from tests.engines.tensorrt.test_session import assert_equal, on_cpu, step_inputs


def runtime(**options: Any) -> tuple[FakeCuda, CudaRuntime]:
    cuda = FakeCuda(**options)
    return cuda, CudaRuntime(cuda.library)


@pytest.mark.parametrize("module", ["cuda.core", "cuda.bindings.driver"])
def test_a_package_that_is_missing_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=rf"{module}.*install cuda-core and cuda-bindings.*tensorrt-cu12.*driver"):
        CudaRuntime()


def test_the_real_package_without_a_driver() -> None:
    """Or with one: then there is nothing to be said."""
    pytest.importorskip("cuda.core", reason="cuda-core is not for this platform")
    try:
        CudaRuntime()
    except BackendError as error:
        assert "CUDA could not find a GPU" in str(error)
        assert "install" in str(error) or "CUDA_ERROR" in str(error)


def test_a_driver_that_is_older_than_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime(driver=12020)[1].info().driver == "12.2", "of the same major version: all is there"
    with pytest.raises(BackendError, match=r"driver knows CUDA 11\.8, .* of CUDA 12\.9; install a newer driver"):
        runtime(driver=11080)
    monkeypatch.setattr(FakeDriver, "CUDA_VERSION", 13050)
    with pytest.raises(BackendError, match=r"CUDA 12\.2, .* 13\.5; .* 'cuda-bindings==12\.\*'\) or a newer driver"):
        runtime(driver=12020)


def test_a_device_without_memory_pools(bundle: Bundle) -> None:
    machine = Machine.create(memory_pools=False)
    machine.build(bundle, "step", rows="2")
    machine.cuda.launches = 0
    session = machine.backend.open(bundle, "step")
    inputs = step_inputs(bundle, rows=2)
    want = on_cpu(bundle, "step", inputs)["next_latents"]
    for _ in range(3):
        assert_equal(session.run(inputs)["next_latents"].numpy(), want)
    assert machine.cuda.launches == 2


@pytest.mark.parametrize("memory_pools", [True, False])
def test_what_is_trimmed_is_free_for_others(memory_pools: bool) -> None:
    _, device = runtime(memory_pools=memory_pools)
    pool = DevicePool(device)
    free, total = device.memory()
    pool.give_back(pool.take(1 << 20))
    assert device.memory() == (free - (1 << 20), total), "kept for the next"
    pool.trim()
    assert device.memory() == (free, total)


def test_a_pool_that_nobody_holds_gives_its_memory_back() -> None:
    cuda, device = runtime()
    pool = DevicePool(device)
    arrays = [pool.upload(np.ones(1000, np.float32)) for _ in range(3)]
    assert cuda.used == 3 * 4096
    del arrays[0]
    gc.collect()
    assert cuda.used == 3 * 4096
    del arrays, pool
    gc.collect()
    assert cuda.used == 0


def test_what_is_dropped_while_copies_are_on_their_way_is_waited_for() -> None:
    """Nothing was closed: an edit that was cancelled, say. Page-locked memory is freed at once, whatever reads it."""
    cuda, device = runtime()
    pool = DevicePool(device)
    ring = UploadRing(device, 4096)
    ring.send(pool.take(4096), {0: np.ones(1024, np.float32)})
    del ring
    gc.collect()
    spill = Spill(pool)
    spill.fetch(spill.spill({"a": pool.upload(np.ones(1000, np.float32))}))
    spill.spill({"a": pool.upload(np.ones(1000, np.float32))})
    del spill, pool
    gc.collect()
    for stream in cuda.queues:
        cuda.drain(stream)  # finds what was freed too early
    assert (cuda.used, cuda.host) == (0, {})


def test_any_thread_may_work_with_the_device(bundle: Bundle) -> None:
    """A thread of CUDA's has no device until it takes one."""
    machine = Machine.create()
    machine.build(bundle, "step", rows="2")
    inputs = step_inputs(bundle, rows=2)
    results: list[Any] = []

    def work() -> None:
        session = machine.backend.open(bundle, "step")
        results.append(session.run({**inputs, "latents": machine.backend.upload(inputs["latents"])}))
        results.append(machine.backend.spill(results.pop()))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    want = on_cpu(bundle, "step", inputs)["next_latents"]
    assert len(results) == 2
    for result in results:
        assert_equal(result["next_latents"].numpy(), want)


def test_work_that_cannot_be_captured_is_run_and_the_stream_stays_usable() -> None:
    """Waiting within a capture makes it invalid; ending it fails too."""
    cuda, device = runtime()
    pool = DevicePool(device)
    array = pool.array((4,), np.dtype(np.float32))

    def enqueue() -> None:
        device.synchronize()
        array.content.fill(0, stream=device.stream)

    launcher = Launcher(device, enqueue)
    for _ in range(3):
        launcher.run()
    assert not launcher.captured and cuda.captures == 1 and cuda.launches == 0
    assert launcher.fallback is not None and "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in launcher.fallback
    assert array.numpy().tolist() == [0, 0, 0, 0]


def test_an_allocation_is_waited_for_by_the_other_stream() -> None:
    """The fake's own rule: without it no test would see a copy into memory that is not there yet."""
    _, device = runtime(eager=(78,))
    pool = DevicePool(device)
    copies = device.create_stream()
    source = pool.upload(np.ones(4, np.float32))
    source.content.fill(0, stream=device.stream)  # something that is still to be done
    target = pool.array((4,), np.dtype(np.float32))
    with pytest.raises(AssertionError, match="did not wait"):
        source.content.copy_to(target.content, stream=copies)
