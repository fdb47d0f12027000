"""Where half precision ends: one step with growing logits on each backend that the running Python has.

Runs under Python 3.9 without PyTorch; ``precision_prepare`` has made the bundles and their float32 results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from benchmarks.gpu import measure
from freeprompt.bundle import Bundle
from freeprompt.engines.engine_parity import seeded_inputs
from freeprompt.engines.session import Session

# Largest logits; the first is the model as it is, and the largest number of float16 is 65504.
LADDER = (0.0, 1e3, 3e4, 5e4, 1.3e5)
ROWS = 2


@dataclass(frozen=True)
class Rung:
    """One size of logits: by what queries and keys are multiplied each, and the largest logit that float32 then has."""

    number: int
    factor: float
    logits: float


def bundle_path(work: Path, number: int) -> Path:
    return work / f"bundle-{number}"


def save_rungs(out: Path, rungs: list[Rung]) -> None:
    (out / "precision.json").write_text(json.dumps([asdict(rung) for rung in rungs], indent=1) + "\n")


def load_rungs(out: Path) -> list[Rung]:
    return [Rung(**rung) for rung in json.loads((out / "precision.json").read_text())]


def cases(work: Path, out: Path, dry: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, how to measure it) of every backend at every size."""
    for rung in load_rungs(out):
        bundle = Bundle.open(bundle_path(work, rung.number), verify=False)
        for backend, opened in _backends(bundle, work / "checkpoint", rung, dry):
            name = f"{backend}, factor {rung.factor:.1f}, logits {rung.logits:.3g}"
            yield name, partial(_measure, bundle, backend, opened, rung, out)


def _measure(bundle: Bundle, backend: str, opened: Callable[[], Session], rung: Rung, out: Path) -> dict[str, Any]:
    inputs = seeded_inputs(bundle.manifest, "step", measure.step_sizes(bundle, ROWS))
    got = opened().run(inputs)["next_latents"].numpy().astype(np.float64)
    with np.load(out / f"reference-precision-{rung.number}.npz", allow_pickle=False) as file:
        want = file["values"].astype(np.float64)
    finite = bool(np.isfinite(got).all())
    error: Optional[float] = float(np.linalg.norm(got - want) / np.linalg.norm(want)) if finite else None
    return {"backend": backend, "logits": rung.logits, "finite": finite, "relative_l2": error}


def _backends(bundle: Bundle, checkpoint: Path, rung: Rung, dry: bool) -> Iterator[tuple[str, Callable[[], Session]]]:
    if util.find_spec("torch") is not None:
        yield "torch-eager", partial(_torch, bundle, checkpoint, rung, dry, False)
        yield "torch-fused", partial(_torch, bundle, checkpoint, rung, dry, True)
    if util.find_spec("onnxruntime") is not None:
        from freeprompt.engines.onnxruntime_backend import OnnxRuntimeBackend
        from freeprompt.engines.onnxruntime_library import available

        name = "cpu" if dry else "cuda"
        if name in available():
            yield f"ort-{name}", lambda: OnnxRuntimeBackend(name).open(bundle, "step")
    if util.find_spec("tensorrt") is not None:
        yield "tensorrt", partial(_tensorrt, bundle)


def _torch(bundle: Bundle, checkpoint: Path, rung: Rung, dry: bool, fused: bool) -> Session:
    import torch

    from benchmarks.gpu.precision_prepare import scaled_backend

    device = "cpu" if dry else "cuda"
    return scaled_backend(checkpoint, device, torch.float16, rung.factor, fused).open(bundle, "step")


def _tensorrt(bundle: Bundle) -> Session:
    """An engine that is not kept: the build of a bundle would refuse what is wrong, and that is looked for here."""
    from freeprompt.engines.tensorrt_build import BuilderSettings, build_engine
    from freeprompt.engines.tensorrt_profile import Rows, Shapes
    from freeprompt.engines.tensorrt_session import TensorRTBackend
    from freeprompt.engines.tensorrt_slot import LoadedEngine

    manifest = bundle.manifest
    shapes = Shapes(((manifest.latents.width, manifest.latents.height),), (Rows.parse(str(ROWS)),))
    profiles = shapes.profiles(manifest, "step")
    backend = TensorRTBackend()
    settings = BuilderSettings(manifest.precision, baked=True)
    spec, path = manifest.graph("step"), bundle.graph_path("step")
    built = build_engine(backend.trt, path, spec.inputs, profiles, settings, bundle.path / "timing.cache", print)
    engine = backend.load(bytes(built.engine))
    return backend.session(bundle, "step", (LoadedEngine(engine, profiles, "step"),))
