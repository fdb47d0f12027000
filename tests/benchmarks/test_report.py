"""The committed report says what the committed data say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu.report import write_report
from benchmarks.full_size.engine_table import engine_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text(encoding="utf-8"))
    return data


def test_report_is_made_from_the_data_beside_it(results: dict[str, Any]) -> None:
    assert (ROOT / "benchmarks" / "REPORT.md").read_text(encoding="utf-8") == write_report(results)


def test_rows_executed_are_rows_predicted(results: dict[str, Any]) -> None:
    """And the method's own counts: 190 rows in one engine at 50 steps, 100 for a further edit."""
    rows = results["parts"]["rows"]
    assert all(one["total"] == one["predicted"] for one in rows["result"])
    if rows["steps"] == 50:
        found = {(one["record"], one["what"]): one["total"] for one in rows["result"]}
        assert found["none", "first edit"] == 190 and found["exact", "further edit"] == 100


def test_engines_in_a_table() -> None:
    built = {"kind": "exact shapes", "graph": "step", "shapes": "rows 3", "seconds": 19.54, "warnings": ["w", "x"]}
    lines = engine_table(
        [
            {**built, "peak_memory_bytes": 5_500_000_000, "engine_bytes": 1_740_000_000},
            {"kind": "range of shapes", "graph": "record", "error": "no memory"},
        ]
    )
    assert lines[2] == "| step | rows 3 | 19.5 | 5.50 | 1740.0 | w; x |"
    assert lines[3] == "| record | range of shapes | not built: no memory | | | |"
    assert {line.count("|") for line in lines} == {7}
