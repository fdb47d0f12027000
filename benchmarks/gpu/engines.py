"""TensorRT engines for the measurement. Runs under Python 3.9 without PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import msgspec

from freeprompt.bundle import Bundle
from freeprompt.engines.tensorrt_bundle import LATENCY, MEMORY, BundleBuild, build_bundle
from freeprompt.engines.tensorrt_profile import Rows, Shapes
from freeprompt.engines.tensorrt_session import TensorRTBackend


def build_engines(
    bundle: Bundle, rows: tuple[int, ...], once: Callable[[str, Callable[[], Any]], Any], more: bool
) -> None:
    """What an edit of latents runs, the most important first, or with ``more`` everything else; ``once`` keeps what was
    built and skips it the next time."""
    graphs = bundle.manifest.graphs
    wanted: list[tuple[str, tuple[int, ...], str]]
    if more:
        wanted = [("step", (number,), LATENCY) for number in rows if number > 3]
        # To compare: all shapes of an edit in one engine, which share its weights.
        wanted.append(("step", (1, 2, 3), MEMORY))
        wanted += [(graph, (1,), MEMORY) for graph in ("vae_encoder", "vae_decoder")]
    else:
        wanted = [("text_encoder", rows, MEMORY), ("step", (2,), LATENCY), ("step", (1,), LATENCY)]
        wanted += [(graph, (2,), LATENCY) for graph in ("step_recorded", "record") if graph in graphs]
        wanted.append(("step", (3,), LATENCY))
    for graph, numbers, profile in wanted:
        label = f"{graph}, rows {','.join(map(str, numbers))}, {profile}"
        once(label, partial(_build, bundle, graph, numbers, profile))


def _build(bundle: Bundle, graph: str, rows: tuple[int, ...], profile: str) -> dict[str, Any]:
    latents = bundle.manifest.latents
    shapes = Shapes(((latents.width, latents.height),), tuple(Rows.parse(str(r)) for r in rows))
    wanted = BundleBuild(shapes, profile, (graph,))
    found = build_bundle(bundle, wanted, TensorRTBackend(), progress=lambda line: print(line, flush=True))
    return {"engines": [{"how": o.how, **msgspec.to_builtins(o.record)} for o in found]}
