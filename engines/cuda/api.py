"""What is used of cuda.core and of cuda.bindings.driver, as types: a test holds them against the real packages.

cuda.core brings stubs, but its wheels keep them in one folder for each major version of CUDA, where no type checker
finds them. Parameters have the library's names.
"""

from __future__ import annotations

from typing import Any, Protocol, SupportsInt


class Buffer(Protocol):
    """A piece of memory, given back with the last reference to it; or a view of one."""

    @property
    def handle(self) -> SupportsInt: ...
    @property
    def size(self) -> int: ...
    @staticmethod
    def from_handle(ptr: int, size: int, mr: None = None, owner: object | None = None) -> Buffer: ...
    def copy_to(self, dst: Buffer | None = None, *, stream: Stream) -> Buffer: ...
    def fill(self, value: int, *, stream: Stream) -> None: ...
    def close(self, stream: Stream | None = None) -> None: ...


class Event(Protocol):
    def sync(self) -> None: ...


class Graph(Protocol):
    def launch(self, stream: Stream) -> None: ...
    def close(self) -> None: ...


class GraphBuilder(Protocol):
    def begin_building(self, mode: str = "relaxed") -> GraphBuilder: ...
    def end_building(self) -> GraphBuilder: ...
    def complete(self) -> Graph: ...
    def close(self) -> None: ...


class Stream(Protocol):
    @property
    def handle(self) -> SupportsInt: ...
    def sync(self) -> None: ...
    def record(self, event: Event | None = None) -> Event: ...
    def wait(self, event_or_stream: Event) -> None: ...
    def create_graph_builder(self) -> GraphBuilder: ...


class MemoryResource(Protocol):
    def allocate(self, size: int, *, stream: Stream) -> Buffer: ...


class DeviceMemoryResource(MemoryResource, Protocol):
    """What a device with memory pools has; one without has a ``MemoryResource`` that waits."""

    @property
    def handle(self) -> object: ...


class LegacyPinnedMemoryResource(Protocol):
    def allocate(self, size: int) -> Buffer: ...


class DeviceProperties(Protocol):
    @property
    def memory_pools_supported(self) -> bool: ...


class Device(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    @property
    def properties(self) -> DeviceProperties: ...
    @property
    def memory_resource(self) -> MemoryResource: ...
    def set_current(self) -> object: ...
    def create_stream(self) -> Stream: ...
    def create_event(self) -> Event: ...


class Core(Protocol):
    """The module cuda.core."""

    def Device(self, device_id: int) -> Device: ...  # noqa: N802 - the library's name
    def LegacyPinnedMemoryResource(self) -> LegacyPinnedMemoryResource: ...  # noqa: N802
    @property
    def Buffer(self) -> type[Buffer]: ...  # noqa: N802


class Driver(Protocol):
    """The module cuda.bindings.driver: functions return a tuple that begins with an error, 0 for none."""

    @property
    def CUDA_VERSION(self) -> int: ...  # noqa: N802
    def cuDeviceGetCount(self) -> tuple[Any, int]: ...  # noqa: N802
    def cuDriverGetVersion(self) -> tuple[Any, int]: ...  # noqa: N802
    def cuMemGetInfo(self) -> tuple[Any, int, int]: ...  # noqa: N802
    def cuMemPoolTrimTo(self, pool: object, minBytesToKeep: int) -> tuple[Any]: ...  # noqa: N802, N803
