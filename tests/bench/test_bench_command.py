"""``freeprompt bench``: what it counts, prints, writes and refuses. Never how long anything took."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from freeprompt import Editor
from freeprompt.bench.measure import BenchSettings, run_bench
from freeprompt.bench.report import MAX_BYTES, comparison_to_text, differences, read_report, too_few
from freeprompt.bench.statistics import FALSE_ALARMS, least_p
from freeprompt.cli import build_parser
from freeprompt.contract.errors import Cancelled, UsageError
from tests.cli.runner import assert_fails, call
from tests.test_readme import ROOT, commands

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


@pytest.mark.parametrize("calls", [1, 3, 7 + 4])
def test_a_run_is_ended_from_outside(tiny_bundle: Path, calls: int) -> None:
    """While graphs are opened (6 of them), and between the steps of an inversion."""
    left = [calls]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        run_bench(lambda: Editor.load(tiny_bundle, "cpu", threads=1), BenchSettings(edits=1, steps=9), check=check)
    assert left == [0]


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
    assert "unclear" in outcome.out
    assert "not alike" not in outcome.out
    advice = "1 edits against the old run's 1 cannot show a difference at this level: make the old run again, both with"
    assert outcome.err.startswith(f"freeprompt: warning: {advice} --edits 7 or more")
    assert advice in outcome.out.splitlines()[-1]


def test_what_differs_besides_time_is_told(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    assert differences(changed, report) == []
    changed["settings"]["steps"] = 7
    changed["threads"]["threads"] = 2
    assert len(differences(changed, report)) == 2
    assert "settings.steps 7 -> 5" in comparison_to_text(changed, report)


HEAD = '"machine": {}, "threads": {}, "bundle": {}, "settings": {}'
GOOD = f'{{"kind": "freeprompt bench", "format": 1, "samples": {{"a": [1, 2.5]}}, {HEAD}}}'
DAMAGED = {
    "empty": "",
    "a list": "[]",
    "an empty object": "{}",
    "a NUL": "\0",
    "cut": GOOD[:-9],
    "of another kind": GOOD.replace("freeprompt bench", "other"),
    "of another format": GOOD.replace('"format": 1', '"format": 99'),
    "nested deeply": "[" * 200_000,
    "nested deeply within": GOOD.replace('"machine": {}', '"machine": ' + '{"a": ' * 100_000),
    "not numbers": GOOD.replace("[1, 2.5]", '["1"]'),
    "text for samples": GOOD.replace("[1, 2.5]", '"12"'),
    "no number": GOOD.replace("2.5", "NaN"),
    "endless": GOOD.replace("2.5", "1e999"),
    "absurd": GOOD.replace("2.5", "1e300"),
    "before it began": GOOD.replace("2.5", "-2.5"),
    "a list for a machine": GOOD.replace('"machine": {}', '"machine": []'),
    "text for a device": GOOD.replace('"threads"', '"device": "gpu", "threads"'),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_other_files_are_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "old.json").write_text(DAMAGED[damage])
    with pytest.raises(UsageError, match="not a result"):
        read_report(tmp_path / "old.json")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(GOOD)
    assert read_report(tmp_path / "good.json")["samples"] == {"a": [1, 2.5]}
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (tmp_path / "missing.json", tmp_path, pipe, Path("/dev/zero"), tmp_path / "nul\0.json"):
        with pytest.raises(UsageError, match="cannot read"):
            read_report(path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(UsageError, match="not a result"):
        read_report(tmp_path / "huge.json")


def test_too_few_edits_are_told_with_how_many_it_takes(report: dict[str, Any]) -> None:
    old = {**report, "samples": {str(n): [1.0] * 5 for n in range(11)}}
    said = "5 edits against the old run's 5 cannot show a difference at this level: use --edits 10 or more, or "
    assert too_few(old, 5) == f"{said}make the old run again, both with --edits 7 or more"
    assert too_few(old, 9) is not None and too_few(old, 10) is None
    enough = {**report, "samples": {str(n): [1.0] * 20 for n in range(11)}}
    assert too_few(enough, 3) == (
        "3 edits against the old run's 20 cannot show a difference at this level: use --edits 4 or more"
    )
    assert "no figure" in str(too_few({**report, "samples": {}}, 10))
    assert "no figure" in comparison_to_text({**report, "samples": {"other": [1.0]}}, report)


def test_a_terminal_obeys_nothing_that_a_file_says(report: dict[str, Any]) -> None:
    old = json.loads(json.dumps(report))
    old["machine"]["processor"] = "\x1b[2Jfast\n"
    old["samples"] = {"\x1b[31mrow": [1.0]}
    new = {**report, "samples": {"\x1b[31mrow": [1.0]}}
    text = comparison_to_text(old, new)
    assert "\x1b" not in text and "\\x1b[2Jfast\\n" in text and "\\x1b[31mrow" in text


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


def test_what_the_readme_shows_can_show_a_difference() -> None:
    text = (ROOT / "README.md").read_text()
    shown = [build_parser().parse_args(words) for words in commands(text, "freeprompt") if words[0] == "bench"]
    edits = [arguments.edits for arguments in shown]
    # Eleven figures, with the default prompts and record.
    assert edits and all(least_p(n, m) * 11 <= FALSE_ALARMS for n in edits for m in edits)
