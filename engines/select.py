"""Choosing a backend by name."""

from __future__ import annotations

from dataclasses import dataclass

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, FreePromptError
from freeprompt.contract.graphs import NEEDED_GRAPHS
from freeprompt.contract.session import Backend
from freeprompt.engines.backend_name import BACKENDS, ProviderSpec, parse_backend


@dataclass(frozen=True)
class Candidate:
    """A backend that "auto" considered, and why it cannot be used here (None: it can)."""

    name: str
    problem: str | None


def create_backend(name: str = "auto", threads: int | None = None, bundle: Bundle | None = None) -> Backend:
    """The backend of that name.

    Args:
        name: one of ``BACKENDS``, or "ort:NAME[,option=value,...]" for an execution provider of ONNX Runtime, built in
            or a plug-in (``ProviderSpec``); "cpu" and "cuda" are two of them. "auto" takes TensorRT, then TensorRT-RTX,
            where it is installed and the bundle has engines for this machine, else CUDA where onnxruntime-gpu can use
            it, else the CPU.
        threads: CPU threads within an operator; None: every core.
        bundle: the one that will be opened; without it "auto" cannot know of engines.

    Raises:
        UsageError: unknown or malformed name, or an option that cannot be used.
        BackendError: known, but it cannot be used here; the message says what to install.
    """
    spec = parse_backend(name)
    if name == "auto":
        # Without any, opening the CPU's says what is wrong with it.
        name = next((c.name for c in candidates(bundle) if c.problem is None), "cpu")
    # Imported here: `freeprompt --help` must not pay for it.
    if name in ("tensorrt", "tensorrt-rtx"):
        from freeprompt.engines.tensorrt.backend import TensorRTBackend
        from freeprompt.engines.tensorrt.library import load_library

        return TensorRTBackend(load_library(name))
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(spec or ProviderSpec(name), threads)


def candidates(bundle: Bundle | None) -> list[Candidate]:
    """What "auto" chooses from, best first; it takes the first without a problem."""
    return [
        Candidate("tensorrt", tensorrt_problem(bundle)),
        Candidate("tensorrt-rtx", tensorrt_problem(bundle, "tensorrt-rtx")),
        Candidate("cuda", _cuda_problem()),
        Candidate("cpu", _cpu_problem()),
    ]


def tensorrt_problem(bundle: Bundle | None, name: str = "tensorrt") -> str | None:
    """Why TensorRT, or TensorRT-RTX, cannot run the bundle here, or None."""
    try:
        from freeprompt.engines.cuda.runtime import CudaRuntime
        from freeprompt.engines.tensorrt.library import FLAVOURS, is_installed, load_library
        from freeprompt.engines.tensorrt.store import EngineStore, Machine

        flavour = FLAVOURS[name]
        # Asked first: to load the library takes longer than to see that there is nothing to run on it.
        if bundle is not None and is_installed(flavour) and not EngineStore(bundle, flavour, None).scan():
            return f"the bundle has no {flavour.title} engines (freeprompt build --backend {name})"
        library = load_library(name)
        if bundle is None:
            return "no bundle is named, so that there are no engines"
        store = EngineStore(bundle, flavour, Machine(library.version, CudaRuntime().info().capability))
        for graph in NEEDED_GRAPHS:
            store.usable(graph)
    except FreePromptError as error:
        return str(error)
    return None


def _cuda_problem() -> str | None:
    try:
        from freeprompt.engines.onnxruntime.library import cuda_problem
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error})"
    return cuda_problem()


def _cpu_problem() -> str | None:
    """Why not even the CPU can be used: no onnxruntime, or one that is refused."""
    try:
        from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

        OnnxRuntimeBackend("cpu")
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}); install it: pip install onnxruntime"
    except FreePromptError as error:
        return str(error)
    return None


__all__ = ["BACKENDS", "BackendError", "Candidate", "candidates", "create_backend", "tensorrt_problem"]
