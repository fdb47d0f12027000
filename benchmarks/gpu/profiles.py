"""Where a step's time goes on each backend that the running Python has. Runs without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from benchmarks.gpu.kinds import Timed, summarise
from benchmarks.gpu.measure import step_feeds
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.tensorrt.library import FLAVOURS, is_installed, load_library

ROWS = 2  # an edit's step with one prompt once nothing is replaced
RUNS = 10

Measured = Callable[[], dict[str, Any]]


def profiles(bundle: Bundle, checkpoint: Path, dry: bool) -> Iterator[tuple[str, Measured]]:
    """(name, how to measure it) of each backend that can be profiled by this Python."""
    if util.find_spec("torch") is not None:
        for compiled in (False,) if dry else (False, True):
            name = "torch-compile" if compiled else "torch-eager"
            yield name, partial(_torch, bundle, checkpoint, compiled, dry)
    if util.find_spec("onnxruntime") is not None:
        from freeprompt.engines.onnxruntime.provider import built_in

        backend = "cpu" if dry else "cuda"
        if backend in built_in():
            yield f"ort-{backend}", partial(_onnxruntime, bundle, backend)
            if not dry and util.find_spec("torch") is not None:
                yield f"ort-{backend} kernels", partial(_onnxruntime_kernels, bundle)
    if dry:
        return
    for name, flavour in FLAVOURS.items():
        if is_installed(flavour) and (bundle.engines / name).is_dir():
            yield name, partial(_tensorrt, bundle, name)


def tensorrt_profile(session: Any, feeds: dict[str, Any], runs: int = RUNS) -> dict[str, Any]:
    """Of a ``TensorRTSession``: layers by its own profiler, which waits for each."""
    times, layers = session.time_layers(feeds, runs)
    timed = [Timed(name, sum(ms) / runs, len(ms) / runs, layers.get(name, "")) for name, ms in times.samples.items()]
    return {"method": "layers, TensorRT's profiler, each waited for", **summarise(timed)}


def _tensorrt(bundle: Bundle, name: str) -> dict[str, Any]:
    from freeprompt.engines.tensorrt.backend import TensorRTBackend

    # Engines of TensorRT-RTX may have been built on another machine, by whoever measures here.
    backend = TensorRTBackend(load_library(name), trust=name == "tensorrt-rtx", cuda_graphs=False)
    return tensorrt_profile(backend.open(bundle, "step"), step_feeds(bundle, backend, ROWS))


def _onnxruntime(bundle: Bundle, backend: str) -> dict[str, Any]:
    from benchmarks.gpu.profile_ort import profile_onnxruntime

    return profile_onnxruntime(bundle, backend, ROWS, RUNS)


def _onnxruntime_kernels(bundle: Bundle) -> dict[str, Any]:
    from benchmarks.gpu.profile_torch import profile_kernels, synchronized
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

    backend = OnnxRuntimeBackend("cuda")
    session, feeds = backend.open(bundle, "step"), step_feeds(bundle, backend, ROWS)
    return profile_kernels(synchronized(lambda: session.run(feeds), "cuda"), RUNS, "cuda")


def _torch(bundle: Bundle, checkpoint: Path, compiled: bool, dry: bool) -> dict[str, Any]:
    import torch

    from benchmarks.gpu.profile_torch import profile_kernels, synchronized
    from benchmarks.peers.torch_editor import TorchBackend

    device = "cpu" if dry else "cuda"
    backend = TorchBackend(checkpoint, device, torch.float32 if dry else torch.float16, compiled)
    session, feeds = backend.open(bundle, "step"), step_feeds(bundle, backend, ROWS)
    return profile_kernels(synchronized(lambda: session.run(feeds), device), RUNS, device)
