"""Export a U-Net of Stable Diffusion 1.5's size in float16, load it in ONNX Runtime on the CPU and run one step.

    python -m benchmarks.full_size.sd15_export [--graphs memory|latency] [--json FILE] [--work FOLDER]

Prints and writes time, peak memory and parity. Takes some minutes and about 15 GB of memory; not part of the tests.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.full_size.sd15 import save_random_checkpoint
from freeprompt import Editor
from freeprompt.export.exporter import ExportSettings, export_checkpoint
from freeprompt.runtime.plan.plan import step_to_inputs


def peak_gigabytes() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(work: Path, held: str) -> dict[str, Any]:
    """Export and run: seconds, memory, parity."""
    times: dict[str, float] = {}

    def timed(name: str, start: float) -> None:
        times[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {times[name]} s, peak memory {peak_gigabytes():.1f} GB", flush=True)

    start = time.perf_counter()
    if not (work / "checkpoint" / "model_index.json").exists():  # kept by --work
        save_random_checkpoint(work / "checkpoint")
    timed("random checkpoint", start)
    start = time.perf_counter()
    settings = ExportSettings(precision="float16", graphs=held)
    bundle = export_checkpoint(
        work / "checkpoint", work / "bundle", settings, True, lambda line: print(line, flush=True)
    )
    timed("export with parity", start)
    exported = peak_gigabytes()
    start = time.perf_counter()
    editor = Editor.load(work / "bundle", backend="cpu")
    graphs = editor.pipeline.graphs
    session = graphs["step"]
    timed("load", start)
    plan = editor.plan("a cat")[1]
    step = plan.steps[0]
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 64, 64)).astype(np.float32)
    text = rng.standard_normal((len(plan.texts), 77, 768)).astype(np.float32)
    feeds = {
        **step_to_inputs(plan, step),
        "latents": latents,
        "pinned_latents": latents,
        "encoder_hidden_states": text,
    }
    start = time.perf_counter()
    after = session.run(feeds)["next_latents"].numpy()
    timed(f"one step of {len(step.rows)} rows at 512x512", start)
    assert np.isfinite(after).all()
    manifest = bundle.manifest
    return {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "precision": manifest.precision,
        "seconds": times,
        "peak_gigabytes_export": round(exported, 2),
        "peak_gigabytes": round(peak_gigabytes(), 2),
        "bundle_megabytes": round(sum(f.bytes for f in manifest.files) / 1e6, 1),
        "gmacs_per_row": manifest.graphs["step"].macs / 1e9,
        "parity": {n: [vars(p) for p in g.parity] for n, g in manifest.graphs.items()},
        "replaced_layers": manifest.replaced_layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", default="memory", choices=("memory", "latency"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="kept; default: a temporary folder")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    try:
        result = measure(work, arguments.graphs)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
