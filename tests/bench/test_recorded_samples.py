"""``--compare`` on samples recorded from real runs that took turns: two of one build, one slowed by a fifth."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import median

import pytest

from freeprompt.bench.report import Report, comparison_to_text, read_report
from freeprompt.bench.statistics import compare

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


@pytest.mark.parametrize("edits", [7, 12])
def test_ten_times_as_long_is_slower_in_every_figure(edits: int) -> None:
    old = {name: samples[:edits] for name, samples in recorded("unchanged-1")["samples"].items()}
    ten = {name: [10 * x for x in samples[:edits]] for name, samples in recorded("unchanged-2")["samples"].items()}
    assert {one.verdict for one in compare(old, ten)} == {"slower"}
    assert {one.verdict for one in compare(ten, old)} == {"faster"}


def test_false_alarms_and_found_changes_by_resampling() -> None:
    """Repetitions drawn whole, since the figures of one belong together: the stated rate holds, and a change is found.

    A rate of 1 % gives 300 comparisons 3 alarms; more than 9 come by chance in one of a thousand such tests.
    """
    runs = [recorded(name)["samples"] for name in ("unchanged-1", "unchanged-2")]
    repetitions = [
        {name: values[n] / median(values) for name, values in run.items()}
        for run in runs
        for n in range(len(run["further edit"]))
    ]
    generator = random.Random(5)

    def draw(factor: float = 1.0) -> dict[str, list[float]]:
        drawn = [generator.choice(repetitions) for _ in range(10)]
        # Drawn twice is not measured twice: a hair apart, as no two measured times are equal.
        return {name: [one[name] * factor * generator.gauss(1, 1e-4) for one in drawn] for name in repetitions[0]}

    changed = {"slower", "faster"}
    alarms = sum(not changed.isdisjoint(one.verdict for one in compare(draw(), draw())) for _ in range(300))
    assert alarms <= 9
    found = [{one.name: one.verdict for one in compare(draw(), draw(1.1))} for _ in range(50)]
    assert sum(verdicts["further edit"] == "slower" for verdicts in found) >= 45
