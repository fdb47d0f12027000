"""Invert once, edit many: what is executed, what is held, and that the result does not depend on either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor, Inversion
from freeprompt.bench.meter import MeteredBackend, rows_by_graph
from freeprompt.contract.errors import InversionError, UsageError
from freeprompt.contract.manifest import LayerSpec, Manifest
from freeprompt.engines.select import create_backend
from freeprompt.runtime.pipeline import Limits
from freeprompt.runtime.plan import records
from freeprompt.runtime.plan.record_size import RECORD_PASS_BYTES, RECORD_ROWS, record_row_bytes, record_rows
from freeprompt.runtime.plan.shapes import Batch, batches_to_sizes, usual_sizes
from freeprompt.runtime.source import recording

Array = np.ndarray[Any, Any]
STEPS = 10
REPLACED = 8
# Batches of another size sum in another order: measured 1e-6 to 4e-6 over 10 steps. Results that must not depend on
# batching at all are compared exactly instead.
ROUNDING = 3e-5


@pytest.fixture(scope="module")
def meter() -> MeteredBackend:
    return MeteredBackend(create_backend("cpu", threads=1))


@pytest.fixture
def editor(tiny_bundle: Path, meter: MeteredBackend) -> Editor:
    meter.take()
    return Editor.load(tiny_bundle, meter)


@pytest.fixture(scope="module")
def image() -> Array:
    return np.random.default_rng(5).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def close(a: Array, b: Array) -> bool:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) < ROUNDING


def test_rows_really_executed(editor: Editor, meter: MeteredBackend, image: Array) -> None:
    inversion = editor.invert(image, 50)
    assert rows_by_graph(meter.take()) == {"step": 50}
    plan = editor.plan("a cat", record="exact", inversion=inversion)
    editor.edit_latents(inversion, "a cat", record="exact")
    evaluations = meter.take()
    assert rows_by_graph(evaluations) == {"record": 40, "step_recorded": 80, "step": 20}
    assert [e.rows for e in evaluations if e.graph == "record"] == [RECORD_ROWS] * (40 // RECORD_ROWS)
    assert sum(p.record_rows for p in plan) == 40
    meter.take()
    editor.edit_latents(inversion, "a dog", guidance=3.0, negative_prompt="red", record="exact")
    assert rows_by_graph(meter.take()) == {"step_recorded": 80, "step": 20}, "a further edit must not record again"
    assert sum(p.rows for p in editor.plan("a dog", record="exact", inversion=inversion)) == 100
    meter.take()
    editor.edit_latents(inversion, "a dog", record="none")
    assert rows_by_graph(meter.take()) == {"step": 140}


def test_row_equivalents_of_the_first_edit(editor: Editor) -> None:
    plans = editor.plan("a cat", record="exact")
    macs = {name: graph.macs for name, graph in editor.manifest.graphs.items()}
    assert macs["step"] == macs["step_recorded"] > macs["record"] > 0
    assert sum(p.rows for p in plans) == pytest.approx(150 + 40 * macs["record"] / macs["step"])
    assert sum(p.rows for p in editor.plan("a cat", record="none")) == 190


def test_first_and_later_edits_are_as_fresh_ones(editor: Editor, image: Array) -> None:
    inversion = editor.invert(image, STEPS)
    prompts = [f"a cat {number}" for number in range(10)]
    many = [editor.edit_latents(inversion, prompt, record="exact") for prompt in prompts]
    for number in (0, 9):
        fresh = editor.edit_latents(editor.invert(image, STEPS), prompts[number], record="exact")
        np.testing.assert_array_equal(many[number], fresh)
        plain = editor.edit_latents(inversion, prompts[number], record="none")
        assert close(many[number], plain)
    assert not close(many[0], many[9])


def test_larger_fraction_records_only_what_is_missing(editor: Editor, meter: MeteredBackend, image: Array) -> None:
    inversion = editor.invert(image, STEPS)
    meter.take()
    editor.edit_latents(inversion, "a cat", replace_fraction=0.4, record="exact")
    assert rows_by_graph(meter.take())["record"] == 4
    got = editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="exact")
    assert rows_by_graph(meter.take())["record"] == 6
    assert close(got, editor.edit_latents(inversion, "a cat", replace_fraction=1.0, record="none"))


@pytest.mark.parametrize("kept", [0, 3, 8])
def test_budget(tiny_bundle: Path, meter: MeteredBackend, image: Array, kept: int) -> None:
    size = record_row_bytes(Editor.load(tiny_bundle, meter).manifest, 16, 16)
    assert size == 4 * (3 * 256 * 16 + 64 * 32), "three layers of 256 tokens x 16 channels, one of 64 x 32, float32"
    editor = Editor.load(tiny_bundle, meter, limits=Limits(record_bytes=kept * size + size // 2))
    inversion = editor.invert(image, STEPS)
    meter.take()
    got = editor.edit_latents(inversion, "a cat", record="exact")
    assert inversion.record_bytes == kept * size
    rows = rows_by_graph(meter.take())
    assert rows.get("record", 0) == kept
    assert rows.get("step_recorded", 0) == 2 * kept
    assert rows["step"] == 3 * (REPLACED - kept) + 2 * (STEPS - REPLACED)
    assert close(got, editor.edit_latents(inversion, "a cat", record="none"))


def test_smaller_budget_later_drops_the_record(tiny_bundle: Path, meter: MeteredBackend, image: Array) -> None:
    editor = Editor.load(tiny_bundle, meter)
    inversion = editor.invert(image, STEPS)
    editor.edit_latents(inversion, "a cat", record="exact")
    small = Editor.load(tiny_bundle, meter, limits=Limits(record_bytes=inversion.record_bytes // 2))
    got = small.edit_latents(inversion, "a cat", record="exact")
    assert inversion.record_bytes <= small.limits.record_bytes
    assert close(got, editor.edit_latents(inversion, "a cat", record="none"))


def test_chunks_do_not_change_results(tiny_bundle: Path, meter: MeteredBackend, image: Array) -> None:
    prompts = ["a red cat", "a dog", "a blue dog", "a photo"]
    editor = Editor.load(tiny_bundle, meter)
    inversion = editor.invert(image, STEPS)
    whole = editor.edit_latents(inversion, prompts, record="exact")
    for mode in ("exact", "none"):
        for rows in (3, 5, 7):
            small = Editor.load(tiny_bundle, meter, limits=Limits(rows=rows))
            got = small.edit_latents(inversion, prompts, record=mode)
            assert got.shape == whole.shape
            for mine, want in zip(got, whole, strict=True):
                assert close(mine, want)
            plans = small.plan(prompts, record=mode, inversion=inversion)
            assert max(len(step.rows) for plan in plans for step in plan.steps) <= rows


def test_edits_of_a_generated_image_equal_synthesis(tiny_bundle: Path, meter: MeteredBackend) -> None:
    editor = Editor.load(tiny_bundle, meter)
    targets = ["a dog", "a blue cat"]
    joint = editor.synthesize_latents("a cat", targets, editor.noise(2), steps=STEPS)
    source = editor.generate("a cat", seed=2, steps=STEPS)
    assert close(source.trajectory[0], joint[:1])
    for mode in ("exact", "none"):
        later = editor.edit_latents(source, targets, record=mode)
        for mine, want in zip(later, joint[1:], strict=True):
            assert close(mine, want)
    apart = Editor.load(tiny_bundle, meter, limits=Limits(rows=4))
    assert close(apart.synthesize_latents("a cat", targets, editor.noise(2), steps=STEPS), joint)


def test_approximate_mode(editor: Editor, meter: MeteredBackend, image: Array) -> None:
    inversion = editor.invert(image, STEPS, record="inversion")
    assert rows_by_graph(meter.take()) == {"step_recording": STEPS}
    got = editor.edit_latents(inversion, "a cat", record="inversion")
    rows = rows_by_graph(meter.take())
    assert sum(rows.values()) == 2 * STEPS
    assert rows["step_recorded"] == 2 * REPLACED
    exact = editor.edit_latents(inversion, "a cat", record="exact")
    assert not close(got, exact), "it is another computation"
    # What it is, by another path: the exact mode, recorded from latents one level cleaner at the same timesteps.
    cleaner = np.concatenate([inversion.trajectory[:1], inversion.trajectory[:-1]])
    embeddings = editor.pipeline.embed(("",))
    schedule = editor.pipeline.schedule(STEPS)
    record = recording.Record()
    for made in records.choose_passes((), range(STEPS, 0, -1), schedule, STEPS):
        record.append(made, recording.run_record_pass(editor.pipeline.graphs, made, cleaner, embeddings))
    inversion.records[records.EXACT] = record
    assert close(got, editor.edit_latents(inversion, "a cat", record="exact"))


def test_approximate_mode_needs_its_inversion(editor: Editor, image: Array) -> None:
    inversion = editor.invert(image, STEPS)
    with pytest.raises(UsageError, match="record='inversion'"):
        editor.edit_latents(inversion, "a cat", record="inversion")


def test_modes_that_are_not_possible(editor: Editor, image: Array) -> None:
    inversion = editor.invert(image, 2)
    with pytest.raises(UsageError, match="unknown record mode"):
        editor.edit_latents(inversion, "a cat", record="maps")
    with pytest.raises(UsageError, match="cross-attention"):
        editor.edit_latents(inversion, "a cat", record="exact", replace_cross_layers=[1])


def test_saved_inversion_gives_the_same_edit(editor: Editor, image: Array, tmp_path: Path) -> None:
    inversion = editor.invert(image, STEPS)
    want = editor.edit_latents(inversion, "a cat", record="exact")
    for name, with_records in (("plain", False), ("full", True)):
        path = tmp_path / f"{name}.inversion"
        inversion.save(path, with_records)
        loaded = Inversion.load(path)
        assert (loaded.steps, loaded.prompt) == (STEPS, "")
        np.testing.assert_array_equal(loaded.trajectory, inversion.trajectory)
        assert loaded.record_bytes == (inversion.record_bytes if with_records else 0)
        np.testing.assert_array_equal(editor.edit_latents(loaded, "a cat", record="exact"), want)


def test_saved_records_are_used(editor: Editor, meter: MeteredBackend, image: Array, tmp_path: Path) -> None:
    inversion = editor.invert(image, STEPS)
    editor.edit_latents(inversion, "a cat", record="exact")
    inversion.save(tmp_path / "i", records=True)
    meter.take()
    editor.edit_latents(Inversion.load(tmp_path / "i"), "a dog", record="exact")
    rows = rows_by_graph(meter.take())
    assert "record" not in rows and rows["step_recorded"] == 2 * REPLACED


def test_another_bundles_inversion_is_refused(editor: Editor, image: Array) -> None:
    inversion = editor.invert(image, 2)
    inversion.bundle_sha256 = "0" * 64
    with pytest.raises(InversionError, match="another bundle"):
        editor.edit_latents(inversion, "a cat")


def test_damaged_files_are_refused(editor: Editor, image: Array, tmp_path: Path) -> None:
    inversion = editor.invert(image, 3)
    editor.edit_latents(inversion, "a cat", record="exact")
    path = tmp_path / "i"
    inversion.save(path, records=True)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(data[:8], "little") + 8
    places = [*range(0, header, 7), *rng.integers(header, len(data), 200).tolist()]
    refused = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        refused += not survives(path, bytes(changed), inversion)
    assert refused > 0.9 * len(places)
    for size in [0, 1, 7, 8, header - 1, header, *rng.integers(0, len(data), 50).tolist()]:
        assert not survives(path, data[:size], inversion), size
    assert not survives(path, data + b"\0", inversion)
    with pytest.raises(InversionError):
        Inversion.load(tmp_path / "missing")


def survives(path: Path, data: bytes, original: Inversion) -> bool:
    """False if ``data`` is refused; if it is not, it must be the same inversion (padding, say, was changed)."""
    path.write_bytes(data)
    try:
        loaded = Inversion.load(path)
    except InversionError as error:
        assert str(path) in str(error)
        return False
    np.testing.assert_array_equal(loaded.trajectory, original.trajectory)
    assert (loaded.steps, loaded.prompt, loaded.bundle_sha256) == (
        original.steps,
        original.prompt,
        original.bundle_sha256,
    )
    for mode, record in original.records.items():
        assert loaded.records[mode].passes == record.passes
        for mine, want in zip(loaded.records[mode].rows, record.rows, strict=True):
            for name, array in want.items():
                np.testing.assert_array_equal(mine[name].numpy(), array.numpy())
    return True


def stable_diffusion_15(manifest: Manifest) -> Manifest:
    """The same with Stable Diffusion 1.5's layers in half precision."""
    shapes = [(4096, 320, 0)] * 2 + [(1024, 640, 1)] * 2 + [(256, 1280, 2)] * 2 + [(64, 1280, 3)]
    shapes += [(256, 1280, 2)] * 3 + [(1024, 640, 1)] * 3 + [(4096, 320, 0)] * 3
    layers = tuple(
        LayerSpec(n, f"layer {n}", level, tokens, 8, channels, 3 <= n <= 13, 3 <= n <= 13)
        for n, (tokens, channels, level) in enumerate(shapes, 1)
    )
    return replace(manifest, layers=layers, precision="float16")


def test_record_bytes_at_stable_diffusion_15s_size(editor: Editor) -> None:
    """Half of the 20 MB that q and k would take: one tensor of C channels a layer."""
    manifest = stable_diffusion_15(editor.manifest)
    expected = 2 * (5 * 1024 * 640 + 5 * 256 * 1280 + 64 * 1280)
    assert record_row_bytes(manifest, 64, 64) == expected == 9_994_240


@pytest.mark.parametrize(("side", "rows"), [(64, 4), (96, 2), (128, 1), (256, 1)])
def test_record_batch_is_bounded_in_bytes_and_what_engines_are_built_for(editor: Editor, side: int, rows: int) -> None:
    """At Stable Diffusion 1.5's sizes a row at 512x512 has 10 MB, and four times as many pixels four times as many."""
    manifest = stable_diffusion_15(editor.manifest)
    assert record_rows(manifest, side, side) == rows
    size = record_row_bytes(manifest, side, side)
    assert rows == 1 or rows * size <= RECORD_PASS_BYTES
    for sizes in (
        batches_to_sizes(manifest, [Batch(2, 1)], (side, side)),
        usual_sizes(manifest, [(side, side)], limits=Limits(pixels=1 << 40)),
    ):
        for graph, name in (("record", "rows"), ("step_recorded", "record_rows")):
            assert [each[name] for each in sizes[graph]] == [rows]
