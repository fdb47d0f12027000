"""Choosing a backend by name."""

from __future__ import annotations

from typing import Optional

from freeprompt.engines.session import Backend
from freeprompt.errors import BackendError, UsageError

BACKENDS = ("auto", "cpu", "cuda")


def create_backend(name: str = "auto", threads: Optional[int] = None) -> Backend:
    """The backend of that name; "auto" takes CUDA where the installed onnxruntime has it and it starts, else the CPU.

    Args:
        name: one of ``BACKENDS``.
        threads: CPU threads within an operator; None: every core.

    Raises:
        UsageError: unknown name.
        BackendError: known, but not installed here.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    # Imported here: `freeprompt --help` must not pay for it.
    from freeprompt.engines import onnxruntime_backend

    if name == "auto":
        name = "cuda" if "cuda" in onnxruntime_backend.available() else "cpu"
    if name not in onnxruntime_backend.available():
        raise BackendError(
            f"backend {name!r} is not available: the installed onnxruntime has "
            f"{', '.join(onnxruntime_backend.available())}; install onnxruntime-gpu for cuda"
        )
    return onnxruntime_backend.OnnxRuntimeBackend(name, threads)
