"""Where a step's time goes on the CPU: ONNX Runtime's own profile by operator, and session options against each other.

python -m benchmarks.profiling --bundle B [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from freeprompt import Editor
from freeprompt.benchstats import summarise
from freeprompt.runtime.plan import step_to_inputs

RUNS = 30


def step_feeds(editor: Editor) -> dict[str, Any]:
    """Inputs of a replacing step of the one-engine plan: three rows."""
    plan = editor.plan("a red circle", record="none")[1]
    manifest = editor.manifest
    rng = np.random.default_rng(0)
    spec = manifest.latents
    shape = (1, spec.channels, spec.height // spec.scale, spec.width // spec.scale)
    text = (len(plan.texts), manifest.text.tokens, manifest.text.channels)
    return {
        **step_to_inputs(plan, plan.steps[0]),
        "latents": rng.standard_normal(shape).astype(np.float32),
        "pinned_latents": rng.standard_normal(shape).astype(np.float32),
        "encoder_hidden_states": rng.standard_normal(text).astype(np.float32),
    }


def options_for(threads: int, **config: str) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for name, value in config.items():
        options.add_session_config_entry(name.replace("__", "."), value)
    return options


def profile(path: str, feeds: dict[str, Any], threads: int) -> dict[str, Any]:
    """Milliseconds a step by operator, and how many nodes there are of each."""
    options = options_for(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    # The first tenth warms up.
    kernels = kernels[len(kernels) // 10 :]
    time_by: Counter[str] = Counter()
    nodes: dict[str, set[str]] = {}
    for event in kernels:
        name = event["args"]["op_name"]
        time_by[name] += event["dur"]
        nodes.setdefault(name, set()).add(event["name"])
    runs = RUNS * 0.9
    return {
        "kernels_ms": sum(time_by.values()) / runs / 1e3,
        "operators": [
            {"op": name, "ms": total / runs / 1e3, "nodes": len(nodes[name])} for name, total in time_by.most_common()
        ],
    }


def product_gflops(threads: int, size: int = 1024) -> float:
    """Billions of operations a second of a large product in float32: what arithmetic alone could reach here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size).unbind()
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * size**3 / summarise(seconds[2:]).p50 / 1e9


def profile_step(bundle: str, threads: int) -> dict[str, Any]:
    """Where a replacing step of three rows spends its time, beside what its multiply-adds alone would take."""
    editor = Editor.load(bundle, "cpu", threads=threads)
    feeds = step_feeds(editor)
    rows = len(feeds["row_latent"])
    rate = product_gflops(threads)
    operations = 2 * rows * editor.manifest.graphs["step"].macs
    return {
        "rows": rows,
        "product_gflops": rate,
        "floor_ms": operations / rate / 1e6,
        "profile": profile(str(editor.bundle.graph_path("step", fused=True)), feeds, threads),
        "standard": profile(str(editor.bundle.graph_path("step")), feeds, threads),
    }


def variants(threads: int) -> dict[str, Any]:
    """Session options worth trying; the first is what the backend uses."""
    shipped = options_for(threads)
    shipped.enable_mem_pattern = False
    found = {
        "as shipped": shipped,
        "no spinning": options_for(threads, session__intra_op__allow_spinning="0"),
        "no prepacking": options_for(threads, session__disable_prepacking="1"),
        "denormals as zero": options_for(threads, session__set_denormal_as_zero="1"),
    }
    extended = options_for(threads)
    extended.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    basic = options_for(threads)
    basic.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    arena = options_for(threads)
    arena.enable_cpu_mem_arena = False
    pattern = options_for(threads)
    return {
        **found,
        "graph optimisation: extended (no layout)": extended,
        "graph optimisation: basic": basic,
        "no arena": arena,
        "memory patterns": pattern,
    }


def try_options(path: str, standard: str, feeds: dict[str, Any], threads: int, rounds: int) -> dict[str, Any]:
    """Every variant in turn, one step each, so that all meet the same neighbours; ratios within a turn."""
    sessions = {
        name: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for name, options in variants(threads).items()
    }
    sessions["standard graph"] = ort.InferenceSession(
        standard, variants(threads)["as shipped"], providers=["CPUExecutionProvider"]
    )
    wall: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 2):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds)
            if number >= 2:
                wall[name].append(time.perf_counter() - start)
    base = wall["as shipped"]
    return {
        name: {
            "ms": 1e3 * summarise(samples).p50,
            "times_faster": vars(summarise([a / b for a, b in zip(base, samples)])),
        }
        for name, samples in wall.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    editor = Editor.load(arguments.bundle, "cpu", threads=arguments.threads)
    path, standard = (str(editor.bundle.graph_path("step", fused)) for fused in (True, False))
    result: dict[str, Any] = {
        "threads": arguments.threads,
        **profile_step(arguments.bundle, arguments.threads),
        "options": try_options(path, standard, step_feeds(editor), arguments.threads, arguments.rounds),
    }
    total = result["profile"]["kernels_ms"]
    for one in result["profile"]["operators"][:16]:
        print(f"{one['op']:28}{one['nodes']:>5} nodes{one['ms']:>9.3f} ms{one['ms'] / total:>8.1%}")
    for name, one in result["options"].items():
        faster = one["times_faster"]
        print(f"{name:44}{one['ms']:>9.2f} ms  x{faster['p50']:.3f} (MAD {faster['mad']:.3f})")
    print(f"arithmetic alone, at {result['product_gflops']:.0f} GFLOP/s: {result['floor_ms']:.2f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
