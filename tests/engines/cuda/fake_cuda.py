"""A machine for what is used of cuda.core, in host memory: streams that are really behind, memory that is really freed.

What is enqueued happens when the host waits, and not before, so that code which changes or frees a source too early
gives wrong numbers here as it would on a device. Streams are ordered by events alone: what one does happens as late as
the events allow, or, on the streams in ``eager``, as early; code that is right gives the same with either. Fresh memory
is filled with NaN bit patterns (page-locked memory with large integers) and is there when the stream that it was
allocated on gets to that point; freed memory cannot be reached. Its classes are in ``fake_core``.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from freeprompt.engines.cuda.runtime import Library
from tests.engines.cuda.fake_core import MAIN, CUDAError, FakeBuffer, FakeCore, FakeDriver, Work


@dataclass
class Queue:
    """Work of a stream in order: (number from 1, what to do)."""

    work: deque[tuple[int, Work]] = field(default_factory=deque)
    enqueued: int = 0
    done: int = 0


class FakeCuda:
    """A machine with GPUs.

    Args:
        limit: the device's memory in bytes.
        eager: streams whose work happens as soon as it may.
        memory_pools: the device has them; without, allocating and freeing waits for everything.
        driver: the CUDA that it knows.

    Attributes:
        calls: how often each function that may cost time was called; copies as "copy HostToDevice".
        reserved: bytes that were freed and that a memory pool keeps.
    """

    def __init__(
        self,
        limit: int = 1 << 30,
        devices: int = 1,
        capability: tuple[int, int] = (9, 0),
        eager: tuple[int, ...] = (),
        memory_pools: bool = True,
        driver: int = 13000,
    ) -> None:
        self.limit = limit
        self.devices = devices
        self.capability = capability
        self.eager = eager
        self.memory_pools = memory_pools
        self.driver = driver
        self.current = threading.local()
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.leaving: dict[int, Any] = {}  # freed, but the stream has not got there
        self.freed: dict[int, Any] = {}
        self.born: dict[int, tuple[int, int]] = {}  # the stream that memory is allocated on, and when
        self.reserved = 0
        self.queues: dict[int, Queue] = {}
        self.calls: Counter[str] = Counter()
        self.capture: list[Work] | None = None
        self.invalidated = False
        self.captures = self.launches = self.mallocs = self.uploads = self.live_graphs = 0
        self.library = Library(FakeCore(self), FakeDriver(self))

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    @property
    def enqueued(self) -> int:
        """Pieces of work that the main stream was given."""
        return self.queues[MAIN].enqueued

    @property
    def done(self) -> int:
        return self.queues[MAIN].done

    def create_queue(self) -> int:
        number = MAIN + len(self.queues)
        self.queues[number] = Queue()
        return number

    def enqueue(self, work: Work, stream: int = MAIN) -> None:
        if self.capture is not None and stream == MAIN:
            self.capture.append(work)
            return
        into = self.queues[stream]
        into.enqueued += 1
        into.work.append((into.enqueued, work))
        if stream in self.eager:
            self.drain(stream)

    def drain(self, stream: int = MAIN, until: int | None = None) -> None:
        of = self.queues[stream]
        while of.work and (until is None or of.work[0][0] <= until):
            number, work = of.work.popleft()
            work()
            of.done = number

    def check(self, address: int, count: int) -> None:
        """An access outside of what is allocated is an error of the test, at the place where it is enqueued."""
        assert within(self.memory, address, count) is not None, f"{count} bytes at {address:#x} are not allocated"

    def reach(self, address: int, count: int) -> None:
        """Likewise when the access happens: a stream may not have got to the end of memory that was freed since."""
        found = within({**self.leaving, **self.memory}, address, count)
        assert found is not None, f"{count} bytes at {address:#x} were freed"
        stream, number = self.born.get(found, (MAIN, 0))
        assert self.queues[stream].done >= number, "another stream did not wait for the allocation"

    def need_context(self) -> None:
        if not getattr(self.current, "device", False):
            raise CUDAError("CUDA_ERROR_INVALID_CONTEXT: no context is current in this thread")

    def refuse_in_capture(self, what: str) -> None:
        if self.capture is not None:
            self.invalidated = True
            raise CUDAError(f"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: {what}")

    def allocate(self, size: int, stream: int) -> FakeBuffer:
        self.refuse_in_capture("allocation")
        if self.used + size > self.limit:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate enough")
        self.mallocs += 1
        self.calls["malloc"] += 1
        self.reserved = max(0, self.reserved - size)
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        address = ctypes.addressof(block)
        self.memory[address] = block
        if self.memory_pools:
            self.enqueue(lambda: None, stream)
            self.born[address] = (stream, self.queues[stream].enqueued)
        return FakeBuffer(address, size, free=lambda on: self.free(address, stream if on is None else on))

    def free(self, address: int, stream: int) -> None:
        self.calls["free"] += 1
        block = self.leaving[address] = self.memory.pop(address)
        if self.memory_pools:
            self.reserved += len(block)
            self.enqueue(lambda: self.end(address), stream)
        else:
            self.drain(stream)
            self.end(address)

    def end(self, address: int) -> None:
        """Nothing may use it from here on; it is kept, so that no address comes twice."""
        self.freed[address] = self.leaving.pop(address)

    def allocate_host(self, size: int) -> FakeBuffer:
        self.calls["malloc host"] += 1
        block = ctypes.create_string_buffer(b"\x7f" * size, size)
        self.host[ctypes.addressof(block)] = block
        # The library waits for the default stream alone, which is none of ours.
        return FakeBuffer(ctypes.addressof(block), size, free=lambda on: self.host.pop(ctypes.addressof(block)))

    def locate(self, address: int, count: int) -> tuple[str, Work]:
        """Where memory is, and a check of it for when the copy happens."""
        gone = within({**self.leaving, **self.freed}, address, 1)
        assert gone is None, "use of memory that was freed"
        if within(self.memory, address, count) is not None:
            return "Device", lambda: self.reach(address, count)
        locked = within(self.host, address, count)
        return "Host", lambda: None if locked is None else self.host[locked]


def within(blocks: dict[int, Any], address: int, count: int) -> int | None:
    """The address of the block that holds these bytes."""
    return next((a for a, block in blocks.items() if a <= address and address + count <= a + len(block)), None)
