"""Kernels of a step by PyTorch's profiler. It sees every kernel of its process, ONNX Runtime's as well."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.kinds import Timed, summarise

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def profile_kernels(step: Callable[[], None], runs: int, device: str) -> dict[str, Any]:
    """Where the time of ``step``, which waits for its end, goes; on the CPU by operator, without what those call."""
    for _ in range(3):
        step()
    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(runs):
            step()
    if not on_gpu:
        averages = profiler.key_averages()
        timed = [Timed(a.key, a.self_cpu_time_total / 1e3 / runs, a.count / runs) for a in averages]
        return {"method": "operators, PyTorch's profiler", **summarise(t for t in timed if t.ms > 0)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return {"method": "kernels, PyTorch's profiler", **summarise(events_to_kernels(events, runs))}


def events_to_kernels(events: list[dict[str, Any]], runs: int) -> list[Timed]:
    """Milliseconds of one run by kernel."""
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in _ON_DEVICE:
            ms[event["name"]] += event["dur"] / 1e3
            calls[event["name"]] += 1
    return [Timed(name, total / runs, calls[name] / runs) for name, total in ms.items()]


def synchronized(run: Callable[[], Any], device: str) -> Callable[[], None]:
    """``run`` and the wait for its end."""

    def step() -> None:
        run()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
