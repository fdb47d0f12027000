"""The committed report says what the committed data say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu.report import write_report

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
