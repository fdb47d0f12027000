"""Fixed device buffers of one graph at one set of shapes: what goes in is copied there, what comes out is copied away.

A CUDA graph replays with the addresses it was captured with, and an array of this project never changes once it was
returned. Copying within the device reconciles the two: latents are 64 KB, a recorded row of Stable Diffusion 1.5 is
10 MB, at terabytes a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import Feed, NumpyArray
from freeprompt.engines.cuda.memory import (
    CudaArray,
    DevicePool,
    UploadRing,
    round_up,
    shape_to_bytes,
)

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer

# Larger and rarer than tables: one may be on its way while the next is written.
STAGING_SLOTS = 2


@dataclass(frozen=True)
class Tensor:
    """An input or output with the shape it has in the engine."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return shape_to_bytes(self.shape, self.dtype)

    @property
    def is_table(self) -> bool:
        """Tables of indices and coefficients come from the host at each step; what has more axes is on the device."""
        return len(self.shape) <= 2


class FixedBuffers:
    """Buffers for the inputs and outputs of one graph at one set of shapes.

    A feed may be shorter than its buffer along the first axis: the rest keeps what it holds (zeros at first), and
    nothing refers to it.
    """

    def __init__(self, pool: DevicePool, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self._pool = pool
        self._inputs = {tensor.name: tensor for tensor in inputs}
        self._outputs = outputs
        self._offsets: dict[str, int] = {}
        self._loaded: dict[str, weakref.ref[CudaArray]] = {}
        size = 0
        for tensor in inputs:
            if tensor.is_table:
                self._offsets[tensor.name] = size
                size += round_up(tensor.nbytes)
        self._ring: UploadRing | None = UploadRing(pool.cuda, size) if size else None
        # For arrays of the host that are no tables, by name; made when the first one comes.
        self._staging: dict[str, UploadRing] = {}
        self._tables = pool.take(size) if size else None
        self._buffers = [] if self._tables is None else [self._tables]
        self._places: dict[str, Buffer] = {}
        for tensor in (*inputs, *outputs):
            if self._tables is not None and tensor.name in self._offsets:
                place = pool.cuda.part(self._tables, tensor.nbytes, self._offsets[tensor.name])
            else:
                self._buffers.append(pool.take(tensor.nbytes))
                place = pool.cuda.part(self._buffers[-1], tensor.nbytes)
            self._places[tensor.name] = place
        self.addresses = {name: int(place.handle) for name, place in self._places.items()}
        with pool.cuda.calls("clear device memory"):
            for buffer in self._buffers:
                buffer.fill(0, stream=pool.cuda.stream)

    def load(self, feeds: Mapping[str, Feed]) -> None:
        """Enqueue the copies of all inputs; the host does not wait, wherever a feed lies.

        Raises:
            BackendError: an array is another backend's.
        """
        tables: dict[int, NumpyArray] = {}
        placed: list[tuple[Tensor, CudaArray]] = []
        for name, feed in feeds.items():
            tensor = self._inputs[name]
            if isinstance(feed, CudaArray):
                if not feed.belongs_to(self._pool):
                    raise BackendError(f"{name} is an array of another backend's device memory")
                placed.append((tensor, feed))
                continue
            values = feed if isinstance(feed, np.ndarray) else feed.numpy()
            if tensor.is_table:
                tables[self._offsets[name]] = values
            else:
                self._stage(tensor, values)
        if tables:
            assert self._ring is not None and self._tables is not None
            self._ring.send(self._tables, tables)
        for tensor, array in placed:
            last = self._loaded.get(tensor.name)
            # An array never changes, so the same one needs no second copy; but tables are overwritten by each upload.
            if not tensor.is_table and last is not None and last() is array:
                continue
            array.settle()
            self._copy(array.content, self._places[tensor.name])
            self._loaded[tensor.name] = weakref.ref(array)

    def outputs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, CudaArray]:
        """Copies of the outputs, cut along the first axis to ``shapes``."""
        result = {}
        for tensor in self._outputs:
            array = self._pool.array(shapes[tensor.name], tensor.dtype)
            self._copy(self._places[tensor.name], array.content)
            result[tensor.name] = array
        return result

    def _stage(self, tensor: Tensor, values: NumpyArray) -> None:
        """An array of the host that is no table: through page-locked memory, since the caller may change his."""
        ring = self._staging.get(tensor.name)
        if ring is None:
            ring = self._staging[tensor.name] = UploadRing(self._pool.cuda, tensor.nbytes, STAGING_SLOTS)
        ring.send(self._pool.cuda.part(self._places[tensor.name], values.nbytes), {0: values})
        self._loaded.pop(tensor.name, None)

    def _copy(self, source: Buffer, target: Buffer) -> None:
        """Enqueue a copy of as much as both hold: an array may be shorter than its place."""
        cuda, size = self._pool.cuda, min(source.size, target.size)
        with cuda.calls(f"copy {size} bytes"):
            cuda.part(source, size).copy_to(cuda.part(target, size), stream=cuda.stream)

    def close(self) -> None:
        """Give all memory back."""
        for ring in (self._ring, *self._staging.values()):
            if ring is not None:
                ring.close()
        self._staging.clear()
        while self._buffers:
            self._pool.give_back(self._buffers.pop())
