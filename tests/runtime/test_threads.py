"""Threads that share an inversion, an editor or both get, bit for bit, what one thread gets."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from freeprompt import Editor, Inversion
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.manifest import TensorSpec
from freeprompt.contract.session import Array, Feed, NumpyArray, Session
from freeprompt.editor import Progress
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.runtime.pipeline import Limits

STEPS = 5
THREADS = 4
# What each edit of the stress tests is: prompt, share of the steps, way of recording.
KINDS = [("a cat", 0.4, "exact"), ("a dog", 1.0, "exact"), ("a cat", 0.6, "none"), ("a red dog", 1.0, "inversion")]


class Elsewhere(OnnxRuntimeBackend):
    """The CPU as if it were a device, so that a budget of device memory says something."""

    device = "elsewhere"


@pytest.fixture(scope="module")
def picture() -> NumpyArray:
    return np.random.default_rng(5).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns some thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def open_editor(bundle: Path, limits: Limits | None = None, device: bool = False) -> Editor:
    # One thread within operators: sums are in one order.
    backend = Elsewhere("cpu", 1) if device else OnnxRuntimeBackend("cpu", 1)
    return Editor.load(bundle, backend, verify=False, limits=limits)


def edited(editor: Editor, inversion: Inversion, kind: tuple[str, float, str]) -> NumpyArray:
    prompt, fraction, record = kind
    return editor.edit_latents(inversion, prompt, replace_fraction=fraction, record=record)


def compare_with_one_thread(editors: list[Editor], picture: NumpyArray, rounds: int) -> None:
    """Edits of shared inversions, thread by thread through ``editors``."""
    alone = open_editor(editors[0].bundle.path)
    want = {kind: edited(alone, alone.invert(picture, STEPS, record="inversion"), kind) for kind in KINDS}
    for _ in range(rounds):
        # Nothing is recorded exactly yet: the threads meet where it is.
        inversion, started = editors[0].invert(picture, STEPS, record="inversion"), threading.Barrier(THREADS)

        def work(
            number: int, inversion: Inversion = inversion, started: threading.Barrier = started
        ) -> list[tuple[int, bool]]:
            # All begin with what has to be recorded.
            order = [number % 2, 1 - number % 2, 2 + number % 2, 3 - number % 2]
            editor = editors[number % len(editors)]
            started.wait(60)
            return [(n, np.array_equal(edited(editor, inversion, KINDS[n]), want[KINDS[n]])) for n in order]

        with ThreadPoolExecutor(THREADS) as pool:
            results = [result for results in pool.map(work, range(THREADS)) for result in results]
        assert len(results) == THREADS * len(KINDS)
        assert [KINDS[n] for n, same in results if not same] == []


def test_one_inversion_and_one_editor(tiny_bundle: Path, picture: NumpyArray, hasty: None) -> None:
    compare_with_one_thread([open_editor(tiny_bundle)], picture, rounds=10)


def test_one_inversion_and_an_editor_each(tiny_bundle: Path, picture: NumpyArray, hasty: None) -> None:
    """Each has a backend of its own: what is recorded moves to and fro. They want it in different places, too."""
    everywhere = [
        open_editor(tiny_bundle),
        open_editor(tiny_bundle, Limits(device_record_bytes=0), device=True),
        open_editor(tiny_bundle, Limits(rows=3), device=True),
        open_editor(tiny_bundle, Limits(device_record_bytes=300_000), device=True),
    ]
    compare_with_one_thread(everywhere, picture, rounds=10)


@dataclass
class MeetingBackend(OnnxRuntimeBackend):
    """Whoever records waits a moment for another thread that records."""

    barrier: threading.Barrier

    def __post_init__(self) -> None:
        super().__init__("cpu", 1)

    def open(self, bundle: Bundle, graph: str) -> Session:
        session = super().open(bundle, graph)
        return MeetingSession(session, self.barrier) if graph == "record" else session


@dataclass
class MeetingSession:
    inner: Session
    barrier: threading.Barrier

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        try:
            self.barrier.wait(0.5)
        except threading.BrokenBarrierError:
            self.barrier.reset()
        return self.inner.run(feeds)


def test_what_two_threads_lack_is_recorded_once(tiny_bundle: Path, picture: NumpyArray) -> None:
    """Each would append its passes to the same record, and read the other's at the wrong places."""
    steps = 9
    barrier = threading.Barrier(2)
    editors = [Editor.load(tiny_bundle, MeetingBackend(barrier), verify=False) for _ in range(2)]
    alone = open_editor(tiny_bundle)
    source = alone.invert(picture, steps)
    want = [alone.edit_latents(source, p, replace_fraction=1.0, record="exact") for p in ("a cat", "a dog")]
    inversion = editors[0].invert(picture, steps)
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(editor.edit_latents, inversion, prompt, replace_fraction=1.0, record="exact")
            for editor, prompt in zip(editors, ("a cat", "a dog"))
        ]
        got = [future.result() for future in futures]
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert inversion.record_bytes == source.record_bytes
    levels = [level for made in inversion.records["exact"].passes for level in made.levels]
    assert sorted(levels) == list(range(1, steps + 1))


def test_a_running_edit_keeps_its_rows_whatever_becomes_of_the_record(tiny_bundle: Path, picture: NumpyArray) -> None:
    """Another editor, in a callback, drops what this one reads and records it anew on its own backend."""
    editor = open_editor(tiny_bundle, Limits(device_record_bytes=0), device=True)
    row = sum(int(np.prod([16 * 16 // 4**layer.level, layer.channels])) * 4 for layer in editor.manifest.layers)
    small = open_editor(tiny_bundle, Limits(record_bytes=row))
    inversion = editor.invert(picture, 9)
    want = editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="exact")
    held = []

    def callback(progress: Progress) -> None:
        small.edit_latents(inversion, "a dog", replace_fraction=1.0, record="exact")
        held.append(inversion.record_bytes)

    got = editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="exact", callback=callback)
    np.testing.assert_array_equal(got, want)
    assert held == [row] * 9


def test_saving_while_others_edit(tiny_bundle: Path, picture: NumpyArray, tmp_path: Path, hasty: None) -> None:
    editor = open_editor(tiny_bundle)
    inversion = editor.invert(picture, STEPS)
    ended = threading.Event()

    def save() -> int:
        count = 0
        while not ended.is_set() or count == 0:
            inversion.save(tmp_path / "x.inversion", records=True)
            loaded = Inversion.load(tmp_path / "x.inversion")
            np.testing.assert_array_equal(loaded.trajectory, inversion.trajectory)
            record = loaded.records["exact"]
            assert [len(made.levels) for made in record.passes] == [
                len(rows["record_01"].numpy()) for rows in record.rows
            ]
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        saving = pool.submit(save)
        for fraction in (0.25, 0.5, 1.0) * 4:
            edited(editor, inversion, ("a cat", fraction, "exact"))
        ended.set()
        assert saving.result() > 0


def test_copies_and_pickles_give_the_same_edit(tiny_bundle: Path, picture: NumpyArray) -> None:
    editor = open_editor(tiny_bundle)
    inversion = editor.invert(picture, STEPS)
    want = edited(editor, inversion, ("a cat", 1.0, "exact"))
    for other in (copy.copy(inversion), copy.deepcopy(inversion), pickle.loads(pickle.dumps(inversion))):  # noqa: S301
        assert other.record_bytes == inversion.record_bytes
        assert other.size == inversion.size
        np.testing.assert_array_equal(edited(editor, other, ("a cat", 1.0, "exact")), want)
        other.records["exact"].move_to_host()
        assert other.lock is not inversion.lock
    np.testing.assert_array_equal(edited(editor, inversion, ("a cat", 1.0, "exact")), want)
