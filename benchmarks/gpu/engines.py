"""TensorRT engines and checked forms for CUDA, for the measurement. Runs without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from freeprompt.contract.bundle import Bundle
from freeprompt.engines.shapes import Shapes
from freeprompt.engines.tensorrt.backend import TensorRTBackend
from freeprompt.engines.tensorrt.building.bundle_build import EACH, SHARED, BundleBuild, build_bundle
from freeprompt.engines.tensorrt.library import load_library
from freeprompt.runtime.inputs.arguments import size_to_latents
from freeprompt.runtime.plan.shapes import Batch, batches_to_sizes, usual_sizes

Once = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Wanted:
    """Engines of one graph."""

    graph: str
    rows: tuple[int, ...]
    engines: str

    @property
    def label(self) -> str:
        return f"{self.graph}, rows {','.join(map(str, self.rows))}, {self.engines}"

    def shapes(self, bundle: Bundle) -> Shapes:
        size = size_to_latents(bundle.manifest.latents, None)
        return Shapes(batches_to_sizes(bundle.manifest, [Batch.parse(str(r)) for r in self.rows], size))


def wanted_engines(bundle: Bundle, rows: tuple[int, ...], more: bool) -> list[Wanted]:
    """What an edit of latents runs, the most important first, or with ``more`` everything else."""
    if more:
        found = [Wanted("step", (number,), EACH) for number in rows if number > 3]
        # To compare: all shapes of an edit in one engine, which share its weights.
        found.append(Wanted("step", (1, 2, 3), SHARED))
        found += [Wanted(graph, (1,), SHARED) for graph in ("vae_encoder", "vae_decoder")]
        return found
    found = [Wanted("text_encoder", rows, SHARED), Wanted("step", (2,), EACH), Wanted("step", (1,), EACH)]
    found += [Wanted(g, (2,), EACH) for g in ("step_recorded", "record") if g in bundle.manifest.graphs]
    return [*found, Wanted("step", (3,), EACH)]


def build_engines(
    bundle: Bundle, rows: tuple[int, ...], once: Once, more: bool, name: str = "tensorrt", gpu: bool = True
) -> None:
    """Build them; ``once`` keeps what was built and skips it the next time.

    Args:
        name: of the library, tensorrt or tensorrt-rtx.
        gpu: False builds without checking what is built, on a machine without a GPU.
    """
    for wanted in wanted_engines(bundle, rows, more):
        once(wanted.label, partial(_build, bundle, wanted, name, gpu))


def check_forms(bundle: Bundle, backend: Any, once: Once) -> None:
    """Whether the forms for CUDA may be used of the graphs of an edit; one item a graph."""
    for graph in ("step", "record", "step_recorded", "text_encoder", "vae_encoder", "vae_decoder"):
        if graph in bundle.manifest.graphs:
            once(graph, partial(_check, bundle, graph, backend))


def _check(bundle: Bundle, graph: str, backend: Any) -> dict[str, Any]:
    import onnxruntime

    from freeprompt.engines.onnxruntime.cuda_check import check_bundle
    from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes

    shapes = Shapes(usual_sizes(bundle.manifest, [size_to_latents(bundle.manifest.latents, None)]))
    notes = CudaNotes(bundle, onnxruntime.__version__)
    (done,) = check_bundle(bundle, shapes, backend, notes, (graph,), lambda line: print(line, flush=True))
    form = bundle.manifest.graph(graph).cuda
    operators = form.operators if form else {}
    return {"how": done.how, "refused": done.refused, "operators": operators, **msgspec.to_builtins(done.note)}


def _build(bundle: Bundle, wanted: Wanted, name: str, gpu: bool) -> dict[str, Any]:
    build, library = BundleBuild(wanted.shapes(bundle), wanted.engines, (wanted.graph,)), load_library(name)
    backend = TensorRTBackend(library) if gpu else None
    found = build_bundle(bundle, build, library, backend, lambda line: print(line, flush=True))
    return {"engines": [{"how": o.how, **msgspec.to_builtins(o.metadata)} for o in found]}
