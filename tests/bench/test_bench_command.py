"""``freeprompt bench``: what it counts, prints, writes and refuses. Never how long anything took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freeprompt import Editor
from freeprompt.benchreport import comparison_to_text, differences, read_report
from freeprompt.clibench import BenchSettings, run_bench
from freeprompt.errors import UsageError
from tests.cli_runner import assert_fails, call

Capture = pytest.CaptureFixture[str]
FIGURES = {"load", "encode", "invert", "record", "first edit", "text", "denoise", "decode", "further edit", "row"}


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> dict[str, Any]:
    settings = BenchSettings(edits=2, steps=5, prompts=3)
    return run_bench(lambda: Editor.load(tiny_bundle, "cpu", threads=1), settings, threads=1)


def test_every_figure_is_there_with_its_samples(report: dict[str, Any]) -> None:
    assert set(report["samples"]) == FIGURES | {"3 prompts"}
    assert all(len(samples) == 2 for samples in report["samples"].values())
    assert set(report["summary"]) == set(report["samples"]) | {"step"}
    assert report["summary"]["step"]["count"] == 2 * 5
    assert report["memory"]["host_peak_bytes"] > 10_000_000
    assert report["threads"]["threads"] == 1
    assert report["machine"]["cores"] >= 1
    assert {"python", "numpy", "freeprompt"} <= set(report["versions"])
    json.dumps(report)


def test_parts_are_within_the_whole(report: dict[str, Any]) -> None:
    for samples in zip(*(report["samples"][n] for n in ("encode", "invert", "record", "first edit"))):
        *parts, whole = samples
        assert 0 < sum(parts) < whole


def test_rows_executed_are_the_predicted_ones(report: dict[str, Any]) -> None:
    rows = report["rows"]
    assert rows["first edit"]["executed"] == {"step": 5 + 2, "record": 4, "step_recorded": 8}
    assert rows["further edit"]["executed"] == {"step_recorded": 8, "step": 2}
    assert rows["3 prompts"]["total"] == 30
    for each in rows.values():
        assert each["total"] == each["predicted"]


@pytest.mark.parametrize("record", ["none", "inversion"])
def test_other_modes_are_counted_too(tiny_bundle: Path, record: str) -> None:
    settings = BenchSettings(edits=1, steps=5, prompts=1, record=record)
    found = run_bench(lambda: Editor.load(tiny_bundle, "cpu", threads=1), settings)
    assert "record" not in found["samples"]
    totals = {"none": (5 + 14, 14), "inversion": (5 + 10, 10)}[record]
    assert tuple(found["rows"][name]["total"] for name in ("first edit", "further edit")) == totals
    assert all(each["total"] == each["predicted"] for each in found["rows"].values())


def test_command_prints_writes_and_compares(tmp_path: Path, tiny_bundle: Path, capsys: Capture) -> None:
    options = ("--bundle", tiny_bundle, "--threads", 1, "--edits", 1, "--steps", 2, "--prompts", 2, "--quiet")
    outcome = call(capsys, "bench", *options, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert outcome.code == 0, outcome.err
    for word in ("p99", "further edit", "2 prompts", "peak memory", "onnxruntime", "threads: 1", "rows executed"):
        assert word in outcome.out
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert read_report(tmp_path / "a.json")["settings"]["steps"] == 2
    outcome = call(capsys, "bench", *options, "--compare", tmp_path / "a.json")
    assert outcome.code == 0, outcome.err
    assert "unclear" in outcome.out or "same" in outcome.out
    assert "not alike" not in outcome.out


def test_what_differs_besides_time_is_told(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    assert differences(changed, report) == []
    changed["settings"]["steps"] = 7
    changed["threads"]["threads"] = 2
    assert len(differences(changed, report)) == 2
    assert "settings.steps 7 -> 5" in comparison_to_text(changed, report)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "freeprompt bench", "format": 99, "samples": {}}', "\0"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(UsageError, match="not a result"):
        read_report(tmp_path / "old.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "missing.json")


def test_wrong_use_is_told_before_the_work(tmp_path: Path, tiny_bundle: Path, capsys: Capture) -> None:
    for wrong in (
        ("--steps", 0),
        ("--edits", 0),
        ("--json", tmp_path / "a.txt"),
        ("--plot", tmp_path / "a.txt"),
        ("--compare", tmp_path / "missing.json"),
        ("--size", "63x64"),
        ("--record", "exact", "--replace-fraction", 2),
    ):
        assert_fails(call(capsys, "bench", "--bundle", tiny_bundle, *wrong), 2)
