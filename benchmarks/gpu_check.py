"""Everything that needs a GPU, in parts; every part can be cut off and called again.

    python -m benchmarks.gpu_check PART --work FOLDER --out FOLDER      one part
    python -m benchmarks.gpu_check all --dry-run --work FOLDER --out FOLDER
                                                                       what a CPU can do, tiny

Parts, in order: export, references, machine, torch-eager, torch-compile, literal, ort-cpu (dry run only), cuda-build,
ort-cuda, ort-cuda-fused, ort-tensorrt, tensorrt-build, tensorrt-build-more, tensorrt, tensorrt-no-graph,
tensorrt-rtx-build, tensorrt-rtx, profile, report. What each measures is in benchmarks/gpu/README.md.

This file and what the TensorRT parts import run without PyTorch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.check import Check

PARTS: dict[str, Callable[[Check], None]] = {
    "export": Check.export,
    "references": Check.references,
    "machine": Check.machine,
    "torch-eager": Check.torch_eager,
    "torch-compile": Check.torch_compile,
    "literal": Check.literal,
    "ort-cpu": Check.ort_cpu,
    "cuda-build": Check.cuda_build,
    "ort-cuda": Check.ort_cuda,
    "ort-cuda-fused": Check.ort_cuda_fused,
    "ort-tensorrt": Check.ort_tensorrt,
    "tensorrt-build": Check.tensorrt_build,
    "tensorrt-build-more": Check.tensorrt_build_more,
    "tensorrt": Check.tensorrt,
    "tensorrt-no-graph": Check.tensorrt_no_graph,
    "tensorrt-rtx-build": Check.tensorrt_rtx_build,
    "tensorrt-rtx": Check.tensorrt_rtx,
    "profile": Check.profile,
    "report": Check.report,
}
# What runs without a GPU.
DRY_PARTS = (
    "export",
    "references",
    "machine",
    "torch-eager",
    "literal",
    "ort-cpu",
    "tensorrt-rtx-build",
    "profile",
    "report",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "all"), metavar="PART")
    parser.add_argument("--work", type=Path, required=True, help="for checkpoint, bundle and engines")
    parser.add_argument("--out", type=Path, required=True, help="for what is measured")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    options = parser.parse_args(arguments)
    check = Check(options.work, options.out, options.dry_run, options.again)
    parts = options.parts
    if parts == ["all"]:
        parts = DRY_PARTS if options.dry_run else [p for p in PARTS if p != "ort-cpu"]
    for part in parts:
        start = time.perf_counter()
        PARTS[part](check)
        print(f"part {part}: {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
