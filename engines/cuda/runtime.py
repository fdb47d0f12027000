"""CUDA on one device, as NVIDIA's cuda.core gives it: its objects are used as they are, its errors are translated."""

from __future__ import annotations

import contextlib
import importlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from freeprompt.contract.errors import BackendError

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Buffer, Core, Device, DeviceMemoryResource, Driver, Event, Stream

INSTALL = (
    "install cuda-core and cuda-bindings for the driver's version of CUDA (pip install 'cuda-core[cu12]' or "
    "'cuda-core[cu13]'; the extras gpu, tensorrt-cu12 and tensorrt-cu13 have them), and an NVIDIA driver"
)
# Of cuda.core.
OLDEST_CUDA = 12


@dataclass(frozen=True)
class DeviceInfo:
    """One GPU.

    Attributes:
        capability: the compute capability, "9.0".
        driver: the newest CUDA that the driver knows, "13.0".
        runtime: the CUDA that cuda-bindings are of.
    """

    index: int
    name: str
    capability: str
    memory_bytes: int
    driver: str
    runtime: str


@dataclass(frozen=True)
class Library:
    """cuda.core, and the driver's own functions for what it does not tell."""

    core: Core
    driver: Driver


def import_cuda() -> Library:
    """The modules.

    Raises:
        BackendError: they are not installed, or do not fit each other.
    """
    try:
        return Library(importlib.import_module("cuda.core"), importlib.import_module("cuda.bindings.driver"))
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"cuda.core cannot be used ({error}); {INSTALL}") from error


class CudaRuntime:
    """One device, with the one stream that everything is enqueued on (but copies: ``spill``).

    One stream makes buffers safe to use again as soon as the host has let go of them: whatever still reads them was
    enqueued earlier.

    Args:
        library: None imports it.
        device: number of the GPU.

    Attributes:
        stream: the main stream; ``stream_address`` is how other libraries take it.

    Raises:
        BackendError: cuda.core or the driver is missing, there is no such device, or CUDA failed.
    """

    def __init__(self, library: Library | None = None, device: int = 0) -> None:
        library = import_cuda() if library is None else library
        self._core, self._driver = library.core, library.driver
        self._threads = threading.local()
        self.device = device
        with _translated("find a GPU"):
            (driver,) = _result(self._driver.cuDriverGetVersion())
            _check_versions(driver, self._driver.CUDA_VERSION)
            self._core.Device(0)  # initialises the driver
            (count,) = _result(self._driver.cuDeviceGetCount())
        self._versions = _version(driver), _version(self._driver.CUDA_VERSION)
        if not 0 <= device < count:
            raise BackendError(f"there is no GPU {device}; CUDA sees {count}")
        with self.calls(f"use GPU {device}"):
            # Of a device without memory pools one that waits: buffers are kept here, so that it is asked rarely.
            self._memory = self._here.memory_resource
            self._has_pools = self._here.properties.memory_pools_supported
            self._locked = self._core.LegacyPinnedMemoryResource()
            self.stream = self._here.create_stream()
        self.stream_address = int(self.stream.handle)

    @contextlib.contextmanager
    def calls(self, action: str) -> Iterator[None]:
        """The context in which cuda.core is used: this device is the thread's, and its errors become BackendErrors that
        name the action."""
        with _translated(action):
            if not getattr(self._threads, "current", False):
                self._here.set_current()
                self._threads.current = True
            yield

    def info(self) -> DeviceInfo:
        """What the device is."""
        with self.calls("read what the GPU is"):
            name, (major, minor) = self._here.name, self._here.compute_capability
        return DeviceInfo(self.device, name, f"{major}.{minor}", self.memory()[1], *self._versions)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""
        with self.calls("read the free memory"):
            free, total = _result(self._driver.cuMemGetInfo())
        return int(free), int(total)

    def allocate(self, size: int) -> Buffer | None:
        """Device memory, or None if there is not so much. It is there when the main stream gets to this point."""
        with self.calls(f"allocate {size} bytes"):
            try:
                return self._memory.allocate(size, stream=self.stream)
            except Exception as error:
                if "CUDA_ERROR_OUT_OF_MEMORY" not in str(error):
                    raise
                return None

    def allocate_host(self, size: int) -> Buffer:
        """Page-locked host memory, which the device copies from without stopping the host."""
        with self.calls(f"lock {size} bytes of host memory"):
            return self._locked.allocate(size)

    def view(self, address: int, size: int, owner: object) -> Buffer:
        """Bytes of memory, on device or host, that ``owner`` keeps."""
        return self._core.Buffer.from_handle(address, size, owner=owner)

    def part(self, buffer: Buffer, size: int, offset: int = 0) -> Buffer:
        """A view of ``size`` bytes of a buffer."""
        return buffer if size == buffer.size else self.view(int(buffer.handle) + offset, size, buffer)

    def create_stream(self) -> Stream:
        """A further stream, for copies beside the work of the main one."""
        with self.calls("create a stream"):
            return self._here.create_stream()

    def create_event(self) -> Event:
        with self.calls("create an event"):
            return self._here.create_event()

    def synchronize(self) -> None:
        """Wait until everything enqueued on the main stream is done. An error of an earlier kernel surfaces here."""
        with self.calls("finish what was enqueued"):
            self.stream.sync()

    def finish_before(self, owner: object, stream: Stream | None = None) -> weakref.finalize[[Stream], Any]:
        """Wait for a stream (None: the main one) when ``owner`` is dropped: what is enqueued may use what it holds, and
        page-locked memory is freed at once."""
        finalizer = weakref.finalize(owner, self._finish, self.stream if stream is None else stream)
        finalizer.atexit = False
        return finalizer

    def _finish(self, stream: Stream) -> None:
        with contextlib.suppress(BackendError), self.calls("finish what was enqueued"):
            stream.sync()

    def release(self) -> None:
        """Give the driver back what was freed; a memory pool keeps it otherwise, and other libraries find none."""
        self.synchronize()
        if self._has_pools:
            with self.calls("trim the memory pool"):
                _result(self._driver.cuMemPoolTrimTo(cast("DeviceMemoryResource", self._memory).handle, 0))

    @property
    def _here(self) -> Device:
        """The device; cuda.core has an object of it for each thread."""
        return self._core.Device(self.device)


def _check_versions(driver: int, bindings: int) -> None:
    """cuda.core would go on with a warning, and fail where the driver lacks something."""
    major = driver // 1000
    if major < bindings // 1000:
        other = f"cuda-bindings of that (pip install 'cuda-bindings=={major}.*') or " if major >= OLDEST_CUDA else ""
        raise BackendError(
            f"the GPU's driver knows CUDA {_version(driver)}, and cuda-bindings are of CUDA {_version(bindings)}; "
            f"install {other}a newer driver"
        )


def _result(returned: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a function of the driver returned but for the error."""
    error, *values = returned
    if int(error):
        raise RuntimeError(str(error))
    return tuple(values)


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Its own classes are in none of its public modules; RuntimeErrors are of misuse, or there is no driver.
        module = type(error).__module__
        if not isinstance(error, RuntimeError) and not module.startswith("cuda."):
            raise
        advice = f"; {INSTALL}" if module.startswith("cuda.pathfinder") else ""
        raise BackendError(f"CUDA could not {action}: {error}{advice}") from error


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
