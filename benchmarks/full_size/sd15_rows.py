"""Rows of Stable Diffusion 1.5's size on the CPU, a few: does what the small model shows carry over?

    python -m benchmarks.full_size.sd15_rows --work FOLDER [--threads N] [--rounds N] [--json FILE]

Random weights in float32 (times do not depend on them). One replacing step of an edit, at 256x256 and 512x512: three
rows by freeprompt and by PyTorch with its fused attention, four by the literal reference with its maps. Each contender
runs in a process of its own, whose peak memory is noted; they take turns, every other round in reverse. About ten
minutes and 16 GB of memory; FOLDER keeps checkpoint and bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZES = (256, 512)
# Evaluations that are timed, by size; one at the first size warms up.
REPEATS = {256: 2, 512: 1}
CONTENDERS = ("freeprompt", "freeprompt, standard graph", "torch, fused attention", "literal reference")
REPLACED = tuple(range(3, 14))
Numbers = np.ndarray[Any, Any]


def inputs(size: int, rows: int) -> tuple[Numbers, Numbers, Numbers]:
    """Latents of each row, timesteps and text embeddings of each row, seeded."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, size // 8, size // 8)).astype(np.float32)
    texts = rng.standard_normal((2, 77, 768)).astype(np.float32)
    # Three rows: cond_src, uncond_tgt, cond_tgt. Four: uncond_src before them, as the reference has them.
    which, what = {3: ([1, 0, 0], [0, 0, 1]), 4: ([1, 0, 1, 0], [0, 0, 0, 1])}[rows]
    return latents[which], np.full(rows, 981.0, np.float32), texts[what]


def step_feeds(size: int) -> dict[str, Numbers]:
    """The step graph's inputs for three rows."""
    rows, timestep, text = inputs(size, 3)
    own = np.arange(3, dtype=np.int32)
    map_row = np.tile(own, (16, 1))
    map_row[[layer - 1 for layer in REPLACED], 2] = 0
    return {
        "latents": rows[2:],
        "pinned_latents": rows[:1],
        "encoder_hidden_states": np.stack([text[0], text[2]]),
        "row_latent": np.array([1, 0, 0], np.int32),
        "row_text": np.array([0, 0, 1], np.int32),
        "timestep": timestep,
        "map_row": map_row,
        "cross_map_row": np.tile(own, (16, 1)),
        # The plain noise_pred of guidance 7.5: next = 0 * latents + 1 * noise_pred.
        "row_weight": np.array([[0.0, -6.5, 7.5]], np.float32),
        "latent_scale": np.zeros(1, np.float32),
        "noise_scale": np.ones(1, np.float32),
    }


def open_step(contender: str, work: Path, threads: int) -> Callable[[int], Numbers]:
    """One step, by image size, of freeprompt or of the same graph's module in PyTorch."""
    from freeprompt.contract.bundle import Bundle
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

    bundle = Bundle.open(work / "bundle", verify=False)
    session: Any
    if contender.startswith("freeprompt"):
        session = OnnxRuntimeBackend("cpu", threads, "standard" not in contender).open(bundle, "step")
    else:
        import torch

        from benchmarks.peers.torch_editor import TorchBackend

        torch.set_num_threads(threads)
        session = TorchBackend(work / "checkpoint", "cpu", torch.float32).open(bundle, "step")
    return lambda size: session.run(step_feeds(size))["next_latents"].numpy()


def open_literal(work: Path, threads: int) -> Callable[[int], Numbers]:
    """The same noise_pred by the literal reference, with maps."""
    import torch

    from benchmarks.peers.literal import LiteralReference, open_pipeline

    torch.set_num_threads(threads)
    pipe = open_pipeline(work / "checkpoint")
    control = LiteralReference(pipe).control
    control.pairs, control.self_layers = [(2, 3)], frozenset(REPLACED)

    @torch.inference_mode()
    def step(size: int) -> Numbers:
        rows, timestep, text = (torch.from_numpy(part) for part in inputs(size, 4))
        uncond, cond = pipe.unet(rows, timestep, text).sample[[1, 3]].split(1)
        guided: Numbers = (uncond + 7.5 * (cond - uncond)).numpy()
        return guided

    return step


def measure_one(contender: str, work: Path, threads: int) -> dict[str, Any]:
    """Seconds of each evaluation by size, peak memory, and the result to compare."""
    step = open_literal(work, threads) if "literal" in contender else open_step(contender, work, threads)
    step(SIZES[0])
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for size in SIZES:
        seconds[str(size)] = []
        for _ in range(REPEATS[size]):
            start = time.perf_counter()
            result = step(size)
            seconds[str(size)].append(time.perf_counter() - start)
        peaks[str(size)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        np.save(work / f"{contender}-{size}.npy", result)
    return {"seconds": seconds, "peak_gigabytes": peaks}


def run(work: Path, threads: int, rounds: int) -> dict[str, Any]:
    """All contenders in turn."""
    samples: dict[str, dict[str, list[float]]] = {c: {str(s): [] for s in SIZES} for c in CONTENDERS}
    peaks: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for contender in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
            command = [sys.executable, "-m", "benchmarks.full_size.sd15_rows", "--one", contender]
            command += ["--work", str(work), "--threads", str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            for size, seconds in one["seconds"].items():
                samples[contender][size] += seconds
            peaks[contender] = one["peak_gigabytes"]
            print(contender, one, flush=True)
    errors = {}
    for size in SIZES:
        want = np.load(work / f"{CONTENDERS[-1]}-{size}.npy")
        for contender in CONTENDERS[:-1]:
            got = np.load(work / f"{contender}-{size}.npy")
            errors[f"{contender}, {size}"] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    rows = {c: 4 if "literal" in c else 3 for c in CONTENDERS}
    medians = {c: {s: median(v) / rows[c] for s, v in by_size.items()} for c, by_size in samples.items()}
    return {
        "threads": threads,
        "rounds": rounds,
        "load": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "rows": rows,
        "seconds": samples,
        "seconds_per_row": medians,
        "peak_gigabytes": peaks,
        "relative_l2_to_literal": errors,
    }


def prepare(work: Path) -> None:
    """Checkpoint and bundle, unless they are there."""
    from benchmarks.full_size.sd15 import save_random_checkpoint
    from freeprompt.export.exporter import ExportSettings, export_checkpoint

    if not (work / "checkpoint" / "model_index.json").exists():
        save_random_checkpoint(work / "checkpoint")
    if not (work / "bundle" / "manifest.json").exists():
        settings = ExportSettings(precision="float32", graphs="memory")
        export_checkpoint(work / "checkpoint", work / "bundle", settings, True, lambda line: print(line, flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.one:
        print(json.dumps(measure_one(arguments.one, arguments.work, arguments.threads)))
        return
    prepare(arguments.work)
    result = run(arguments.work, arguments.threads, arguments.rounds)
    print(json.dumps(result["seconds_per_row"], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
