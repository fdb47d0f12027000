"""Records that wait in host memory: the same edits within the budget, and a host that does not wait for the device."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor, Inversion
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.session import HostArray
from freeprompt.editor import Progress
from freeprompt.engines.cuda.memory import DevicePool, round_up
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.cuda.spill import Spill, SpilledArray
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.tensorrt.backend import TensorRTBackend
from freeprompt.runtime.execute import StepResult
from freeprompt.runtime.pipeline import Limits
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.record_size import RECORD_ROWS
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings
from freeprompt.runtime.source import recording
from tests.engines.conftest import Machine
from tests.engines.cuda.fake_core import MAIN
from tests.engines.cuda.fake_cuda import FakeCuda

STEPS = 10
PROMPT = "a red cat"
ROW = 4 * (3 * 256 * 16 + 64 * 32)  # recorded by the tiny model: tests/runtime/source/test_recording.py
PASS = RECORD_ROWS * ROW
COPIES = MAIN + 1  # the copy stream


@pytest.fixture(params=["late", "early"])
def eager(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Copies happen as late as they may, or as early."""
    return (COPIES,) if request.param == "early" else ()


@pytest.fixture
def device(bundle: Bundle, eager: tuple[int, ...]) -> tuple[FakeCuda, TensorRTBackend]:
    machine = Machine.create(eager=eager)
    machine.build(bundle)
    return machine.cuda, machine.backend


@pytest.fixture(scope="module")
def start() -> Any:
    return np.random.default_rng(3).standard_normal((1, 4, 16, 16)).astype(np.float32)


def edit(editor: Editor, start: Any, mode: str = "exact", prompt: str = PROMPT) -> Any:
    pipeline = editor.pipeline
    given = mode if mode == "inversion" else "none"
    inversion = pipeline.invert(pipeline.graphs.backend.upload(start), STEPS, given, editor.limits)
    return editor.edit_latents(inversion, prompt, replace_fraction=1.0, record=mode)


@pytest.mark.parametrize("mode", ["exact", "inversion"])
def test_spilled_edits_are_bit_equal_and_within_the_budget(
    device: tuple[FakeCuda, TensorRTBackend], bundle: Bundle, start: Any, mode: str
) -> None:
    """Ten steps are three passes of 4, 4 and 2 rows, or ten of one. Two passes at a time are on the move."""
    _, backend = device
    pool = backend.pool
    want = edit(Editor(bundle, backend), start, mode)
    # The fakes compute the standard form of the graphs.
    on_cpu = edit(Editor(bundle, OnnxRuntimeBackend("cpu", 1, fused=False)), start, mode)
    np.testing.assert_allclose(want, on_cpu, rtol=1e-4, atol=1e-5)
    whole = STEPS * ROW
    peaks = {}
    for budget in (None, whole - 1, 2 * PASS):
        editor = Editor(bundle, backend, Limits(device_record_bytes=budget))
        edit(editor, start, mode)  # makes the fixed buffers of every shape
        gc.collect()
        used = pool.peak_bytes = pool.used_bytes
        np.testing.assert_array_equal(edit(editor, start, mode), want)
        peaks[budget] = pool.peak_bytes - used
    # What is not a record: the levels, and a few latents and embeddings of two texts.
    rest = (STEPS + 6) * round_up(4 * 16 * 16 * 4) + 2 * round_up(2 * 77 * 32 * 4)
    assert rest < PASS / 2
    for budget, peak in peaks.items():
        assert peak <= (whole if budget is None else budget) + rest, (budget, peak)
    assert peaks[2 * PASS] < whole, "otherwise nothing was shown"
    assert peaks[None] >= whole


def test_the_host_waits_for_nothing_while_steps_run(
    device: tuple[FakeCuda, TensorRTBackend], bundle: Bundle, start: Any
) -> None:
    """What one step costs the host, counted call by call."""
    cuda, backend = device
    editor = Editor(bundle, backend, Limits(device_record_bytes=0))
    pipeline = editor.pipeline
    inversion = pipeline.invert(backend.upload(start), STEPS)
    for _ in range(2):
        editor.edit_latents(inversion, PROMPT, replace_fraction=1.0, record="exact")
    seen: list[Counter[str]] = []

    def observer(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
        seen.append(Counter(cuda.calls))

    (plan,) = editor.plan(PROMPT, steps=STEPS, replace_fraction=1.0, record="exact")[1:]
    assert plan.host_record_bytes == STEPS * ROW
    chosen = EditSettings(7.5, 1.0, "", tuple(layer.number for layer in bundle.manifest.layers if layer.replaced))
    pipeline.edit(inversion, (PROMPT,), chosen, "exact", editor.limits, observer)
    layers = sum(layer.recordable for layer in bundle.manifest.layers)
    for step in range(1, STEPS):
        cost = seen[step] - seen[step - 1]
        assert cost["synchronize"] == cost["malloc"] == cost["free"] == cost["malloc host"] == 0
        assert cost["launch"] == 1
        changes = step in (4, 8)  # a new pass is read: into the fixed buffers, once for its steps
        assert cost["copy DeviceToDevice"] == 2 + (layers if changes else 0), "latents in, latents out"
        coming = step == 4  # and the last one is sent for
        assert cost["copy HostToDevice"] == 1 + (layers if coming else 0), "all tables in one"
        assert cost["wait on device"] == (1 if changes else 0) + (1 if coming else 0)


def test_a_step_of_the_one_engine_plan(device: tuple[FakeCuda, TensorRTBackend], bundle: Bundle, start: Any) -> None:
    """Latents and the source's pinned latents in, latents out, all tables in one upload, one launch."""
    cuda, backend = device
    editor = Editor(bundle, backend)
    inversion = editor.pipeline.invert(backend.upload(start), STEPS)
    editor.edit_latents(inversion, PROMPT, replace_fraction=1.0, record="none")
    seen: list[Counter[str]] = []

    def callback(progress: Progress) -> None:
        seen.append(Counter(cuda.calls))

    editor.edit_latents(inversion, PROMPT, replace_fraction=1.0, record="none", callback=callback)
    for step in range(1, STEPS):
        assert seen[step] - seen[step - 1] == {"copy HostToDevice": 1, "copy DeviceToDevice": 3, "launch": 1}


def test_recording_waits_for_nothing(device: tuple[FakeCuda, TensorRTBackend], bundle: Bundle, start: Any) -> None:
    """The latents of a pass are an array of the host; they go through page-locked memory."""
    cuda, backend = device
    editor = Editor(bundle, backend, Limits(device_record_bytes=0))
    edit(editor, start)
    inversion = editor.pipeline.invert(backend.upload(start), STEPS)
    _ = inversion.trajectory
    embeddings = editor.pipeline.embed(("", PROMPT))
    before = Counter(cuda.calls)
    record = recording.Record()
    for levels in ((10, 9, 8, 7), (6, 5, 4, 3), (2, 1)):
        made = RecordPass(levels, tuple(editor.pipeline.schedule(STEPS).timesteps[n - 1] for n in levels))
        record.append(made, recording.run_record_pass(editor.pipeline.graphs, made, inversion.trajectory, embeddings))
        record.place(backend, 0, len(record.rows) - 1)
    cost = cuda.calls - before
    assert cost["synchronize"] == 0
    assert cost["copy HostToDevice"] == 2 * 3, "tables and latents of each pass"
    assert cost["copy DeviceToHost"] == 3 * len(record.rows[0])


def test_a_saved_inversion_goes_straight_to_the_host(bundle: Bundle, start: Any, tmp_path: Path) -> None:
    machine = Machine.create()
    machine.build(bundle)
    editor = Editor(bundle, machine.backend)
    inversion = editor.pipeline.invert(machine.backend.upload(start), STEPS)
    want = editor.edit_latents(inversion, PROMPT, replace_fraction=1.0, record="exact")
    inversion.save(tmp_path / "a.inversion", records=True)
    del inversion
    small = Editor(bundle, machine.backend, Limits(device_record_bytes=2 * PASS))
    small.edit_latents(Inversion.load(tmp_path / "a.inversion"), PROMPT, replace_fraction=1.0, record="exact")
    gc.collect()
    machine.backend.pool.peak_bytes = used = machine.backend.pool.used_bytes
    loaded = Inversion.load(tmp_path / "a.inversion")
    got = small.edit_latents(loaded, PROMPT, replace_fraction=1.0, record="exact")
    np.testing.assert_array_equal(got, want)
    assert machine.backend.pool.peak_bytes - used < 2.5 * PASS
    assert all(isinstance(a, SpilledArray) for rows in loaded.records["exact"].rows for a in rows.values())
    # And back to the device under a larger budget, and to another backend.
    got = editor.edit_latents(loaded, PROMPT, replace_fraction=1.0, record="exact")
    np.testing.assert_array_equal(got, want)
    assert loaded.records["exact"].on_device == [True] * 3
    on_cpu = Editor(bundle, OnnxRuntimeBackend("cpu", 1, fused=False)).edit_latents(
        loaded, PROMPT, replace_fraction=1.0
    )
    np.testing.assert_allclose(got, on_cpu, rtol=1e-4, atol=1e-5)


def pools(eager: tuple[int, ...]) -> tuple[FakeCuda, DevicePool, Spill]:
    cuda = FakeCuda(eager=eager)
    pool = DevicePool(CudaRuntime(cuda.library))
    return cuda, pool, Spill(pool)


def numbered(pool: DevicePool, value: float) -> Any:
    """An array that the main stream has yet to write: without a wait by whoever reads it, it is NaN."""
    source = pool.upload(np.full(1000, value, np.float32))
    array = pool.array((1000,), np.dtype(np.float32))
    source.content.copy_to(array.content, stream=pool.cuda.stream)
    return array


def test_there_and_back_again(eager: tuple[int, ...]) -> None:
    _, pool, spill = pools(eager)
    spilled = spill.spill({"a": numbered(pool, 1.0), "b": numbered(pool, 2.0)})
    # The memory of a and b must not be overwritten before it is read.
    others = [numbered(pool, 9.0) for _ in range(4)]
    assert spill.spill(spilled) == spilled
    spill.fetch(spilled)  # what was spilled is let go, and its memory written over
    others += [numbered(pool, 9.0) for _ in range(4)]
    back = spill.fetch(spilled)
    assert spill.fetch(back)["a"] is back["a"]
    for values in (back, spilled):
        np.testing.assert_array_equal(values["a"].numpy(), np.full(1000, 1.0))
        np.testing.assert_array_equal(values["b"].numpy(), np.full(1000, 2.0))
    assert spill.host.used_bytes == 8000
    del spilled, values
    assert spill.host.used_bytes == 0
    del others


def test_memory_that_comes_back_still_has_readers(eager: tuple[int, ...]) -> None:
    """A buffer that the pool gives to a copy may be read by work that is enqueued and not done."""
    _, pool, spill = pools(eager)
    spilled = spill.spill({"a": numbered(pool, 1.0)})
    spill.fetch(spilled)  # lets go of what was spilled
    read, target = numbered(pool, 5.0), pool.array((1000,), np.dtype(np.float32))
    read.content.copy_to(target.content, stream=pool.cuda.stream)
    address = read.address
    del read
    back = spill.fetch(spilled)
    assert back["a"].address == address  # type: ignore[attr-defined]
    np.testing.assert_array_equal(target.numpy(), np.full(1000, 5.0))
    np.testing.assert_array_equal(back["a"].numpy(), np.full(1000, 1.0))


def test_what_was_sent_for_and_not_used_leaves_its_memory_alone(eager: tuple[int, ...]) -> None:
    _, pool, spill = pools(eager)
    spilled = spill.spill({"a": numbered(pool, 1.0)})
    spill.fetch(spilled)  # dropped at once; its buffer is the next to be given out
    array = pool.upload(np.full(1000, 7.0, np.float32))
    np.testing.assert_array_equal(array.numpy(), np.full(1000, 7.0))
    spill.finish()
    np.testing.assert_array_equal(array.numpy(), np.full(1000, 7.0))


def test_no_memory_left_while_sending_for_it(eager: tuple[int, ...]) -> None:
    cuda, pool, spill = pools(eager)
    spilled = spill.spill({"a": HostArray(np.ones(1000, np.float32)), "b": HostArray(np.ones(1000, np.float32))})
    pool.trim()
    cuda.limit = cuda.used + 4096
    with pytest.raises(Exception, match="GPU has no"):
        spill.fetch(spilled)
    cuda.limit = 1 << 20
    np.testing.assert_array_equal(spill.fetch(spilled)["b"].numpy(), np.ones(1000))
