"""ONNX Runtime's own profile of one step, in a process of its own.

    python -m benchmarks.gpu.profile_ort BUNDLE --backend cuda --rows 2 --runs 10 --json FILE

Node times of the CUDA provider are those of launching, unless every launch waits: CUDA_LAUNCH_BLOCKING=1 makes it, and
has to be set before CUDA starts. They then hold a few microseconds of launching each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime as ort

from benchmarks.gpu.kinds import Timed, summarise
from benchmarks.gpu.measure import step_feeds
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

WARM = 3


def profile_onnxruntime(bundle: Bundle, backend: str, rows: int, runs: int) -> dict[str, Any]:
    """Where a step's time goes by node, measured in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        command = [sys.executable, "-m", "benchmarks.gpu.profile_ort", str(bundle.path), "--backend", backend]
        command += ["--rows", str(rows), "--runs", str(runs), "--json", str(path)]
        blocking = {"CUDA_LAUNCH_BLOCKING": "1"}
        done = subprocess.run(command, env={**os.environ, **blocking}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:3])} failed: {done.stderr.strip()[-500:]}")
        result: dict[str, Any] = json.loads(path.read_text())
        return result


def profile_here(bundle: Bundle, backend_name: str, rows: int, runs: int) -> dict[str, Any]:
    """The same in this process; whatever sessions the backend opens are profiled."""
    opened: list[Any] = []
    plain = ort.InferenceSession
    with tempfile.TemporaryDirectory() as folder:

        class Profiled(plain):  # type: ignore[misc, valid-type]
            def __init__(self, path: Any, options: Any = None, **others: Any) -> None:
                options = options or others.pop("sess_options", None) or ort.SessionOptions()
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder) / f"session{len(opened)}")
                super().__init__(path, options, **others)
                opened.append(self)

        ort.InferenceSession = Profiled
        try:
            backend = OnnxRuntimeBackend(backend_name)
            session = backend.open(bundle, "step")
        finally:
            ort.InferenceSession = plain
        feeds = step_feeds(bundle, backend, rows)
        for _ in range(WARM + runs):
            session.run(feeds)["next_latents"].numpy()
        events = [event for one in opened for event in json.loads(Path(one.end_profiling()).read_text())]
    return {"method": "nodes, ONNX Runtime's profile, launches waited for", **summarise(events_to_nodes(events, runs))}


def events_to_nodes(events: list[dict[str, Any]], runs: int) -> list[Timed]:
    """Milliseconds of one run by node, over the last ``runs`` runs."""
    kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]
    seen: Counter[str] = Counter(e["name"] for e in kernels)
    ms: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    about: dict[str, str] = {}
    for event in reversed(kernels):
        name = event["name"]
        # A node runs equally often in each run, warm-up included.
        if counted[name] < seen[name] * runs // (runs + WARM):
            counted[name] += 1
            ms[name] += event["dur"] / 1e3 / runs
            about[name] = event["args"]["op_name"]
    return [Timed(n.removesuffix("_kernel_time"), ms[n], counted[n] / runs, about[n]) for n in ms]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, verify=False)
    result = profile_here(bundle, arguments.backend, arguments.rows, arguments.runs)
    arguments.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
