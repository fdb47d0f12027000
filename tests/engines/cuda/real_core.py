"""Our device code on cuda.core itself, over a driver that does everything at once in host memory (``stub_driver.c``).

Run as a process with that driver before the machine's own; prints what it found as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from freeprompt.contract.errors import BackendError
from freeprompt.engines.cuda.buffers import FixedBuffers, Tensor
from freeprompt.engines.cuda.captured import Launcher
from freeprompt.engines.cuda.memory import DevicePool
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.cuda.spill import Spill

FLOATS, INTEGERS = np.dtype(np.float32), np.dtype(np.int32)


def main() -> None:
    cuda = CudaRuntime()
    info, (free, _) = cuda.info(), cuda.memory()
    found = {"gpu": [info.name, info.capability, info.memory_bytes], "refused": refused(cuda)}
    found |= {"fixed": fixed(cuda), "captured": captured(cuda), "spilled": spilled(cuda)}
    gc.collect()
    found["left"] = free - cuda.memory()[0]
    sys.stdout.write(json.dumps(found))


def refused(cuda: CudaRuntime) -> list[str]:
    def error_of(action: Callable[[], object]) -> str:
        try:
            action()
        except BackendError as error:
            return str(error)
        return ""

    return [error_of(lambda: CudaRuntime(device=3)), error_of(lambda: DevicePool(cuda).take(1 << 40))]


def fixed(cuda: CudaRuntime) -> list[Any]:
    """What is where the engine looks, and what it would give back."""
    pool = DevicePool(cuda)
    inputs = (Tensor("x", FLOATS, (3, 2, 2)), Tensor("table", INTEGERS, (4,)), Tensor("scale", FLOATS, (2, 2)))
    buffers = FixedBuffers(pool, inputs, (Tensor("y", FLOATS, (3, 2, 2)),))
    shorter = pool.upload(np.ones((2, 2, 2), np.float32))
    buffers.load({"x": shorter, "table": np.arange(4, dtype=np.int32), "scale": np.full((2, 2), 0.5, np.float32)})
    result = [
        np.ctypeslib.as_array((kind * size).from_address(buffers.addresses[name])).tolist()
        for name, kind, size in (("x", ctypes.c_float, 12), ("table", ctypes.c_int, 4), ("scale", ctypes.c_float, 4))
    ]
    ctypes.memset(buffers.addresses["y"], 0x40, 48)
    result.append(buffers.outputs({"y": (2, 2, 2)})["y"].numpy().tolist())
    buffers.close()
    pool.trim()
    return result


def captured(cuda: CudaRuntime) -> list[Any]:
    calls: list[int] = []
    works, waits = Launcher(cuda, lambda: calls.append(1)), Launcher(cuda, cuda.synchronize)
    for _ in range(4):
        works.run()
        waits.run()
    result = [works.captured, len(calls), works.fallback, waits.captured, waits.fallback]
    works.reset()
    return [*result, works.captured]


def spilled(cuda: CudaRuntime) -> list[Any]:
    """There and back, in another thread."""
    pool = DevicePool(cuda)
    spill = Spill(pool)
    results: list[Any] = []

    def work() -> None:
        there = spill.spill({"a": pool.upload(np.arange(4, dtype=np.float32))})
        results.extend((spill.fetch(there)["a"].numpy().tolist(), there["a"].numpy().tolist()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results


if __name__ == "__main__":
    main()
