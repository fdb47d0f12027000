"""``--compare`` on samples recorded from real runs that took turns: two of one build, one slowed by a fifth."""

from __future__ import annotations

from pathlib import Path

import pytest

from freeprompt.benchreport import Report, comparison_to_text, read_report
from freeprompt.benchstats import compare

RECORDED = Path(__file__).parent / "recorded"
# Figures that run no U-Net graph are not slowed.
UNTOUCHED = {"encode", "text", "decode"}


def recorded(name: str) -> Report:
    return read_report(RECORDED / f"{name}.json")


@pytest.mark.parametrize(("old", "new"), [("unchanged-1", "unchanged-2"), ("unchanged-2", "unchanged-1")])
def test_an_unchanged_build_is_not_flagged(old: str, new: str) -> None:
    verdicts = {one.name: one.verdict for one in compare(recorded(old)["samples"], recorded(new)["samples"])}
    assert set(verdicts.values()) == {"same"}, verdicts


@pytest.mark.parametrize("old", ["unchanged-1", "unchanged-2"])
def test_a_slowed_build_is_flagged(old: str) -> None:
    found = compare(recorded(old)["samples"], recorded("slowed")["samples"])
    verdicts = {one.name: one.verdict for one in found}
    assert verdicts["further edit"] == "slower", verdicts
    assert verdicts["row"] == "slower", verdicts
    assert {verdicts[name] for name in UNTOUCHED} == {"same"}, verdicts
    assert "faster" not in verdicts.values()
    back = compare(recorded("slowed")["samples"], recorded(old)["samples"])
    assert {one.name: one.verdict for one in back}["further edit"] == "faster"
    assert "slower" in comparison_to_text(recorded(old), recorded("slowed"))
