"""The sweep's file: every setting with its cost and its figures."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks.embedded import sweep
from freeprompt import Editor


def test_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "STEPS", (2, 3))
    out = tmp_path / "made" / "sweep.json"
    monkeypatch.setattr("sys.argv", ["sweep", "--out", str(out), "--scenes", "1"])
    sweep.main()
    assert [path.name for path in out.parent.iterdir()] == ["sweep.json"]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["kind"], found["scenes"]) == ("colour", 1)
    rows = found["rows"]
    assert [(row["steps"], row["fraction"], row["record"]) for row in rows] == [
        (2, 1.0, "auto"),
        (3, 1.0, "auto"),
        (25, 0.8, "auto"),
        (25, 0.4, "auto"),
        (25, 0.0, "auto"),
        (25, 1.0, "inversion"),
    ]
    for row in rows:
        assert row["right"]["count"] == 1 and row["right"]["low"] <= row["right"]["value"] <= row["right"]["high"]


def test_cost() -> None:
    editor = Editor.load("demo", "cpu", threads=1)
    by_fraction = {part.method.fraction: sweep.cost(editor, part) for part in sweep.parts()[5:8]}
    # An inversion row a step, then with guidance two rows a step; a source row for each step that replaces costs more.
    assert by_fraction[0.0] == 3 * 25
    assert 3 * 25 < by_fraction[0.4] < by_fraction[0.8] < 4 * 25
    approximate = sweep.parts()[-1]
    assert approximate.method.reuse and sweep.cost(editor, approximate) == 3 * 25
