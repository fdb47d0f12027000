"""Device memory for a backend: arrays that never change, from buffers that are used again once nobody holds them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import NumpyArray
from freeprompt.engines.cuda.runtime import CudaRuntime

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer

# What CUDA aligns to; smaller requests share one size, so that they can be given out again.
ALIGNMENT = 256
# Uploads of a step that may be on their way before the host waits for the first of them.
UPLOAD_SLOTS = 4


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

    Attributes:
        content: its bytes, without those that the buffer has more.
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
        self._arrival = arrival
        self.content = pool.cuda.part(buffer, self.nbytes)
        finalizer = weakref.finalize(self, pool.give_back, buffer, arrival)
        # At exit the driver frees everything itself, and may be gone before this would run.
        finalizer.atexit = False

    @property
    def address(self) -> int:
        return int(self.content.handle)

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
        cuda = self._pool.cuda
        with cuda.calls(f"copy {result.nbytes} bytes from the device"):
            self.content.copy_to(cuda.view(result.ctypes.data, result.nbytes, result), stream=cuda.stream)
            cuda.stream.sync()
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
        buffer = kept.pop() if kept else None
        if buffer is None:
            buffer = self.cuda.allocate(size)
            if buffer is None:
                self.trim()
                buffer = self.cuda.allocate(size)
            if buffer is None:
                free, total = self.cuda.memory()
                raise BackendError(
                    f"the GPU has no {size / 1e6:.1f} MB left: {free / 1e6:.0f} of {total / 1e6:.0f} MB are free, "
                    f"this backend holds {self.used_bytes / 1e6:.0f} MB. "
                    "Close other programs on the GPU, or use fewer rows, a smaller size or the memory profile"
                )
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
        with self.cuda.calls("free device memory"):
            for buffers in kept.values():
                for buffer in buffers:
                    buffer.close(self.cuda.stream)
        self.cuda.release()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], arrival: Arrival | None = None) -> CudaArray:
        """A new array of any content, to be filled once."""
        return CudaArray(self, self.take(shape_to_bytes(shape, dtype)), shape, dtype, arrival)

    def upload(self, values: NumpyArray) -> CudaArray:
        """A copy of host memory."""
        values = np.ascontiguousarray(values)
        result = self.array(values.shape, values.dtype)
        source = self.cuda.view(values.ctypes.data, values.nbytes, values)
        with self.cuda.calls(f"copy {values.nbytes} bytes to the device"):
            source.copy_to(result.content, stream=self.cuda.stream)
            # The source is the caller's: it must be read before this returns.
            self.cuda.stream.sync()
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
        self._buffers = [cuda.allocate_host(size) for _ in range(slots)]
        for buffer in self._buffers:
            # A table may be shorter than its place; what follows it is an index too, and must be a valid one.
            host_view(buffer)[:] = 0
        self._next = 0
        self._finalizer = cuda.finish_before(self)

    def send(self, target: Buffer, tables: Mapping[int, NumpyArray]) -> None:
        """Enqueue copying ``tables``, by their offsets, to ``target``, which is written as a whole."""
        slot, self._next = self._next, (self._next + 1) % self._slots
        event, buffer = self._events[slot], self._cuda.part(self._buffers[slot], target.size)
        with self._cuda.calls(f"copy {target.size} bytes to the device"):
            event.sync()
            view = host_view(buffer)
            for offset, values in tables.items():
                flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
                view[offset : offset + flat.size] = flat
            buffer.copy_to(target, stream=self._cuda.stream)
            self._cuda.stream.record(event)

    def close(self) -> None:
        self._finalizer.detach()
        self._cuda.synchronize()
        with self._cuda.calls("free locked host memory"):
            while self._buffers:
                self._buffers.pop().close()


def host_view(buffer: Buffer) -> NumpyArray:
    """The bytes of page-locked host memory, to read and write while the buffer is held."""
    view: NumpyArray = np.ctypeslib.as_array((ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle)))
    return view


def shape_to_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    for dim in shape:
        size *= dim
    return size


def round_up(size: int) -> int:
    return max(ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
