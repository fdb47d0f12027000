"""Measuring edits: what ``freeprompt bench`` does, for the benchmarks too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from freeprompt.bench import machine
from freeprompt.bench.meter import Evaluation, MeteredBackend, rows_by_graph, seconds_of
from freeprompt.bench.statistics import summarise
from freeprompt.contract.graphs import (
    RECORD,
    STEP,
    STEP_RECORDED,
    STEP_RECORDING,
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
)
from freeprompt.contract.session import NumpyArray
from freeprompt.editor import Editor, Progress, check_size
from freeprompt.runtime.plan import records

FORMAT = 1
# Loading is repeated for at most so long: a large model takes that for one time.
_LOADING_SECONDS = 20.0
_GRAPHS = {
    records.EXACT: (STEP, RECORD, STEP_RECORDED),
    records.NONE: (STEP,),
    records.FROM_INVERSION: (STEP, STEP_RECORDING, STEP_RECORDED),
}


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        edits: repetitions: each inverts, edits, edits again, and edits by ``prompts`` prompts at once.
        record: a mode of ``freeprompt.runtime.plan.records`` other than "auto".
        size: (width, height); None: native.
        edit: keywords of ``Editor.edit``.
    """

    edits: int = 10
    steps: int = 50
    prompts: int = 4
    record: str = records.EXACT
    size: tuple[int, int] | None = None
    edit: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Samples:
    """What was measured: seconds by figure, and rows by computation."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    timeline: list[Evaluation] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        self.seconds.setdefault(name, []).append(value)


class Bench:
    """Measures one editor, whose backend it puts a meter around.

    Args:
        check: called between steps; what it raises ends the run.
    """

    def __init__(self, editor: Editor, settings: BenchSettings, check: Callable[[], object] = lambda: None) -> None:
        self.editor, self.settings, self.check = editor, settings, check
        graphs = editor.pipeline.graphs
        self.meter = MeteredBackend(graphs.backend)
        graphs.backend = self.meter
        width, height = check_size(editor.manifest.latents, settings.size)
        self.image = picture(width, height)
        self.samples = Samples()
        self._prompts = 0

    def open_graphs(self) -> None:
        """Open every graph that the edits need; later they find them open."""
        for name in (VAE_ENCODER, TEXT_ENCODER, *_GRAPHS[self.settings.record], VAE_DECODER):
            self.editor.pipeline.graphs[name]
            self.check()

    def warm_up(self) -> float:
        """One repetition that is not counted: seconds."""
        start = time.perf_counter()
        self.repeat()
        self.samples = Samples()
        return time.perf_counter() - start

    def repeat(self) -> None:
        """One repetition; appends to ``samples``."""
        self._pass()
        if self.meter.device != "cpu":
            # Stages on a GPU are only told apart by waiting after each evaluation, which edits proper do not.
            self.meter.waits = True
            whole, self.samples = self.samples, Samples()
            try:
                self._pass()
            finally:
                waited, self.samples, self.meter.waits = self.samples, whole, False
            for name in ("invert", "record", "denoise", "encode", "decode"):
                if name in waited.seconds:
                    self.samples.seconds.setdefault(name, [])[-1:] = waited.seconds[name]
            self.samples.steps[-len(waited.steps) :] = waited.steps
            self.samples.timeline = waited.timeline

    def _pass(self) -> None:
        editor, settings, add = self.editor, self.settings, self.samples.add
        held = self.meter.take
        held()
        start = time.perf_counter()
        inversion = editor.invert(
            self.image, settings.steps, size=settings.size, record=settings.record, callback=self._step
        )
        inversion.trajectory  # noqa: B018  (waits for the device)
        inverted = held()
        (first,) = self._edit(inversion, 1)
        seconds = time.perf_counter() - start
        edited = held()
        add("encode", seconds_of(inverted, VAE_ENCODER))
        add("invert", seconds_of(inverted, STEP))
        if settings.record == records.EXACT:
            add("record", seconds_of(edited, RECORD))
        add("first edit", seconds)
        self._count("first edit", [*inverted, *edited], self._plan(None, 1))
        self.samples.timeline = [*inverted, *edited]

        predicted = self._plan(inversion, 1)
        start = time.perf_counter()
        self._edit(inversion, 1)
        seconds = time.perf_counter() - start
        further = held()
        rows = sum(rows_by_graph(further).values())
        add("text", seconds_of(further, TEXT_ENCODER))
        add("denoise", seconds_of(further, STEP))
        add("decode", seconds_of(further, VAE_DECODER))
        add("further edit", seconds)
        add("row", seconds_of(further, STEP) / rows)
        self.samples.steps += [e.seconds for e in further if e.rows]
        self._count("further edit", further, predicted)

        if settings.prompts > 1:
            predicted = self._plan(inversion, settings.prompts)
            name = f"{settings.prompts} prompts"
            start = time.perf_counter()
            self._edit(inversion, settings.prompts)
            add(name, time.perf_counter() - start)
            self._count(name, held(), predicted)
        assert first.size == self.image.shape[1::-1]

    def _step(self, progress: Progress) -> None:
        self.check()

    def _edit(self, inversion: Any, count: int) -> Sequence[Any]:
        # New prompts each time: embeddings of known ones are kept, and users' are new.
        prompts = [f"a picture of number {self._prompts + i}" for i in range(count)]
        self._prompts += count
        record = self.settings.record
        return self.editor.edit(inversion, prompts, record=record, callback=self._step, **self.settings.edit)

    def _plan(self, inversion: Any, count: int) -> tuple[float, float]:
        """Rows and row-equivalents that the plan says."""
        settings = self.settings
        prompts = [str(number) for number in range(count)]
        plans = self.editor.plan(
            prompts,
            steps=settings.steps,
            record=settings.record,
            inversion=inversion,
            size=settings.size,
            **settings.edit,
        )
        return sum(sum(plan.rows_by_kind.values()) for plan in plans), sum(plan.rows for plan in plans)

    def _count(self, name: str, evaluations: Sequence[Evaluation], predicted: tuple[float, float]) -> None:
        executed = rows_by_graph(evaluations)
        self.samples.rows[name] = {
            "executed": executed,
            "total": sum(executed.values()),
            "predicted": predicted[0],
            "row_equivalents": round(predicted[1], 2),
        }


def run_bench(
    load: Callable[[], Editor],
    settings: BenchSettings,
    threads: int | None = None,
    note: Callable[[str], None] = lambda line: None,
    check: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Load, warm up and repeat.

    Args:
        load: opens the bundle.
        note: told where the run stands.
        check: called between steps; what it raises ends the run.

    Returns:
        everything as JSON data; ``samples`` in seconds.
    """
    loads: list[float] = []
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        bench = Bench(load(), settings, check)
        bench.open_graphs()
        loads.append(time.perf_counter() - start)
        note(f"loading: {loads[-1]:.2f} s")
        if len(loads) > settings.edits or time.perf_counter() - began > _LOADING_SECONDS:
            break
    warm_up = bench.warm_up()
    note(f"warm-up: {warm_up:.2f} s")
    for number in range(settings.edits):
        bench.repeat()
        note(f"repetition {number + 1} of {settings.edits}: {bench.samples.seconds['further edit'][-1]:.2f} s an edit")
    editor, samples = bench.editor, bench.samples
    # The first load reads files that the system may not have had in memory.
    seconds = {**({"load": loads[1:]} if len(loads) > 1 else {}), **samples.seconds}
    facts = samples.timeline[0].start if samples.timeline else 0.0
    return {
        "format": FORMAT,
        "kind": "freeprompt bench",
        "machine": machine.machine(),
        "device": machine.device(bench.meter.device),
        "versions": machine.versions(),
        "threads": machine.thread_settings(threads),
        "bundle": {
            "model": editor.manifest.model,
            "precision": editor.manifest.precision,
            "sha256": editor.bundle.sha256,
            "gmacs_per_row": editor.manifest.graphs[STEP].macs / 1e9,
        },
        "settings": {
            **asdict(settings),
            "backend": bench.meter.name,
            "width": bench.image.shape[1],
            "height": bench.image.shape[0],
        },
        "warm_up": {"load": loads[0], "repetition": warm_up},
        "samples": seconds,
        "steps": samples.steps,
        "summary": {name: asdict(summarise(values)) for name, values in {**seconds, "step": samples.steps}.items()},
        "rows": samples.rows,
        "prompts_per_second": settings.prompts / summarise(seconds[f"{settings.prompts} prompts"]).p50
        if settings.prompts > 1
        else 1 / summarise(seconds["further edit"]).p50,
        "memory": {"host_peak_bytes": machine.peak_bytes()},
        "timeline": [
            {"graph": e.graph, "rows": e.rows, "start": e.start - facts, "seconds": e.seconds} for e in samples.timeline
        ],
    }


def picture(width: int, height: int) -> NumpyArray:
    """A picture of coloured blocks, [height, width, 3] uint8, always the same; times do not depend on what it shows."""
    blocks = np.random.default_rng(7).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    rows = np.arange(height) * 8 // height
    columns = np.arange(width) * 8 // width
    return blocks[rows][:, columns]
