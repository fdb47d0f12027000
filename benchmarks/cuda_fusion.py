"""Rewrite a bundle's graphs for ONNX Runtime's CUDA provider and compare what they mean, on the CPU.

    python -m benchmarks.cuda_fusion BUNDLE [--rows 2] [--graph NAME ...] [--json FILE]

The kernels need a GPU. Their documented meaning, spelled out in standard operators (tests/engines/cuda_reference.py),
runs anywhere: so this shows that the rewriting is right at any size, what it fused, and what it took. At Stable
Diffusion 1.5's size (``python -m benchmarks.sd15_export --work FOLDER`` makes such a bundle) it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from freeprompt.bundle import Bundle
from freeprompt.engines.cuda_fusion import CudaGraph, fuse_for_cuda
from freeprompt.engines.engine_parity import THRESHOLDS, compare, profile_to_sizes, reference_outputs, seeded_inputs
from freeprompt.engines.onnxruntime_backend import OnnxRuntimeBackend
from freeprompt.engines.tensorrt_profile import Rows, Shapes
from tests.engines.cuda_reference import to_standard


def measure(bundle: Bundle, graph: str, rows: tuple[Rows, ...]) -> dict[str, Any]:
    """One graph: what was fused, in what time, and how far the result is from the graph as exported."""
    start = time.perf_counter()
    fused = fuse_for_cuda(bundle.graph_path(graph, fused=True), graph)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    latents = bundle.manifest.latents
    parity = []
    session = OnnxRuntimeBackend("cpu").open_model(bundle, graph, to_standard(fused.model))
    for profile in Shapes(((latents.width, latents.height),), rows).profiles(bundle.manifest, graph):
        sizes = profile_to_sizes(profile)
        got = {n: a.numpy() for n, a in session.run(seeded_inputs(bundle.manifest, graph, sizes)).items()}
        parity.append(vars(compare(str(profile), reference_outputs(bundle, graph, sizes), got)))
    return {
        "operators": fused.operators,
        "nodes": {"exported": _nodes(bundle.graph_path(graph, True).read_bytes()), "prepared": _nodes(fused.model)},
        "transposed_images": _transposed(fused),
        "seconds": round(seconds, 1),
        "peak_megabytes_so_far": round(peak),
        "bytes": len(fused.model),
        "parity": parity,
    }


def _nodes(model: bytes) -> int:
    return len(onnx.load_from_string(model).graph.node)


def _transposed(fused: CudaGraph) -> int:
    """Transpositions of images that are left (those of weights are done while the graph is loaded)."""
    graph = onnx.load_from_string(fused.model).graph
    weights = {tensor.name for tensor in graph.initializer}
    return Counter(node.input[0] in weights for node in graph.node if node.op_type == "Transpose")[False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", default="2")
    parser.add_argument("--graph", action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, verify=False)
    rows = tuple(Rows.parse(text) for text in arguments.rows.split(","))
    # The small first, so that the peak of rewriting is not that of an earlier comparison.
    graphs = sorted(arguments.graph or bundle.manifest.graphs, key=lambda g: bundle.graph_path(g, True).stat().st_size)
    found: dict[str, Any] = {}
    for graph in graphs:
        found[graph] = measure(bundle, graph, rows)
        print(json.dumps({graph: found[graph]}), flush=True)
    result = {
        "model": bundle.manifest.model,
        "precision": bundle.manifest.precision,
        "bound": THRESHOLDS[bundle.manifest.precision],
        "onnxruntime": ort.__version__,
        "graphs": found,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
