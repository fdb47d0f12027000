"""The CPU suite: ``make bench``, or

    python -m benchmarks.cpu.run [--checkpoint FOLDER] [--bundle B] [--threads N] [--rounds N] [--only PART ...]

Writes OUT/results/cpu.json, plots beside it, and OUT/REPORT.md; OUT is this project's benchmarks folder unless --out
says otherwise. The checkpoint is the embedded model's. ``--only report`` writes the report anew from its data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks"
BUILD = ROOT / "build" / "bench"
EMBEDDED = ROOT / "benchmarks" / "embedded" / "checkpoint"
PARTS = ("contest", "rows", "scaling", "profile", "cold", "memory", "soak", "timeline")


def note(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def export(checkpoint: Path) -> Path:
    """The checkpoint's bundle in float32, kept under build/ while checkpoint and exporter are the same."""
    digest = hashlib.sha256()
    sources = [*sorted(checkpoint.rglob("*.safetensors")), *sorted((ROOT / "export").glob("*.py"))]
    for path in (*sources, ROOT / "freeprompt" / "manifest.py"):
        digest.update(path.read_bytes())
    bundle = BUILD / f"{digest.hexdigest()[:16]}.bundle"
    if not bundle.exists():
        note("exporting")
        # In a process of its own: PyTorch's memory and threads are not in what is measured here.
        command = [sys.executable, "-m", "freeprompt", "export", str(checkpoint), "-o", str(bundle), "--quiet"]
        subprocess.run(command, check=True)
    return bundle


def measure(checkpoint: Path | None, bundle: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every part asked for, into ``results``; saved after each, since the suite takes minutes."""
    from benchmarks.cpu import cold, profiling, scaling, soak

    threads, steps = options.threads, options.steps

    def contest() -> dict[str, Any]:
        import torch

        from benchmarks.cpu.contest import contenders, contest
        from freeprompt import Editor

        assert checkpoint is not None
        torch.set_num_threads(threads)
        editor = Editor.load(bundle, "cpu", threads=threads)
        for each in contenders(checkpoint, editor, 2):
            each.run()  # few steps warm up as well as many
        entered = contenders(checkpoint, editor, steps)
        return {"torch": torch.__version__, "rounds": options.rounds, **contest(entered, options.rounds, note)}

    def timeline() -> dict[str, Any]:
        from freeprompt import Editor
        from freeprompt.bench.measure import BenchSettings, run_bench

        settings = BenchSettings(edits=10, steps=steps)
        return run_bench(lambda: Editor.load(bundle, "cpu", threads=threads), settings, threads, note)

    parts: dict[str, Callable[[], Any]] = {
        "contest": contest,
        "rows": lambda: scaling.count_rows(bundle, threads, steps),
        "scaling": lambda: scaling.sweep(bundle, threads),
        "profile": lambda: profiling.profile_step(str(bundle), threads),
        "cold": lambda: cold.cold_start(bundle, threads, steps, options.cold),
        "memory": lambda: scaling.memory(bundle, 20),
        "soak": lambda: soak.soak(str(bundle), options.soak_edits, 4, 1),
        "timeline": timeline,
    }
    for name in PARTS:
        if name not in options.only or (name == "contest" and checkpoint is None):
            continue
        start = time.perf_counter()
        note(name)
        load = os.getloadavg()[0]
        results["parts"][name] = {
            "result": parts[name](),
            "seconds": time.perf_counter() - start,
            "steps": steps,
            "threads": threads,
            "load_before": load,
            "load_after": os.getloadavg()[0],
            "when": time.strftime("%Y-%m-%d %H:%M"),
        }
        save(results, options.out)


def save(results: dict[str, Any], out: Path) -> None:
    """Data, plots and report."""
    from benchmarks.cpu.report import write_report
    from benchmarks.cpu.reportplots import write_plots

    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    write_plots(results, folder)
    (out / "REPORT.md").write_text(write_report(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder (default: the embedded model)")
    parser.add_argument("--bundle", type=Path, help="its bundle, if there is one; without --checkpoint: no peers")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5, help="of the contest")
    parser.add_argument("--cold", type=int, default=5, help="repetitions of cold starts")
    parser.add_argument("--soak-edits", type=int, default=500)
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "report"), default=list(PARTS))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    BUILD.mkdir(parents=True, exist_ok=True)
    from freeprompt.bench.machine import machine, versions

    results: dict[str, Any] = {"parts": {}}
    path = options.out / "results" / "cpu.json"
    if set(options.only) != set(PARTS) and path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    if options.only == ["report"]:
        save(results, options.out)
        return
    checkpoint, bundle = options.checkpoint, options.bundle
    if bundle is None:
        checkpoint = checkpoint or EMBEDDED
        bundle = export(checkpoint)
    results |= {
        "machine": machine(),
        "versions": versions(),
        "settings": {"threads": options.threads, "steps": options.steps},
    }
    measure(checkpoint, bundle, options, results)


if __name__ == "__main__":
    main()
