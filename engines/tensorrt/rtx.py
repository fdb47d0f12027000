"""What only TensorRT-RTX has: targets to build for, a word on an engine before it is loaded, kernels compiled then."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines.tensorrt.library import Library, version_numbers

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt import rtx_api
    from freeprompt.engines.tensorrt.api import ICudaEngine, IExecutionContext, Runtime, TensorRT


def compute_capabilities(library: Library) -> tuple[str, ...]:
    """What an engine can be built for, as "8.6"; none where it is the GPU at hand."""
    if not library.flavour.portable:
        return ()
    trt = cast("rtx_api.TensorRTRTX", library.trt)
    names = [re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__]
    return tuple(sorted((f"{name[1]}.{name[2]}" for name in names if name), key=version_numbers))


def text_to_capabilities(library: Library, text: str) -> tuple[str, ...]:
    """The compute capabilities of "sm86,sm120" or "8.6,12.0", each once, in order.

    Raises:
        UsageError: one that this library cannot build for.
    """
    known = compute_capabilities(library)
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", part.strip().lower())
        capability = f"{match[1]}.{match[2]}" if match else ""
        if capability not in known:
            names = ", ".join(f"sm{name.replace('.', '')}" for name in known) or "the GPU of this machine only"
            raise UsageError(f"{library.name} cannot build for {part.strip()!r}; it builds for {names}")
        found.append(capability)
    return tuple(sorted(set(found), key=version_numbers))


def check_validity(library: Library, runtime: Runtime, data: Any) -> None:
    """Ask whether an engine can run here, before it is loaded, since the answer says why not. Raises BackendError."""
    trt = cast("rtx_api.TensorRTRTX", library.trt)
    validity, diagnostics = cast("rtx_api.Runtime", runtime).get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return
    causes = trt.EngineInvalidityDiagnostics
    known = (
        (causes.VERSION_MISMATCH, "it was built by another version; build it again with 'freeprompt build'"),
        (causes.UNSUPPORTED_CC, "it was not built for this GPU; build it with '--for' its compute capability"),
        (causes.OLD_CUDA_DRIVER, "the GPU's driver is too old; install a newer one"),
        (causes.OLD_CUDA_RUNTIME, "the CUDA runtime is too old; install a newer one"),
        (causes.INSUFFICIENT_GPU_MEMORY, "the GPU has too little memory; build a smaller --size or fewer --rows"),
        (causes.MALFORMED_ENGINE, "it is damaged; build it again with 'freeprompt build'"),
    )
    reasons = [reason for cause, reason in known if int(diagnostics) & int(cause)]
    if not reasons:  # the GPU could not be asked, or an error that is not known here
        raise library.messages.failure("load the engine")
    library.messages.errors.clear()
    raise BackendError(f"{library.name} refuses the engine: {'; '.join(reasons)}")


class JustInTime:
    """How the kernels of one engine are compiled on this GPU, and what was compiled.

    Args:
        kernels: those of an earlier time; what does not fit this GPU, driver or library is ignored.
    """

    def __init__(self, trt: TensorRT, engine: ICudaEngine, kernels: bytes) -> None:
        specialization = cast("rtx_api.TensorRTRTX", trt).DynamicShapesKernelSpecializationStrategy
        self._engine = cast("rtx_api.ICudaEngine", engine)
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Not later, in the background: a captured CUDA graph would hold the slower kernels for ever.
        self._config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        self._compiled = self._config.create_runtime_cache()
        if kernels:
            self._compiled.deserialize(kernels)
        self._config.set_runtime_cache(self._compiled)

    def create_context(self) -> IExecutionContext | None:
        """An execution context that uses them; None: the library has said why not."""
        return self._engine.create_execution_context(self._config)

    @property
    def kernels(self) -> bytes:
        """What was compiled so far."""
        memory = self._compiled.serialize()
        return b"" if memory is None else bytes(memory)
