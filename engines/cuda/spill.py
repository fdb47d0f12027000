"""Device arrays that wait in page-locked host memory, and come back while the device works on something else.

Copies run on a stream of their own. Three rules order it with the main one, all of them on the device, so that the host
never waits:

- a copy to the host starts after everything that was enqueued before it (it reads what that wrote), and the memory it
  reads is held until the main stream has been told to wait for the copy: the pool would give it out again otherwise;
- a copy back starts after everything that was enqueued before it: its target may have had readers until then;
- whoever uses what comes back makes the main stream wait first (``CudaArray.settle``).

All traffic of page-locked buffers is on the one copy stream, so that they may be used again as soon as nobody holds
them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from freeprompt.contract.session import Array, NumpyArray
from freeprompt.engines.cuda.memory import Arrival, CudaArray, DevicePool, ShapedMemory, host_view
from freeprompt.engines.cuda.runtime import CudaRuntime

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer, Event, Stream


class HostPool:
    """Page-locked host memory, kept by size when it comes back: locking takes milliseconds."""

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda = cuda
        self._free: dict[int, list[Buffer]] = {}
        self.used_bytes = 0

    def take(self, size: int) -> Buffer:
        """``size`` bytes. Raises BackendError if they cannot be locked."""
        kept = self._free.get(size)
        buffer = kept.pop() if kept else self._cuda.allocate_host(size)
        self.used_bytes += size
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        self.used_bytes -= buffer.size
        self._free.setdefault(buffer.size, []).append(buffer)


class SpilledArray(ShapedMemory):
    """A tensor in page-locked host memory. Sessions take it like any other; ``Spill.fetch`` brings it back sooner."""

    def __init__(self, owner: Spill, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self._owner = owner
        self.content = owner.host.take(self.nbytes)
        finalizer = weakref.finalize(self, owner.host.give_back, self.content)
        finalizer.atexit = False

    def numpy(self) -> NumpyArray:
        self._owner.finish()  # it may still be on its way here
        result = host_view(self.content).view(self._dtype).reshape(self._shape).copy()
        result.setflags(write=False)
        return result


class Spill:
    """Moves arrays of one pool to page-locked host memory and back."""

    def __init__(self, pool: DevicePool) -> None:
        self.host = HostPool(pool.cuda)
        self._pool = pool
        self._cuda = pool.cuda
        self._copies: Stream | None = None
        self._events: list[Event] = []  # free ones
        # What is being copied to the host, and the event after which it has been.
        self._leaving: tuple[tuple[CudaArray, ...], Event] | None = None

    def spill(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays in page-locked host memory; those that are there already stay."""
        leaving: list[tuple[CudaArray, SpilledArray]] = []
        result: dict[str, Array] = {}
        for name, array in arrays.items():
            if isinstance(array, SpilledArray):
                result[name] = array
                continue
            spilled = result[name] = SpilledArray(self, array.shape, array.dtype)
            if isinstance(array, CudaArray):
                array.settle()
                leaving.append((array, spilled))
            else:
                self.finish()  # a copy from this buffer, by its last owner, may be on its way
                values = np.ascontiguousarray(array.numpy())
                host_view(spilled.content)[:] = values.view(np.uint8).reshape(-1)
        if leaving:
            self._release()
            self._leaving = tuple(device for device, _ in leaving), self._copy(leaving)
        return result

    def fetch(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays in device memory, on their way there; those that are there stay."""
        result = dict(arrays)
        spilled = {name: array for name, array in arrays.items() if isinstance(array, SpilledArray)}
        for name, array in arrays.items():
            if not isinstance(array, (SpilledArray, CudaArray)):
                result[name] = self._pool.upload(array.numpy())
        if spilled:
            self._release()
            # All memory first: where it does not suffice, nothing must be on its way into what is given back. And what
            # is new is there when the main stream gets to it, which the copies then wait for.
            event = self._event()
            arrival = Arrival(lambda: self._arrived(event))
            coming = {name: self._pool.array(a.shape, a.dtype, arrival) for name, a in spilled.items()}
            self._copy([(host, coming[name]) for name, host in spilled.items()], event)
            result.update(coming)
        return result

    def finish(self) -> None:
        """Wait on the host until no copy is on its way."""
        if self._copies is not None:
            with self._cuda.calls("finish the copies"):
                self._copies.sync()

    def _event(self) -> Event:
        return self._events.pop() if self._events else self._cuda.create_event()

    def _copy(
        self, pairs: Sequence[tuple[CudaArray | SpilledArray, CudaArray | SpilledArray]], done: Event | None = None
    ) -> Event:
        """Copy one to the other, after everything that is enqueued on the main stream so far.

        Returns:
            the event after which all are there.
        """
        if self._copies is None:
            self._copies = self._cuda.create_stream()
            self._cuda.finish_before(self, self._copies)
        before, done = self._event(), done or self._event()
        with self._cuda.calls(f"copy {len(pairs)} arrays between device and host"):
            self._cuda.stream.record(before)
            self._copies.wait(before)
            for source, target in pairs:
                source.content.copy_to(target.content, stream=self._copies)
            self._copies.record(done)
        self._events.append(before)
        return done

    def _release(self) -> None:
        """Let go of what was copied to the host before."""
        if self._leaving is not None:
            self._arrived(self._leaving[1])
            self._leaving = None

    def _arrived(self, event: Event) -> None:
        """Let what is enqueued from now on wait for an event on the device; then it may be recorded anew at once."""
        with self._cuda.calls("wait for a copy"):
            self._cuda.stream.wait(event)
        self._events.append(event)
