"""What is used of TensorRT-RTX and is not in TensorRT, as types; see ``api``."""

from __future__ import annotations

from typing import Protocol

from freeprompt.engines.tensorrt.api import IExecutionContext, IHostMemory, _Member


class ComputeCapability(Protocol):
    """Its enumerators are read off it: SM86 and so on."""

    @property
    def __members__(self) -> dict[str, _Member]: ...


class DynamicShapesKernelSpecializationStrategy(Protocol):
    @property
    def EAGER(self) -> _Member: ...


class EngineValidity(Protocol):
    @property
    def INVALID(self) -> _Member: ...


class EngineInvalidityDiagnostics(Protocol):
    """Bits."""

    @property
    def VERSION_MISMATCH(self) -> _Member: ...
    @property
    def UNSUPPORTED_CC(self) -> _Member: ...
    @property
    def OLD_CUDA_DRIVER(self) -> _Member: ...
    @property
    def OLD_CUDA_RUNTIME(self) -> _Member: ...
    @property
    def INSUFFICIENT_GPU_MEMORY(self) -> _Member: ...
    @property
    def MALFORMED_ENGINE(self) -> _Member: ...


class IRuntimeCache(Protocol):
    """Kernels that were compiled for an engine on this GPU."""

    def serialize(self) -> IHostMemory | None: ...
    def deserialize(self, blob: bytes, /) -> bool: ...


class IRuntimeConfig(Protocol):
    dynamic_shapes_kernel_specialization_strategy: _Member

    def set_execution_context_allocation_strategy(self, strategy: _Member, /) -> None: ...
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache, /) -> bool: ...


class ICudaEngine(Protocol):
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, runtime_config: IRuntimeConfig, /) -> IExecutionContext | None: ...


class Runtime(Protocol):
    def get_engine_validity(self, buffer: bytes, /) -> tuple[_Member, int]: ...


class TensorRTRTX(Protocol):
    """The module."""

    @property
    def ComputeCapability(self) -> ComputeCapability: ...
    @property
    def DynamicShapesKernelSpecializationStrategy(self) -> DynamicShapesKernelSpecializationStrategy: ...
    @property
    def EngineValidity(self) -> EngineValidity: ...
    @property
    def EngineInvalidityDiagnostics(self) -> EngineInvalidityDiagnostics: ...
