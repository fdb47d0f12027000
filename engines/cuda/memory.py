"""Device memory for a backend: arrays that never change, from buffers that are used again once nobody holds them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import NumpyArray
from freeprompt.engines.cuda.runtime import CudaRuntime

# What cudaMalloc aligns to; smaller requests share one size, so that they can be given out again.
ALIGNMENT = 256
# Uploads of a step that may be on their way before the host waits for the first of them.
UPLOAD_SLOTS = 4


@dataclass(frozen=True)
class Buffer:
    """A piece of device memory."""

    address: int
    size: int


class Arrival:
    """Something that another stream is still writing. Waiting is done on the device, and once.

    Args:
        wait: makes the main stream wait.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait: Callable[[], None] | None = wait

    def wait(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            wait()


class ShapedMemory:
    """What arrays have in common that are an address and a shape."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape = shape
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def nbytes(self) -> int:
        return shape_to_bytes(self._shape, self._dtype)


class CudaArray(ShapedMemory):
    """A tensor in device memory. Its buffer goes back to the pool with the last reference to it.

    Args:
        arrival: what has to be waited for before the content, or the buffer, is used.
    """

    def __init__(
        self,
        pool: DevicePool,
        buffer: Buffer,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        arrival: Arrival | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        self._pool = pool
        self._buffer = buffer
        self._arrival = arrival
        finalizer = weakref.finalize(self, pool.give_back, buffer, arrival)
        # At exit the driver frees everything itself, and may be gone before this would run.
        finalizer.atexit = False

    @property
    def address(self) -> int:
        return self._buffer.address

    def belongs_to(self, pool: DevicePool) -> bool:
        return self._pool is pool

    def settle(self) -> None:
        """Let the main stream wait until the content is there; to be called before enqueuing what reads it."""
        if self._arrival is not None:
            self._arrival.wait()
            self._arrival = None

    def numpy(self) -> NumpyArray:
        self.settle()
        result = np.empty(self._shape, self._dtype)
        self._pool.cuda.download(result.ctypes.data, self.address, result.nbytes)
        result.setflags(write=False)
        return result


class DevicePool:
    """Gives out device memory and keeps what comes back, by size.

    All work is on one stream, so a buffer may be given out again while an earlier reader is still enqueued. Whoever
    lets another stream write into a buffer orders that stream behind the main one first.
    """

    def __init__(self, cuda: CudaRuntime) -> None:
        self.cuda = cuda
        self._free: dict[int, list[Buffer]] = {}
        self.used_bytes = 0
        self.peak_bytes = 0

    def take(self, size: int) -> Buffer:
        """A buffer of at least ``size`` bytes, of any content.

        Raises:
            BackendError: the device has no memory left.
        """
        size = round_up(size)
        kept = self._free.get(size)
        if kept:
            buffer = kept.pop()
        else:
            address = self.cuda.allocate(size)
            if address is None:
                self.trim()
                address = self.cuda.allocate(size)
            if address is None:
                free, total = self.cuda.memory()
                raise BackendError(
                    f"the GPU has no {size / 1e6:.1f} MB left: {free / 1e6:.0f} of {total / 1e6:.0f} MB are free, "
                    f"this backend holds {self.used_bytes / 1e6:.0f} MB. "
                    "Close other programs on the GPU, or use fewer rows, a smaller size or the memory profile"
                )
            buffer = Buffer(address, size)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return buffer

    def give_back(self, buffer: Buffer, arrival: Arrival | None = None) -> None:
        if arrival is not None:
            arrival.wait()  # never used: the next owner must not be written into
        self.used_bytes -= buffer.size
        self._free.setdefault(buffer.size, []).append(buffer)

    def trim(self) -> None:
        """Free everything that is kept for later."""
        kept, self._free = self._free, {}
        for buffers in kept.values():
            for buffer in buffers:
                self.cuda.free(buffer.address)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], arrival: Arrival | None = None) -> CudaArray:
        """A new array of any content, to be filled once."""
        return CudaArray(self, self.take(shape_to_bytes(shape, dtype)), shape, dtype, arrival)

    def upload(self, values: NumpyArray) -> CudaArray:
        """A copy of host memory."""
        values = np.ascontiguousarray(values)
        result = self.array(values.shape, values.dtype)
        self.cuda.upload(result.address, values.ctypes.data, values.nbytes)
        # The source is the caller's: it must be read before this returns.
        self.cuda.synchronize()
        return result


class UploadRing:
    """Page-locked host memory for the small tables of a step: one copy moves all of them, and the host does not wait.

    Args:
        cuda: the runtime.
        size: bytes of one step's tables together.
        slots: uploads that may be on their way before the host waits for the first of them.
    """

    def __init__(self, cuda: CudaRuntime, size: int, slots: int = UPLOAD_SLOTS) -> None:
        self._cuda = cuda
        self._slots = slots
        self._events = [cuda.create_event() for _ in range(slots)]
        self._addresses = [cuda.allocate_host(size) for _ in range(slots)]
        self._views = [host_view(address, size) for address in self._addresses]
        for view in self._views:
            # A table may be shorter than its place; what follows it is an index too, and must be a valid one.
            view[:] = 0
        self._next = 0

    def send(self, target: int, tables: Mapping[int, NumpyArray], size: int) -> None:
        """Enqueue copying ``tables``, by their offsets, to ``target``: the first ``size`` bytes."""
        slot, self._next = self._next, (self._next + 1) % self._slots
        self._cuda.wait_event(self._events[slot])
        view = self._views[slot]
        for offset, values in tables.items():
            flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
            view[offset : offset + flat.size] = flat
        self._cuda.upload(target, self._addresses[slot], size)
        self._cuda.record_event(self._events[slot])

    def close(self) -> None:
        self._cuda.synchronize()
        self._views.clear()
        while self._addresses:
            self._cuda.free_host(self._addresses.pop())


def host_view(address: int, size: int) -> NumpyArray:
    """The bytes of page-locked host memory, to read and write."""
    view: NumpyArray = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return view


def shape_to_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    for dim in shape:
        size *= dim
    return size


def round_up(size: int) -> int:
    return max(ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
