"""The classes of cuda.core that are used, over the memory and the streams of a ``FakeCuda``. A test holds them against
the real ones: nothing may be here that is not there.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer, Event, Stream
    from tests.engines.cuda.fake_cuda import FakeCuda

Work = Callable[[], object]
Free = Callable[[int | None], object]  # on a stream; None: the one of the allocation
MAIN = 77


class CUDAError(Exception):
    """With the library's name and origin: nothing public has it."""


CUDAError.__module__ = "cuda.core._utils.cuda_utils"


class FakeBuffer:
    def __init__(
        self, address: int, size: int, owner: object = None, free: Callable[[Any], None] | None = None
    ) -> None:
        self.handle, self.size, self._owner = address, size, owner
        self._free = None if free is None else weakref.finalize(self, free, None)
        if self._free is not None:
            self._free.atexit = False

    @staticmethod
    def from_handle(ptr: int, size: int, mr: None = None, owner: object | None = None) -> FakeBuffer:
        return FakeBuffer(ptr, size, owner)

    def copy_to(self, dst: Buffer | None = None, *, stream: Stream) -> FakeBuffer:
        target, on = cast("FakeBuffer", dst), cast("FakeStream", stream)
        if target.size != self.size:
            raise ValueError("buffer sizes mismatch between src and dst")
        cuda, a, b, size = on.cuda, target.handle, self.handle, self.size
        cuda.need_context()
        (into, check_target), (out_of, check_source) = cuda.locate(a, size), cuda.locate(b, size)
        cuda.calls[f"copy {out_of}To{into}"] += 1
        cuda.uploads += (out_of, into) == ("Host", "Device")

        def copy() -> None:
            check_target()
            check_source()
            ctypes.memmove(a, b, size)

        cuda.enqueue(copy, on.handle)
        return target

    def fill(self, value: int, *, stream: Stream) -> None:
        on, address, size = cast("FakeStream", stream), self.handle, self.size
        on.cuda.need_context()
        on.cuda.check(address, size)
        on.cuda.enqueue(lambda: ctypes.memset(address, value, size), on.handle)

    def close(self, stream: Stream | None = None) -> None:
        found = None if self._free is None else self._free.detach()
        if found is not None:
            found[1](None if stream is None else int(stream.handle))


@dataclass
class FakeEvent:
    cuda: FakeCuda
    place: tuple[int, int] = (MAIN, 0)  # a stream and how much of it

    def sync(self) -> None:
        self.cuda.need_context()
        self.cuda.drain(*self.place)


@dataclass
class FakeStream:
    cuda: FakeCuda
    handle: int

    def sync(self) -> None:
        self.cuda.need_context()
        self.cuda.refuse_in_capture("synchronization")
        self.cuda.calls["synchronize"] += 1
        self.cuda.drain(self.handle)

    def record(self, event: Event | None = None) -> FakeEvent:
        self.cuda.need_context()
        found = FakeEvent(self.cuda) if event is None else cast("FakeEvent", event)
        found.place = (self.handle, self.cuda.queues[self.handle].enqueued)
        return found

    def wait(self, event_or_stream: Event) -> None:
        self.cuda.need_context()
        self.cuda.calls["wait on device"] += 1
        other, number = cast("FakeEvent", event_or_stream).place
        self.cuda.enqueue(lambda: self.cuda.drain(other, number), self.handle)

    def create_graph_builder(self) -> FakeGraphBuilder:
        return FakeGraphBuilder(self.cuda)


@dataclass
class FakeGraphBuilder:
    cuda: FakeCuda
    work: list[Work] = field(default_factory=list)

    def begin_building(self, mode: str = "relaxed") -> FakeGraphBuilder:
        assert mode == "thread_local"
        self.cuda.capture, self.cuda.invalidated = [], False
        self.cuda.captures += 1
        return self

    def end_building(self) -> FakeGraphBuilder:
        if self.cuda.capture is None or self.cuda.invalidated:
            raise RuntimeError("Build process encountered an error and has been invalidated")
        self.work, self.cuda.capture = self.cuda.capture, None
        return self

    def complete(self) -> FakeGraph:
        self.cuda.live_graphs += 1
        return FakeGraph(self.cuda, self.work)

    def close(self) -> None:
        self.cuda.capture = None
        if self.cuda.invalidated:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: the capture was invalidated")


@dataclass
class FakeGraph:
    cuda: FakeCuda
    work: list[Work]

    def launch(self, stream: Stream) -> None:
        self.cuda.need_context()
        self.cuda.launches += 1
        self.cuda.calls["launch"] += 1
        for work in self.work:
            self.cuda.enqueue(work, int(stream.handle))

    def close(self) -> None:
        self.cuda.live_graphs -= 1


@dataclass
class FakeMemoryResource:
    cuda: FakeCuda
    handle: str = "pool"

    def allocate(self, size: int, *, stream: Stream) -> FakeBuffer:
        self.cuda.need_context()
        return self.cuda.allocate(size, int(stream.handle))


@dataclass
class FakeLockedMemoryResource:
    cuda: FakeCuda

    def allocate(self, size: int) -> FakeBuffer:
        self.cuda.need_context()
        return self.cuda.allocate_host(size)


@dataclass
class FakeProperties:
    memory_pools_supported: bool


class FakeDevice:
    name = "Fake GPU"

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.compute_capability = cuda.capability
        self.properties = FakeProperties(cuda.memory_pools)
        self.memory_resource = FakeMemoryResource(cuda)

    def set_current(self) -> None:
        self._cuda.current.device = True

    def create_stream(self) -> FakeStream:
        self._cuda.need_context()
        return FakeStream(self._cuda, self._cuda.create_queue())

    def create_event(self) -> FakeEvent:
        self._cuda.need_context()
        return FakeEvent(self._cuda)


class FakeCore:
    Buffer = FakeBuffer

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def Device(self, device_id: int) -> FakeDevice:
        if not self._cuda.devices:
            raise CUDAError("CUDA_ERROR_NO_DEVICE: no CUDA-capable devices were detected")
        if device_id >= self._cuda.devices:
            raise ValueError(f"device_id must be within [0, {self._cuda.devices}), got {device_id}")
        return FakeDevice(self._cuda)

    def LegacyPinnedMemoryResource(self) -> FakeLockedMemoryResource:
        return FakeLockedMemoryResource(self._cuda)


class FakeDriver:
    CUDA_VERSION = 12090

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, self._cuda.devices

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, self._cuda.driver

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        self._cuda.need_context()
        return 0, self._cuda.limit - self._cuda.used - self._cuda.reserved, self._cuda.limit

    def cuMemPoolTrimTo(self, pool: object, minBytesToKeep: int) -> tuple[int]:
        assert pool == "pool" and self._cuda.memory_pools
        self._cuda.reserved = 0
        return (0,)
