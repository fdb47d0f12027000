"""What is decided about records, and that nothing is decided after a plan is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import Manifest
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime.execute import StepResult
from freeprompt.runtime.pipeline import Observer
from freeprompt.runtime.plan import records
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.plan import Plan, RecordPass
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.plan.settings import EditSettings
from tests.cli.runner import call

PICTURE = np.zeros((64, 64, 3), np.uint8)
ROW = 4 * (3 * 256 * 16 + 64 * 32)  # bytes recorded by the tiny model: tests/runtime/source/test_recording.py
SETTINGS = EditSettings(7.5, 0.8, "", (1, 2))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Editor.load(tiny_bundle, FakeBackend(), verify=False).manifest


def without_records(manifest: Manifest) -> Manifest:
    graphs = {name: graph for name, graph in manifest.graphs.items() if "record" not in name}
    return replace(manifest, graphs=graphs, layers=tuple(replace(layer, recordable=False) for layer in manifest.layers))


@pytest.mark.parametrize(
    ("mode", "again", "possible", "expected"),
    [
        ("auto", True, True, "exact"),
        ("auto", False, True, "none"),
        ("auto", True, False, "none"),
        ("auto", False, False, "none"),
        # What was asked for is done, whatever would pay.
        ("exact", False, True, "exact"),
        ("none", True, True, "none"),
        ("none", True, False, "none"),
        ("inversion", False, True, "inversion"),
    ],
)
def test_auto_records_where_it_pays_and_can(
    manifest: Manifest, mode: str, again: bool, possible: bool, expected: str
) -> None:
    known = manifest if possible else without_records(manifest)
    assert records.choose_mode(mode, known, SETTINGS, further_edits=again) == expected


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("mode", ["exact", "inversion", "always"])
def test_what_cannot_be_recorded_is_refused(manifest: Manifest, mode: str, again: bool) -> None:
    with pytest.raises(UsageError, match=r"is not possible|unknown record mode"):
        records.choose_mode(mode, without_records(manifest), SETTINGS, again)


def test_the_editor_says_what_a_mode_comes_to(tiny_bundle: Path) -> None:
    editor = Editor.load(tiny_bundle, FakeBackend(), verify=False)
    found = editor.record_mode(), editor.record_mode("auto", False), editor.record_mode("exact", False)
    assert found == ("exact", "none", "exact")
    assert editor.record_mode(replace_cross_layers=[1]) == "none"
    with pytest.raises(UsageError, match="unknown layer '99'"):
        editor.record_mode(replace_layers="99")


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        (("a cat",), False),
        (("a cat", "a dog"), True),
        (("a cat", "--save-inversion", "x.inversion"), True),
        (("a cat", "--record", "exact"), True),
        (("a cat", "a dog", "--record", "none"), False),
    ],
)
def test_the_command_line_says_whether_a_source_is_edited_again(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], recorded: bool
) -> None:
    outcome = call(capsys, "edit", "x.png", *options, "--bundle", tiny_bundle, "--backend", "cpu", "--plan")
    assert outcome.code == 0, outcome.err
    assert ("  record: " in outcome.out) == recorded


def watch(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that are run, as the pipeline's observers are told of them."""
    seen: list[Plan] = []

    def watching(*given: Any) -> Observer:
        def observer(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
            if number == 1:
                seen.append(plan)

        return observer

    monkeypatch.setattr("freeprompt.model.callback_to_observer", watching)
    return seen


@pytest.mark.parametrize("mode", ["none", "exact", "inversion", "auto"])
@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(rows=5),
        Limits(record_bytes=9 * ROW, device_record_bytes=5 * ROW),
        Limits(record_bytes=9 * ROW, device_record_bytes=0),
        Limits(device_record_bytes=6 * ROW),
    ],
)
def test_what_is_run_is_what_was_planned(
    tiny_bundle: Path, mode: str, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, passes and what of them stays on the device included, before an inversion and after."""
    editor = Editor.load(tiny_bundle, FakeBackend(), verify=False, limits=limits)
    prompts = ["a", "b", "c"]
    planned = editor.plan(prompts, steps=10, record=mode)
    seen = watch(editor, monkeypatch)
    inversion = editor.invert(PICTURE, 10, record=mode)
    first = editor.plan(prompts, inversion=inversion, record=mode)
    editor.edit_latents(inversion, prompts, record=mode)
    assert (*seen,) == planned
    assert planned[1:] == first
    seen.clear()
    further = editor.plan(prompts, inversion=inversion, record=mode)
    editor.edit_latents(inversion, prompts, record=mode)
    assert (*seen,) == further
    assert all(plan.record_rows == 0 for plan in further)


@pytest.mark.parametrize(
    ("device", "budget", "resident"),
    [("gpu", None, 4), ("gpu", 16 * ROW, 4), ("gpu", 12 * ROW, 1), ("gpu", 12 * ROW - 1, 0), ("cpu", 0, 4)],
)
def test_an_edit_says_what_stays_on_the_device(
    tiny_bundle: Path, device: str, budget: int | None, resident: int
) -> None:
    """Four passes of four rows; where not all stay, two are on their way. On the CPU there is nowhere else to be."""
    limits = Limits(device_record_bytes=budget)
    editor = Editor.load(tiny_bundle, FakeBackend(device=device), verify=False, limits=limits)
    inversion, edit = editor.plan("x", steps=20, record="exact")
    assert [len(made.levels) for made in edit.passes] == [4, 4, 4, 4]
    assert (inversion.resident, edit.resident) == (None, resident)


@pytest.mark.parametrize(("budget", "resident"), [(None, 8), (8 * ROW, 8), (8 * ROW - 1, 5), (2 * ROW, 0), (0, 0)])
def test_an_inversion_that_records_says_what_stays_on_the_device(
    tiny_bundle: Path, budget: int | None, resident: int
) -> None:
    """Eight passes of one row; where not all stay, two more are on their way."""
    editor = Editor.load(tiny_bundle, FakeBackend(), verify=False, limits=Limits(device_record_bytes=budget))
    plan, *_ = editor.plan("x", steps=8, record="inversion")
    assert (plan.record_bytes, plan.resident, plan.passes) == (ROW, resident, ())
    assert records.passes_of(plan) == passes(plan.steps[n].next_level for n in range(8))
    inversion = editor.invert(PICTURE, 8, record="inversion")
    assert inversion.records["inversion"].on_device == [n < resident for n in range(8)]


def passes(levels: Iterable[int]) -> tuple[RecordPass, ...]:
    """Timesteps of eight steps of a schedule of 1000, offset by 1."""
    return tuple(RecordPass((level,), (125 * (level - 1) + 1,)) for level in levels)
