"""The CUDA runtime as NVIDIA's cuda-python package gives it: every call checked, errors in this project's terms.

cuda-python returns (error, results...) tuples and raises nothing; two layouts of it are in use,
``cuda.bindings.runtime`` (12.6 and later) and ``cuda.cudart`` before. Addresses and streams are plain integers here, so
that TensorRT and ONNX Runtime take them as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from dataclasses import dataclass
from typing import Any

from freeprompt.contract.errors import BackendError

INSTALL = "install cuda-python (pip install 'cuda-python>=12.6') and an NVIDIA driver"
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")


@dataclass(frozen=True)
class DeviceInfo:
    """One GPU. ``capability`` is the compute capability, "9.0"; versions are CUDA's, "13.0"."""

    index: int
    name: str
    capability: str
    memory_bytes: int
    driver: str
    runtime: str


def import_cudart() -> Any:
    """The module with the runtime's functions.

    Raises:
        BackendError: cuda-python is not installed, or cannot find CUDA's libraries.
    """
    problem: Exception | None = None
    for name in _MODULES:
        try:
            with warnings.catch_warnings():
                # The old module of a newer package warns that it moved; the new one was tried first.
                warnings.simplefilter("ignore", FutureWarning)
                return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # noqa: PERF203 - two names, once
            problem = problem or error
    raise BackendError(f"cuda-python cannot be used ({problem}); {INSTALL}") from problem


class CudaRuntime:
    """The runtime on one device, with the one stream that everything is enqueued on (but copies: ``cuda_spill``).

    One stream makes buffers safe to use again as soon as the host has let go of them: whatever still reads them was
    enqueued earlier.

    Args:
        cudart: the module; None imports it.
        device: number of the GPU.

    Raises:
        BackendError: no driver, no such device, or CUDA failed.
    """

    def __init__(self, cudart: Any = None, device: int = 0) -> None:
        self._cudart = import_cudart() if cudart is None else cudart
        cudart = self._cudart
        self.device = device
        count = self._check(cudart.cudaGetDeviceCount(), "find a GPU")
        if not 0 <= device < count:
            raise BackendError(f"there is no GPU {device}; CUDA sees {count}")
        self._check(cudart.cudaSetDevice(device), f"use GPU {device}")
        flags = cudart.cudaStreamNonBlocking
        # Kept: the integer is valid only while something holds the object in some versions of cuda-python.
        self._stream = self._check(cudart.cudaStreamCreateWithFlags(flags), "create a stream")
        self.stream = int(self._stream)

    def info(self) -> DeviceInfo:
        """What the device is."""
        cudart, device = self._cudart, self.device
        attribute = cudart.cudaDeviceAttr
        major = self._check(
            cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device),
            "read the compute capability",
        )
        minor = self._check(
            cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device),
            "read the compute capability",
        )
        properties = self._check(cudart.cudaGetDeviceProperties(device), "read the GPU's properties")
        name = properties.name
        driver = self._check(cudart.cudaDriverGetVersion(), "read the driver's version")
        runtime = self._check(cudart.cudaRuntimeGetVersion(), "read CUDA's version")
        return DeviceInfo(
            device,
            name.decode() if isinstance(name, bytes) else str(name),
            f"{major}.{minor}",
            self.memory()[1],
            _version(driver),
            _version(runtime),
        )

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""
        free, total = self._check(self._cudart.cudaMemGetInfo(), "read the free memory")
        return int(free), int(total)

    def allocate(self, size: int) -> int | None:
        """Address of ``size`` bytes of device memory, or None if there are not that many."""
        cudart = self._cudart
        error, address = cudart.cudaMalloc(size)
        if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
            cudart.cudaGetLastError()  # not sticky, but it would be reported by the next check
            return None
        return int(self._check((error, address), f"allocate {size} bytes"))

    def free(self, address: int) -> None:
        """Give device memory back; waits for the device."""
        self._check(self._cudart.cudaFree(address), "free device memory")

    def allocate_host(self, size: int) -> int:
        """Address of page-locked host memory, which the device copies from without stopping the host."""
        what = f"lock {size} bytes of host memory"
        return int(self._check(self._cudart.cudaMallocHost(size), what))

    def free_host(self, address: int) -> None:
        self._check(self._cudart.cudaFreeHost(address), "free locked host memory")

    def create_stream(self) -> Any:
        """A further stream, for copies beside the work of the main one. What is on two streams is ordered by
        ``wait_on_device`` alone; the methods that take a ``stream`` mean the main one where none is given."""
        cudart = self._cudart
        return self._check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "create a stream")

    def clear(self, address: int, size: int) -> None:
        """Enqueue filling with zeros."""
        cudart = self._cudart
        self._check(cudart.cudaMemsetAsync(address, 0, size, self._stream), "clear device memory")

    def upload(self, target: int, source: int, size: int, stream: Any = None) -> None:
        """Enqueue a copy from host memory; the source may be changed when the copy's event has passed."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target, source, size, kind, stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy within the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target, source, size, kind)

    def download(self, target: int, source: int, size: int) -> None:
        """Copy to host memory and wait for it."""
        self.download_later(target, source, size)
        self.synchronize()

    def download_later(self, target: int, source: int, size: int, stream: Any = None) -> None:
        """Enqueue a copy to page-locked host memory; it is there when the copy's event has passed."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target, source, size, kind, stream)

    def synchronize(self, stream: Any = None) -> None:
        """Wait until everything enqueued is done. An error of an earlier kernel surfaces here."""
        result = self._cudart.cudaStreamSynchronize(self._stream if stream is None else stream)
        self._check(result, "finish what was enqueued")

    def create_event(self) -> Any:
        cudart = self._cudart
        return self._check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming), "create an event")

    def record_event(self, event: Any, stream: Any = None) -> None:
        result = self._cudart.cudaEventRecord(event, self._stream if stream is None else stream)
        self._check(result, "record an event")

    def wait_on_device(self, event: Any, stream: Any = None) -> None:
        """Let what is enqueued from now on wait for the event as it was last recorded; the host does not wait. The
        event may be recorded anew at once."""
        result = self._cudart.cudaStreamWaitEvent(self._stream if stream is None else stream, event, 0)
        self._check(result, "wait for an event on the device")

    def wait_event(self, event: Any) -> None:
        """Wait on the host until the event has passed; at once if it was never recorded."""
        self._check(self._cudart.cudaEventSynchronize(event), "wait for an event")

    def begin_capture(self) -> None:
        """From here on the stream captures instead of running. Calls from other threads do not disturb it."""
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(cudart.cudaStreamBeginCapture(self._stream, mode), "begin a capture")

    def end_capture(self) -> Any:
        """What was captured, ready to be launched."""
        cudart = self._cudart
        graph = self._check(cudart.cudaStreamEndCapture(self._stream), "end a capture")
        try:
            return self._check(cudart.cudaGraphInstantiate(graph, 0), "instantiate a graph")
        finally:
            cudart.cudaGraphDestroy(graph)

    def abort_capture(self) -> None:
        """Leave capture mode whatever state it is in, so that the stream can be used as before."""
        cudart = self._cudart
        with contextlib.suppress(Exception):
            error, graph = cudart.cudaStreamEndCapture(self._stream)
            if error == cudart.cudaError_t.cudaSuccess:
                cudart.cudaGraphDestroy(graph)
        cudart.cudaGetLastError()

    def launch(self, graph: Any) -> None:
        self._check(self._cudart.cudaGraphLaunch(graph, self._stream), "launch a graph")

    def destroy_graph(self, graph: Any) -> None:
        self._check(self._cudart.cudaGraphExecDestroy(graph), "destroy a graph")

    def _copy(self, target: int, source: int, size: int, kind: Any, stream: Any = None) -> None:
        cudart = self._cudart
        result = cudart.cudaMemcpyAsync(target, source, size, kind, self._stream if stream is None else stream)
        self._check(result, f"copy {size} bytes")

    def _check(self, result: Any, action: str) -> Any:
        """The values of a call's result: nothing, one, or a tuple."""
        cudart = self._cudart
        error = result[0]
        if error != cudart.cudaError_t.cudaSuccess:
            text = cudart.cudaGetErrorString(error)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise BackendError(f"CUDA could not {action}: {reason} ({error})")
        values = result[1:]
        return values[0] if len(values) == 1 else values


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
