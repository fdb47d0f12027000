"""What only TensorRT-RTX has: targets to build for, a word on an engine before it is loaded, kernels compiled then."""

from __future__ import annotations

import re
from typing import Any

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines.tensorrt.library import Library, version_numbers


def compute_capabilities(library: Library) -> tuple[str, ...]:
    """What an engine can be built for, as "8.6"; none where it is the GPU at hand."""
    if not library.flavour.portable:
        return ()
    trt = library.trt
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


def check_validity(library: Library, runtime: Any, data: Any) -> None:
    """Ask whether an engine can run here, before it is loaded, since the answer says why not. Raises BackendError."""
    trt = library.trt
    validity, diagnostics = runtime.get_engine_validity(data)
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

    def __init__(self, trt: Any, engine: Any, kernels: bytes) -> None:
        jit_config = engine.create_runtime_config()
        jit_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Not later, in the background: a captured CUDA graph would hold the slower kernels for ever.
        jit_config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        compiled = jit_config.create_runtime_cache()
        if kernels:
            compiled.deserialize(kernels)
        jit_config.set_runtime_cache(compiled)
        self.config, self._compiled = jit_config, compiled

    @property
    def kernels(self) -> bytes:
        """What was compiled so far."""
        compiled = self._compiled
        memory = compiled.serialize()
        return b"" if memory is None else bytes(memory)
