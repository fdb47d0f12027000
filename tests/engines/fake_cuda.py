# ruff: noqa: N815
"""CUDA's runtime in host memory, as cuda-python gives it: (error, values...) tuples, a stream that is really behind.

What is enqueued happens when the host waits, and not before, so that code which changes or frees a source too early
gives wrong numbers here as it would on a device. Fresh memory is filled with NaN bit patterns, freed memory cannot be
reached.
"""

from __future__ import annotations

import ctypes
from collections import deque
from enum import IntEnum
from typing import Any, Callable

Work = Callable[[], None]


class cudaError_t(IntEnum):  # noqa: N801 - the library's name
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):  # noqa: N801
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):  # noqa: N801
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):  # noqa: N801
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


OK = cudaError_t.cudaSuccess
INVALID = (cudaError_t.cudaErrorInvalidValue, None)


class Properties:
    name = b"Fake GPU"


class FakeCudart:
    """The module. ``limit`` is the device's memory in bytes."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamNonBlocking = 1
    cudaEventDefault = 0
    cudaEventDisableTiming = 2

    def __init__(self, limit: int = 1 << 30, devices: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.limit = limit
        self.devices = devices
        self.capability = capability
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.queue: deque[tuple[int, Work]] = deque()
        self.enqueued = 0
        self.done = 0
        self.capture: list[Work] | None = None
        self.captures = 0
        self.launches = 0
        self.mallocs = 0
        self.uploads = 0
        self.events: dict[int, int] = {}
        self.live_graphs = 0

    # The library's functions.

    def cudaGetDeviceCount(self) -> Any:
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device: int) -> Any:
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return OK, 77

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> Any:
        return OK, self.capability[attribute - cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor]

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return OK, Properties()

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13000

    def cudaRuntimeGetVersion(self) -> Any:
        return OK, 12090

    def cudaGetErrorString(self, error: int) -> Any:
        return OK, cudaError_t(error).name.encode()

    def cudaGetLastError(self) -> Any:
        return (OK,)

    def cudaMemGetInfo(self) -> Any:
        return OK, self.limit - self.used, self.limit

    def cudaMalloc(self, size: int) -> Any:
        if self.capture is not None:
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if self.used + size > self.limit:
            return cudaError_t.cudaErrorMemoryAllocation, None
        self.mallocs += 1
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFree(self, address: int) -> Any:
        self.drain()
        return (OK,) if self.memory.pop(address, None) is not None else INVALID

    def cudaMallocHost(self, size: int) -> Any:
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.host[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFreeHost(self, address: int) -> Any:
        self.drain()
        return (OK,) if self.host.pop(address, None) is not None else INVALID

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> Any:
        self.check(address, count)
        self.enqueue(lambda: void(ctypes.memset(address, value, count)))
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> Any:
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.check(target, count)
        if kind != cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.check(source, count)
        else:
            self.uploads += 1
        self.enqueue(lambda: void(ctypes.memmove(target, source, count)))
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if self.capture is not None:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.drain()
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        self.events[len(self.events)] = 0
        return OK, len(self.events) - 1

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        self.events[event] = self.enqueued
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> Any:
        self.drain(self.events[event])
        return (OK,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        return OK, float(self.events[end] - self.events[start])

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self.capture = []
        self.captures += 1
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work, self.capture = self.capture, None
        return INVALID if work is None else (OK, work)

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> Any:
        self.live_graphs += 1
        return OK, graph

    def cudaGraphDestroy(self, graph: Any) -> Any:
        return (OK,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:
        self.live_graphs -= 1
        return (OK,)

    def cudaGraphLaunch(self, graph: list[Work], stream: int) -> Any:
        self.launches += 1
        for work in graph:
            self.enqueue(work)
        return (OK,)

    # For the tests and for the fake of TensorRT.

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def enqueue(self, work: Work) -> None:
        if self.capture is not None:
            self.capture.append(work)
            return
        self.enqueued += 1
        self.queue.append((self.enqueued, work))

    def drain(self, until: int | None = None) -> None:
        while self.queue and (until is None or self.queue[0][0] <= until):
            number, work = self.queue.popleft()
            work()
            self.done = number

    def check(self, address: int, count: int) -> None:
        """An access outside of what is allocated is an error of the test, at the place where it was enqueued."""
        inside = any(start <= address and address + count <= start + len(b) for start, b in self.memory.items())
        assert inside, f"access to {count} bytes at {address:#x}, which is not allocated"


def void(_: Any) -> None:
    """Let an expression be a statement."""
