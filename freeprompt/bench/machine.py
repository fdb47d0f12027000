"""What a figure was measured on: without it a figure means nothing."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from freeprompt.contract.errors import FreePromptError

PACKAGES = ("freeprompt", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-core", "cuda-bindings")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, load, system."""
    facts: dict[str, Any] = {
        "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{psutil.virtual_memory().total // 1024} kB",
        "system": platform.platform(),
    }
    # Above the number of cores something else was running, and percentiles tell of that.
    facts["load"] = round(psutil.getloadavg()[0], 2)
    return facts


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def thread_settings(threads: int | None) -> dict[str, Any]:
    """What was asked for, and the environment's variables that libraries read."""
    given: dict[str, Any] = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {"threads": threads, **given}


def peak_bytes() -> int | None:
    """Highest resident memory of this process so far; None where the system does not tell."""
    peak = _field(Path("/proc/self/status"), "VmHWM")
    if peak is not None:
        return int(peak.split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Kilobytes, but bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def device(name: str) -> dict[str, Any] | None:
    """The GPU and its memory in use now, by every process; None on the CPU."""
    if name == "cpu":
        return None
    try:
        from freeprompt.engines.cuda.runtime import CudaRuntime

        runtime = CudaRuntime()
        free, total = runtime.memory()
        info = runtime.info()
    except FreePromptError as error:
        return {"name": name, "problem": str(error)}
    return {
        "name": info.name,
        "capability": info.capability,
        "driver": info.driver,
        "runtime": info.runtime,
        "memory_bytes": total,
        "used_bytes": total - free,
    }


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
