"""One profile of one engine, ready to run: context, buffers and captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from freeprompt.contract.manifest import GraphSpec
from freeprompt.contract.session import Array, Feed
from freeprompt.engines.cuda.buffers import FixedBuffers, Tensor
from freeprompt.engines.cuda.captured import Launcher
from freeprompt.engines.cuda.memory import DevicePool
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.engine import Context, Engine
from freeprompt.engines.tensorrt.runtime_cache import RuntimeCache
from freeprompt.engines.tensorrt.timing import LayerTimes

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer


class Scratch:
    """Device memory that all contexts of a backend use in turn: they run one after the other on one stream."""

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._buffer: Buffer | None = None

    def ensure(self, size: int) -> None:
        """Make it at least ``size`` bytes. Its address may change: contexts look before they run."""
        if self._buffer is None or self._buffer.size < size:
            if self._buffer is not None:
                self._pool.give_back(self._buffer)
                self._buffer = None
                self._pool.trim()
            self._buffer = self._pool.take(size)

    @property
    def buffer(self) -> Buffer:
        assert self._buffer is not None
        return self._buffer


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with the profiles that it was built for, and where the kernels compiled for it are kept."""

    engine: Engine
    profiles: tuple[Profile, ...]
    label: str
    runtime_cache: RuntimeCache | None = None

    def keep_kernels(self) -> None:
        """Keep what was compiled up to now."""
        if self.runtime_cache is not None:
            self.runtime_cache.save(self.engine.kernels)


class ExecutionContext:
    """One profile of one engine, ready to run: context, buffers and captured graph.

    Args:
        cuda_graphs: capture into a CUDA graph.
    """

    def __init__(
        self,
        pool: DevicePool,
        scratch: Scratch,
        loaded: LoadedEngine,
        number: int,
        spec: GraphSpec,
        cuda_graphs: bool,
    ) -> None:
        self._cuda = pool.cuda
        self._pool = pool
        self._scratch = scratch
        self._spec = spec
        self._profile = loaded.profiles[number]
        with self._cuda.calls("create an execution context"):
            self._context: Context = loaded.engine.create_context(number, self._cuda.stream_address)
        self._sizes: dict[str, int] = {}
        self._scratch_buffer: Buffer | None = None
        self._buffers: FixedBuffers | None = None
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self.launcher = Launcher(self._cuda, self._enqueue, cuda_graphs)

    def run(self, feeds: Mapping[str, Feed], bound: dict[str, int], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Enqueue one evaluation.

        Args:
            bound: sizes of the dimensions as the engine runs.
            sizes: the same as the feeds have them.
        """
        self._bind(bound)
        assert self._buffers is not None
        self._buffers.load(feeds)
        self.launcher.run()
        shapes = {}
        for spec in self._spec.outputs:
            shape = self._output_shapes[spec.name]
            first = spec.shape[0]
            if first in self._profile.slack:
                shape = (sizes[str(first)], *shape[1:])
            shapes[spec.name] = shape
        return dict(self._buffers.outputs(shapes))

    def profile(self, times: LayerTimes) -> None:
        """Note the time of every layer from the next run on; it must not capture into a CUDA graph."""
        self._context.profile(times)

    def close(self) -> None:
        """Give the memory back; not to be used afterwards."""
        self.launcher.reset()
        if self._buffers is not None:
            self._buffers.close()

    def _bind(self, bound: dict[str, int]) -> None:
        """Give the context its shapes and addresses, if they are not what it has."""
        if bound != self._sizes:
            self.launcher.reset()
            shapes = {
                spec.name: tuple(d if isinstance(d, int) else bound[d] for d in spec.shape)
                for spec in self._spec.inputs
            }
            self._output_shapes = self._context.set_shapes(shapes)
            if self._buffers is not None:
                self._buffers.close()
            inputs = tuple(Tensor(s.name, np.dtype(s.dtype), shapes[s.name]) for s in self._spec.inputs)
            outputs = tuple(Tensor(s.name, np.dtype(s.dtype), self._output_shapes[s.name]) for s in self._spec.outputs)
            self._buffers = FixedBuffers(self._pool, inputs, outputs)
            self._context.set_addresses(self._buffers.addresses)
            self._sizes = bound
        scratch = self._scratch.buffer
        if scratch is not self._scratch_buffer:
            self.launcher.reset()
            self._context.set_memory(int(scratch.handle), scratch.size)
            self._scratch_buffer = scratch

    def _enqueue(self) -> None:
        self._context.enqueue(self._cuda.stream_address)
