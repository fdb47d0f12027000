# ruff: noqa: N815
"""CUDA's runtime in host memory, as cuda-python gives it: (error, values...) tuples, streams that are really behind.

What is enqueued happens when the host waits, and not before, so that code which changes or frees a source too early
gives wrong numbers here as it would on a device. Streams are ordered by events alone: what one does happens as late as
the events allow, or, on the streams in ``eager``, as early; code that is right gives the same with either. Fresh memory
is filled with NaN bit patterns (page-locked memory with large integers), freed memory cannot be reached.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

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


MAIN = 77


@dataclass
class Stream:
    """Work in order: (number from 1, what to do)."""

    queue: deque[tuple[int, Work]] = field(default_factory=deque)
    enqueued: int = 0
    done: int = 0


class FakeCudart:
    """The module.

    Args:
        limit: the device's memory in bytes.
        eager: streams whose work happens as soon as it may.

    Attributes:
        calls: how often each function that may cost time was called; copies as "copy HostToDevice".
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(
        self,
        limit: int = 1 << 30,
        devices: int = 1,
        capability: tuple[int, int] = (9, 0),
        eager: tuple[int, ...] = (),
    ) -> None:
        self.limit = limit
        self.devices = devices
        self.capability = capability
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.eager = eager
        self.calls: Counter[str] = Counter()
        self.capture: list[Work] | None = None
        self.captures = 0
        self.launches = 0
        self.mallocs = 0
        self.uploads = 0
        self.events: dict[int, tuple[int, int]] = {}  # stream and how much of it
        self.live_graphs = 0

    # The library's functions.

    def cudaGetDeviceCount(self) -> Any:
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device: int) -> Any:
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        stream = MAIN + len(self.streams)
        self.streams[stream] = Stream()
        return OK, stream

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
        self.calls["malloc"] += 1
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFree(self, address: int) -> Any:
        self.calls["free"] += 1
        self.drain_all()
        return (OK,) if self.memory.pop(address, None) is not None else INVALID

    def cudaMallocHost(self, size: int) -> Any:
        self.calls["malloc host"] += 1
        block = ctypes.create_string_buffer(b"\x7f" * size, size)
        self.host[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFreeHost(self, address: int) -> Any:
        self.drain_all()
        return (OK,) if self.host.pop(address, None) is not None else INVALID

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> Any:
        self.check(address, count)
        self.enqueue(lambda: void(ctypes.memset(address, value, count)), stream)
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> Any:
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.check(target, count)
        if kind != cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.check(source, count)
        else:
            self.uploads += 1
        self.calls[f"copy {cudaMemcpyKind(kind).name[len('cudaMemcpy') :]}"] += 1
        self.enqueue(lambda: void(ctypes.memmove(target, source, count)), stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if self.capture is not None:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.calls["synchronize"] += 1
        self.drain(stream)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        self.events[len(self.events)] = (MAIN, 0)
        return OK, len(self.events) - 1

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        self.events[event] = (stream, self.streams[stream].enqueued)
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> Any:
        self.drain(*self.events[event])
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        self.calls["wait on device"] += 1
        other, number = self.events[event]
        self.enqueue(lambda: self.drain(other, number), stream)
        return (OK,)

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
        self.calls["launch"] += 1
        for work in graph:
            self.enqueue(work)
        return (OK,)

    # For the tests and for the fake of TensorRT.

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    @property
    def enqueued(self) -> int:
        """Pieces of work that the main stream was given."""
        return self.streams[MAIN].enqueued

    @property
    def done(self) -> int:
        return self.streams[MAIN].done

    def enqueue(self, work: Work, stream: int = MAIN) -> None:
        if self.capture is not None and stream == MAIN:
            self.capture.append(work)
            return
        into = self.streams[stream]
        into.enqueued += 1
        into.queue.append((into.enqueued, work))
        if stream in self.eager:
            self.drain(stream)

    def drain(self, stream: int = MAIN, until: int | None = None) -> None:
        of = self.streams[stream]
        while of.queue and (until is None or of.queue[0][0] <= until):
            number, work = of.queue.popleft()
            work()
            of.done = number

    def drain_all(self) -> None:
        for stream in self.streams:
            self.drain(stream)

    def check(self, address: int, count: int) -> None:
        """An access outside of what is allocated is an error of the test, at the place where it was enqueued."""
        inside = any(start <= address and address + count <= start + len(b) for start, b in self.memory.items())
        assert inside, f"access to {count} bytes at {address:#x}, which is not allocated"


def void(_: Any) -> None:
    """Let an expression be a statement."""
