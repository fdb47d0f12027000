"""Where a step's time goes on the CPU: ONNX Runtime's own profile by operator."""

from __future__ import annotations

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
from freeprompt.bench.statistics import summarise
from freeprompt.runtime.plan.plan import step_to_inputs

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


def profile(path: str, feeds: dict[str, Any], threads: int) -> dict[str, Any]:
    """Milliseconds a step by operator, and how many nodes there are of each."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
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
