"""What is refused before anything is computed, what is stopped, and whose records are dropped."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor, Inversion
from freeprompt.bench.meter import MeteredBackend, rows_by_graph
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import FreePromptError, LimitError, PromptTruncatedWarning, UsageError
from freeprompt.contract.session import NumpyArray
from freeprompt.engines.fake import FakeBackend
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.runtime.plan.limits import Deadline, Limits
from freeprompt.runtime.plan.record_size import record_row_bytes
from tests.runtime.test_turns import answer

STEPS = 5
PICTURE = np.random.default_rng(5).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.fixture
def backend(tiny_bundle: Path) -> FakeBackend:
    return FakeBackend(partial(answer, Bundle.open(tiny_bundle, verify=False).manifest))


@pytest.fixture
def open_fake(tiny_bundle: Path, backend: FakeBackend) -> Callable[..., Editor]:
    return lambda **limits: Editor.load(tiny_bundle, backend, verify=False, limits=Limits(**limits))


WHOLE = [*("rows", "record_bytes", "device_record_bytes", "total_record_bytes"), *("memory_bytes", "pixels", "steps")]
WHOLE += ["prompts", "prompt_length"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [-1, True, 1.5, "1", math.nan])
def test_limits_that_are_no_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{'max_rows' if name == 'rows' else name} must be a whole number from"):
        Limits(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 0.0, True, math.nan, math.inf, "1"])
def test_seconds_that_are_no_time(value: Any) -> None:
    with pytest.raises(UsageError, match="seconds must be a number above 0"):
        Limits(seconds=value)


@pytest.mark.parametrize("name", ["rows", "record_bytes", "total_record_bytes", "prompts", "prompt_length"])
def test_limits_that_must_be(name: str) -> None:
    given: dict[str, Any] = {name: None}
    with pytest.raises(UsageError, match="must be a whole number"):
        Limits(**given)


def refusals(editor: Editor, inversion: Inversion, text: str, texts: list[str]) -> list[Callable[[], Any]]:
    """Every way to give a prompt."""
    return [
        lambda: editor.edit(inversion, texts),
        lambda: editor.edit_latents(inversion, texts, record="none"),
        lambda: editor.plan(texts),
        lambda: editor.plan(texts, inversion=inversion),
        lambda: editor.synthesize("x", texts, steps=STEPS),
    ] + (
        []
        if not text
        else [
            lambda: editor.edit(inversion, "x", negative_prompt=text),
            lambda: editor.generate(text, steps=STEPS),
            lambda: editor.generate("x", negative_prompt=text, steps=STEPS),
            lambda: editor.synthesize(text, "x", steps=STEPS),
            lambda: editor.synthesize("x", "y", negative_prompt=text, steps=STEPS),
        ]
    )


def test_the_number_of_prompts(open_fake: Callable[..., Editor], backend: FakeBackend) -> None:
    editor = open_fake(prompts=2)
    inversion = editor.invert(PICTURE, STEPS)
    backend.calls.clear()
    for call in refusals(editor, inversion, "", ["a", "b", "c"]):
        with pytest.raises(UsageError, match="3 prompts are more than the limit of 2"):
            call()
    assert backend.calls == []
    assert editor.edit_latents(inversion, ["a", "b"]).shape[0] == 2
    assert len(open_fake().edit_latents(inversion, [f"p{n}" for n in range(64)])) == 64


def test_the_length_of_a_prompt(
    open_fake: Callable[..., Editor], backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it reaches the tokenizer, which takes a second for a million characters."""
    editor = open_fake()
    assert editor.limits.prompt_length == 10_000
    inversion = editor.invert(PICTURE, STEPS)
    backend.calls.clear()
    long = "a" * 10_001
    for call in refusals(editor, inversion, long, ["x", long]):
        with pytest.raises(UsageError, match="10001 characters in a prompt are more than the limit of 10000"):
            call()
    assert backend.calls == []
    with pytest.warns(PromptTruncatedWarning):
        assert editor.edit_latents(inversion, long[:-1]).shape[0] == 1
    for wrong in ([], [None], [3], [b"x"]):
        with pytest.raises(UsageError, match="prompt"):
            editor.edit(inversion, wrong)  # type: ignore[arg-type]


def test_steps_and_pixels_are_refused_before_the_picture_is_read(
    open_fake: Callable[..., Editor], backend: FakeBackend
) -> None:
    wide = open_fake()
    noise, inversion = wide.noise(0, (128, 64)), wide.generate("x", steps=STEPS, size=(128, 64))
    editor = open_fake(steps=STEPS - 1, pixels=64 * 64)
    backend.calls.clear()
    for call, message in (
        (lambda: editor.invert("no such file", STEPS), "5 steps are more than the limit of 4"),
        (lambda: editor.invert("no such file", 1, size=(128, 64)), "8192 pixels are more than the limit of 4096"),
        (lambda: editor.plan("x", steps=STEPS), "5 steps"),
        (lambda: editor.plan("x", steps=1, size=(128, 64)), "8192 pixels"),
        (lambda: editor.generate("x", steps=STEPS), "5 steps"),
        (lambda: editor.generate("x", steps=1, size=(128, 64)), "8192 pixels"),
        (lambda: editor.synthesize("x", "y", steps=STEPS), "5 steps"),
        (lambda: editor.synthesize_latents("x", "y", noise, steps=1), "8192 pixels"),
        (lambda: editor.edit(inversion, "x"), "5 steps"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert backend.calls == []
    assert editor.edit_latents(editor.invert(PICTURE, STEPS - 1), "x").shape == (1, 4, 16, 16)


class Clock:
    """``time.monotonic`` that a step moves by a second."""

    def __init__(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.graphs: list[str] = []
        backend: Any = editor.pipeline.graphs.backend
        inner = backend.behaviour

        def behave(graph: str, feeds: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
            self.graphs.append(graph)
            if graph not in ("text_encoder", "vae_decoder"):
                self.now += 1.0
            result: dict[str, NumpyArray] = inner(graph, feeds)
            return result

        backend.behaviour = behave
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_time_is_looked_at_before_each_step(
    open_fake: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, editor = open_fake(), open_fake(seconds=3)
    inversion = free.invert(PICTURE, STEPS)
    clock = Clock(editor, monkeypatch)
    calls: tuple[tuple[Callable[[Editor], Any], list[str]], ...] = (
        (lambda e: e.edit(inversion, "x", record="none"), ["step"] * 3),
        (lambda e: e.generate("x", steps=STEPS), ["step"] * 3),
        (lambda e: e.synthesize("x", "y", steps=STEPS), ["step"] * 3),
        (lambda e: e.invert(PICTURE, STEPS), ["vae_encoder"] + ["step"] * 2),
        # Two passes of 4 and 1 rows come first, and stay.
        (lambda e: e.edit(inversion, "x", replace_fraction=1.0), ["record"] * 2 + ["step_recorded"]),
        (lambda e: e.edit(inversion, "y", replace_fraction=1.0), ["step_recorded"] * 3),
    )
    for call, expected in calls:
        clock.graphs.clear()
        with pytest.raises(LimitError, match="the time limit of 3 s has passed before the last step"):
            call(editor)
        assert [graph for graph in clock.graphs if graph != "text_encoder"] == expected
    assert inversion.record_bytes > 0
    # What is done is not thrown away: five steps end in the fifth second.
    assert open_fake(seconds=5).edit_latents(inversion, "x", record="none").shape == (1, 4, 16, 16)


def test_synthesis_in_two_parts_has_one_time(open_fake: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch) -> None:
    editor = open_fake(seconds=STEPS + 2, rows=4)
    clock = Clock(editor, monkeypatch)
    with pytest.raises(LimitError):
        editor.synthesize("x", ["y", "z"], steps=STEPS)
    assert sum(graph != "text_encoder" for graph in clock.graphs) == STEPS + 2


def test_a_deadline_that_is_none() -> None:
    Deadline(None).check()
    Deadline(1e9).check()
    with pytest.raises(LimitError):
        Deadline(1e-9).check()


@pytest.fixture
def meter() -> MeteredBackend:
    return MeteredBackend(OnnxRuntimeBackend("cpu", 1))


def record(editor: Editor, inversion: Inversion) -> NumpyArray:
    return editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="exact")


def test_the_least_recently_used_record_is_dropped_and_made_anew(tiny_bundle: Path, meter: MeteredBackend) -> None:
    size = STEPS * record_row_bytes(Bundle.open(tiny_bundle, verify=False).manifest, 16, 16)
    editor = Editor.load(tiny_bundle, meter, verify=False, limits=Limits(total_record_bytes=2 * size + 1))
    first, second, third = (editor.invert(PICTURE + n, STEPS) for n in range(3))
    want = record(editor, first)
    record(editor, second)
    assert [i.record_bytes for i in (first, second, third)] == [size, size, 0]
    record(editor, first)  # now the second is the one that was not used for longest
    record(editor, third)
    assert [i.record_bytes for i in (first, second, third)] == [size, 0, size]
    record(editor, second)
    assert [i.record_bytes for i in (first, second, third)] == [0, size, size]
    meter.take()
    (plan,) = editor.plan("a cat", replace_fraction=1.0, record="exact", inversion=first)
    np.testing.assert_array_equal(record(editor, first), want)
    assert rows_by_graph(meter.take())["record"] == plan.record_rows == STEPS
    assert [i.record_bytes for i in (first, second, third)] == [size, size, 0]


def test_the_budget_holds_whatever_is_asked(tiny_bundle: Path, meter: MeteredBackend) -> None:
    row = record_row_bytes(Bundle.open(tiny_bundle, verify=False).manifest, 16, 16)
    alone = Editor.load(tiny_bundle, meter, verify=False)
    made = [alone.invert(PICTURE, STEPS), alone.invert(PICTURE + 1, STEPS), alone.generate("a dog", steps=STEPS)]
    want = [alone.edit_latents(inversion, "a cat", record="none") for inversion in made]
    rng = np.random.default_rng(0)
    for rows in (0, 3, STEPS, 2 * STEPS - 1):
        editor = Editor.load(tiny_bundle, meter, verify=False, limits=Limits(total_record_bytes=rows * row))
        sources = [editor.invert(PICTURE, STEPS), editor.invert(PICTURE + 1, STEPS, record="inversion")]
        sources.append(editor.generate("a dog", steps=STEPS))
        for n in rng.integers(0, 3, 8):
            got = editor.edit_latents(sources[n], "a cat", record="exact")
            assert sum(source.record_bytes for source in sources) <= rows * row
            # Batches of another size sum in another order: tests/runtime/source/test_recording.py.
            assert np.linalg.norm(got - want[n]) / np.linalg.norm(want[n]) < 3e-5


def test_what_was_recorded_while_inverting_stays(tiny_bundle: Path, meter: MeteredBackend) -> None:
    size = STEPS * record_row_bytes(Bundle.open(tiny_bundle, verify=False).manifest, 16, 16)
    editor = Editor.load(tiny_bundle, meter, verify=False, limits=Limits(total_record_bytes=2 * size))
    exact = editor.invert(PICTURE, STEPS)
    record(editor, exact)
    kept = [editor.invert(PICTURE + n, STEPS, record="inversion") for n in range(2)]
    assert [i.record_bytes for i in (exact, *kept)] == [0, size, size]
    record(editor, exact)  # has no room: each step runs its own source row
    assert [i.record_bytes for i in (exact, *kept)] == [0, size, size]
    for inversion in kept:
        editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="inversion")
    none = editor.invert(PICTURE, STEPS, record="inversion")
    with pytest.raises(UsageError, match="or raise record_bytes or total_record_bytes"):
        editor.edit_latents(none, "a cat", record="inversion")
    del inversion, kept
    gc.collect()
    record(editor, exact)
    assert exact.record_bytes == size


def test_the_budget_keeps_no_inversion_alive(open_fake: Callable[..., Editor]) -> None:
    editor = open_fake()
    inversion = editor.invert(PICTURE, STEPS)
    record(editor, inversion)
    reference = weakref.ref(inversion)
    del inversion
    gc.collect()
    assert reference() is None


def test_a_record_that_another_thread_is_at_work_on_is_not_dropped(open_fake: Callable[..., Editor]) -> None:
    editor = open_fake()
    inversion = editor.invert(PICTURE, STEPS)
    record(editor, inversion)
    held = inversion.record_bytes
    with inversion.lock, ThreadPoolExecutor(1) as pool:
        assert pool.submit(inversion.drop_record, "exact").result(60) == 0
    assert inversion.record_bytes == held > 0
    assert inversion.drop_record("exact") == held
    assert inversion.record_bytes == 0


def test_errors_are_of_the_hierarchy() -> None:
    assert issubclass(LimitError, FreePromptError) and not issubclass(LimitError, UsageError)
