"""What is used of TensorRT's Python API, as types: ``tensorrt`` from 10.3 on, and ``tensorrt_rtx``, which has the same.

A test holds every name, parameter and enumerator against the libraries' real bindings. What TensorRT-RTX has beside the
common API is in ``rtx_api``. Parameters that are given by position have a slash behind them, and the library's names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Protocol, SupportsInt

_Shape = tuple[int, ...]


class _Member(Protocol):
    """An enumerator."""

    @property
    def name(self) -> str: ...
    def __int__(self) -> int: ...


class BuilderFlag(Protocol):
    @property
    def TF32(self) -> _Member: ...


class ExecutionContextAllocationStrategy(Protocol):
    @property
    def USER_MANAGED(self) -> _Member: ...


class LayerInformationFormat(Protocol):
    @property
    def JSON(self) -> _Member: ...


class MemoryPoolType(Protocol):
    @property
    def WORKSPACE(self) -> _Member: ...


class ProfilingVerbosity(Protocol):
    @property
    def DETAILED(self) -> _Member: ...


class TensorIOMode(Protocol):
    @property
    def INPUT(self) -> _Member: ...


class ILogger(Protocol):
    """To be derived from, like the two that follow."""

    INTERNAL_ERROR: ClassVar[_Member]
    ERROR: ClassVar[_Member]
    WARNING: ClassVar[_Member]

    def log(self, severity: _Member, msg: str, /) -> None: ...


class IProfiler(Protocol):
    def report_layer_time(self, layer_name: str, ms: float) -> None: ...


class IProgressMonitor(Protocol):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int, /) -> None: ...
    def phase_finish(self, phase_name: str, /) -> None: ...
    def step_complete(self, phase_name: str, step: int, /) -> bool: ...


class ITensor(Protocol):
    shape: _Shape

    @property
    def name(self) -> str: ...


class INetworkDefinition(Protocol):
    @property
    def num_inputs(self) -> int: ...
    def get_input(self, index: int, /) -> ITensor: ...


class IBuilderConfig(Protocol):
    def clear_flag(self, flag: _Member, /) -> None: ...


class IHostMemory(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class EngineInspector(Protocol):
    def get_engine_information(self, format: _Member, /) -> str: ...


class IExecutionContext(Protocol):
    profiler: IProfiler

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: _Shape, /) -> bool: ...
    def get_tensor_shape(self, name: str, /) -> Iterable[int]: ...
    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...
    def set_device_memory(self, memory: int, size: int, /) -> None: ...
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


class ICudaEngine(Protocol):
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    @property
    def device_memory_size_v2(self) -> SupportsInt: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> _Member: ...
    def get_tensor_dtype(self, name: str, /) -> _Member: ...
    def create_execution_context(self, strategy: _Member, /) -> IExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> ICudaEngine | None: ...


class TensorRT(Protocol):
    """The module, as engines are run with it. Of a class that is called it has a function."""

    def Runtime(self, logger: ILogger, /) -> Runtime: ...
    @property
    def __version__(self) -> str: ...
    @property
    def ExecutionContextAllocationStrategy(self) -> ExecutionContextAllocationStrategy: ...
    @property
    def LayerInformationFormat(self) -> LayerInformationFormat: ...
    @property
    def TensorIOMode(self) -> TensorIOMode: ...
    @property
    def ILogger(self) -> type[ILogger]: ...
    @property
    def IProfiler(self) -> type[IProfiler]: ...
    @property
    def IProgressMonitor(self) -> type[IProgressMonitor]: ...


class BuildingTensorRT(Protocol):
    """The module, as engines are built with it by way of polygraphy."""

    @property
    def BuilderFlag(self) -> BuilderFlag: ...
    @property
    def MemoryPoolType(self) -> MemoryPoolType: ...
    @property
    def ProfilingVerbosity(self) -> ProfilingVerbosity: ...
