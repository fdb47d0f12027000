"""Record the samples that the test of ``freeprompt bench --compare`` judges: runs of one build, and of a slowed one.

    python -m benchmarks.slowed --bundle B --out FOLDER [--part 0.2]

Runs take turns, a repetition each, so that whatever else the machine does falls on all alike. The slowed build waits in
every evaluation of a U-Net graph for a part of the time that the evaluation took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeprompt import Editor
from freeprompt.benchreport import FORMAT, KIND
from freeprompt.clibench import Bench, BenchSettings
from freeprompt.clibenchmachine import machine, thread_settings, versions
from freeprompt.engines.session import Array, Backend, Feed, Session

RUNS = {"unchanged-1": 0.0, "unchanged-2": 0.0, "slowed": 1.0}


@dataclass
class SlowSession:
    """A session that takes longer."""

    inner: Session
    part: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = self.inner.run(feeds)
        if "row_latent" in feeds:
            end = time.perf_counter()
            until = end + self.part * (end - start)
            while time.perf_counter() < until:
                pass
        return outputs


@dataclass
class SlowBackend:
    """A backend whose sessions take longer."""

    inner: Backend
    part: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, *arguments: Any) -> SlowSession:
        return SlowSession(self.inner.open(*arguments), self.part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=float, default=0.2)
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    benches = {}
    for name, slowed in RUNS.items():
        editor = Editor.load(arguments.bundle, "cpu", threads=1)
        graphs = editor.pipeline.graphs
        graphs.backend = SlowBackend(graphs.backend, slowed * arguments.part)
        benches[name] = Bench(editor, BenchSettings(arguments.edits, arguments.steps, prompts=2))
        benches[name].warm_up()
    for _ in range(arguments.edits):
        for bench in benches.values():
            bench.repeat()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, bench in benches.items():
        report = {
            "kind": KIND,
            "format": FORMAT,
            "machine": machine(),
            "versions": versions(),
            "threads": thread_settings(1),
            "bundle": {"model": bench.editor.manifest.model, "precision": bench.editor.manifest.precision},
            "settings": {"edits": arguments.edits, "steps": arguments.steps, "slowed": RUNS[name] * arguments.part},
            "samples": bench.samples.seconds,
        }
        (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
