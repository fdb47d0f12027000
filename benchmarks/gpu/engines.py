"""TensorRT engines for the measurement. Runs under Python 3.9 without PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import msgspec

from freeprompt.bundle import Bundle
from freeprompt.engines.tensorrt_bundle import LATENCY, MEMORY, BundleBuild, build_bundle
from freeprompt.engines.tensorrt_profile import Rows, Shapes
from freeprompt.engines.tensorrt_session import TensorRTBackend


def build_engines(bundle: Bundle, rows: tuple[int, ...], once: Callable[[str, Callable[[], Any]], Any]) -> None:
    """Every graph, the most important first; ``once`` keeps what was built and skips it the next time."""
    graphs = bundle.manifest.graphs
    first = sorted(rows, key=lambda number: (number > 3, number != 2, number))
    wanted: list[tuple[str, tuple[int, ...], str]] = [("text_encoder", rows, MEMORY)]
    wanted += [(graph, (1,), MEMORY) for graph in ("vae_encoder", "vae_decoder")]
    wanted += [("step", (number,), LATENCY) for number in first[:3]]
    wanted += [(graph, (2,), LATENCY) for graph in ("record", "step_recorded") if graph in graphs]
    wanted += [("step", (number,), LATENCY) for number in first[3:]]
    # To compare: all shapes of an edit in one engine, which share its weights.
    wanted.append(("step", (1, 2, 3), MEMORY))
    for graph, numbers, profile in wanted:
        label = f"{graph}, rows {','.join(map(str, numbers))}, {profile}"
        once(label, partial(_build, bundle, graph, numbers, profile))


def _build(bundle: Bundle, graph: str, rows: tuple[int, ...], profile: str) -> dict[str, Any]:
    latents = bundle.manifest.latents
    shapes = Shapes(((latents.width, latents.height),), tuple(Rows.parse(str(r)) for r in rows))
    wanted = BundleBuild(shapes, profile, (graph,))
    found = build_bundle(bundle, wanted, TensorRTBackend(), progress=lambda line: print(line, flush=True))
    return {"engines": [{"how": o.how, **msgspec.to_builtins(o.record)} for o in found]}
