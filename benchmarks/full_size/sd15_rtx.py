"""Build every graph of a bundle of Stable Diffusion 1.5's size in float16 with TensorRT-RTX, which needs no GPU.

    python -m benchmarks.full_size.sd15_rtx [--bundle BUNDLE] [--work FOLDER] [--json FILE] [--graph NAME ...]

Prints a table, and writes as JSON, seconds, peak memory, bytes and warnings of each engine: at exact shapes, as
``freeprompt build --engines each`` makes them for an edit of 512x512, and over a range of sizes and rows, as
``--dynamic`` does. An engine that is in FOLDER already is not built again. Without BUNDLE a checkpoint with random
weights is exported first. Takes minutes, about 8 GB of memory and 30 GB of disk; not part of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.full_size.engine_table import engine_table
from benchmarks.full_size.sd15 import save_random_checkpoint
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.artifacts.bundle_copy import copy_bundle
from freeprompt.engines.shapes import Shapes
from freeprompt.engines.tensorrt.building.bundle_build import EACH, SHARED, BundleBuild, build_bundle
from freeprompt.engines.tensorrt.library import load_library
from freeprompt.runtime.inputs.arguments import size_to_latents
from freeprompt.runtime.plan.shapes import usual_sizes

RESULT = Path(__file__).parents[1] / "results" / "sd15_rtx.json"
# The range goes from half the native size to it.
STATIC, DYNAMIC = "exact shapes", "range of shapes"


def export(work: Path) -> Bundle:
    """A bundle in float16, with every graph at its full size; kept in ``work``."""
    from freeprompt.export.exporter import ExportSettings, export_checkpoint

    if not (work / "bundle" / "manifest.json").exists():
        if not (work / "checkpoint" / "model_index.json").exists():
            save_random_checkpoint(work / "checkpoint", whole=True)
        settings = ExportSettings(precision="float16", graphs="latency")
        export_checkpoint(work / "checkpoint", work / "bundle", settings, True, lambda line: print(line, flush=True))
    return Bundle.open(work / "bundle")


def measure(bundle: Bundle, graphs: tuple[str, ...], kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Build each graph in each way: what is known of every engine, or why there is none."""
    library = load_library("tensorrt-rtx")
    latents = bundle.manifest.latents
    native = size_to_latents(latents, None)
    step = latents.scale * latents.multiple
    width, height = (max(1, side // 2 // step) * step for side in (latents.width, latents.height))
    half = size_to_latents(latents, (width, height))
    for kind in kinds:
        sizes = [native] if kind == STATIC else [native, half]
        shapes = Shapes(usual_sizes(bundle.manifest, sizes), ranged=kind == DYNAMIC)
        for graph in graphs or tuple(shapes.sizes):
            wanted = BundleBuild(shapes, EACH if kind == STATIC else SHARED, (graph,))
            try:
                for outcome in build_bundle(bundle, wanted, library, None, lambda line: print(line, flush=True)):
                    metadata = outcome.metadata
                    yield {
                        "kind": kind,
                        "graph": graph,
                        "shapes": "; ".join(map(str, metadata.profiles)),
                        "seconds": metadata.build_seconds,
                        "peak_memory_bytes": metadata.peak_memory_bytes,
                        "engine_bytes": metadata.engine_bytes,
                        "warnings": list(metadata.warnings),
                    }
            except BackendError as error:
                yield {"kind": kind, "graph": graph, "error": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle that is there (default: one of full size is exported)")
    parser.add_argument("--work", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--json", type=Path, default=RESULT, help=f"default: {RESULT}")
    parser.add_argument("--graph", action="append", help="only this graph; may be repeated")
    parser.add_argument("--static", action="store_true", help="exact shapes only")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    start = time.perf_counter()
    try:
        work.mkdir(parents=True, exist_ok=True)
        source = Bundle.open(arguments.bundle) if arguments.bundle else export(work)
        bundle = copy_bundle(source, work / "built") if arguments.bundle else source
        kinds = (STATIC,) if arguments.static else (STATIC, DYNAMIC)
        engines = list(measure(bundle, tuple(arguments.graph or ()), kinds))
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "tensorrt_rtx": load_library("tensorrt-rtx").version,
        "model": bundle.manifest.model,
        "precision": bundle.manifest.precision,
        "seconds": round(time.perf_counter() - start, 1),
        "engines": engines,
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(engine_table(engines)))


if __name__ == "__main__":
    main()
