"""The rule that tells a slower build from noise: checked by counting, and by how often it is wrong."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest

from freeprompt.bench.statistics import (
    FALSE_ALARMS,
    Comparison,
    compare,
    drift,
    holm,
    least_p,
    mann_whitney,
    needed,
    needed_of_both,
    percentile,
    summarise,
)


def compare_one(old: Sequence[float], new: Sequence[float]) -> Comparison:
    (found,) = compare({"a": old}, {"a": new})
    return found


def test_percentiles_and_spread() -> None:
    summary = summarise([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (summary.p50, summary.least, summary.most, summary.mad) == (3.0, 1.0, 100.0, 1.0)
    assert percentile([0.0, 1.0], 0.9) == pytest.approx(0.9)
    assert percentile([5.0], 0.99) == 5.0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (4, 4), (5, 3)])
def test_mann_whitney_counts_orderings(n: int, m: int) -> None:
    """Against the definition: over all ways to give n of n + m ranks to the first sample."""
    ranks = range(n + m)

    def evenness(first: tuple[int, ...]) -> int:
        second = [rank for rank in ranks if rank not in first]
        u = sum(b > a for a in first for b in second)
        return min(u, n * m - u)

    ways = list(itertools.combinations(ranks, n))
    for first in ways:
        second = [rank for rank in ranks if rank not in first]
        as_uneven = sum(evenness(way) <= evenness(first) for way in ways) / len(ways)
        assert mann_whitney(first, second) == pytest.approx(as_uneven)


def test_mann_whitney_of_many_and_of_ties() -> None:
    generator = random.Random(1)
    first = [generator.gauss(0, 1) for _ in range(60)]
    assert mann_whitney(first, [x + 2 for x in first]) < 1e-6
    assert mann_whitney(first, first[::-1]) > 0.9
    assert mann_whitney([1.0] * 9, [1.0] * 9) == 1.0
    assert mann_whitney([1.0] * 30, [2.0] * 30) < 1e-6


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Ten figures of heavy-tailed noise without change: at most one run in a hundred may flag any."""
    generator = random.Random(2)

    def run() -> dict[str, list[float]]:
        return {str(n): [generator.lognormvariate(0, 0.2) for _ in range(10)] for n in range(10)}

    flagged = sum(any(one.verdict in ("slower", "faster") for one in compare(run(), run())) for _ in range(300))
    assert flagged <= 6


def test_a_change_beyond_the_noise_is_found() -> None:
    generator = random.Random(3)
    old = [generator.gauss(1, 0.02) for _ in range(12)]
    assert compare_one(old, [1.2 * x for x in old]).verdict == "slower"
    assert compare_one(old, [0.8 * x for x in old]).verdict == "faster"
    assert compare_one(old, [1.01 * x for x in old]).verdict == "same"


def test_a_drifting_run_is_not_trusted_with_small_changes() -> None:
    old = [1.0 + 0.001 * n for n in range(10)]
    warming = [1.0] * 2 + [1.2] * 8
    assert drift(warming) == 0.0, "its halves have the same median"
    cooling = [1.25] * 5 + [1.1] * 5
    assert drift(cooling) > 0.1
    assert compare_one(old, cooling).verdict == "same"


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """By the definition: a figure is found if dividing by their number finds every set of figures that holds it."""
    generator = random.Random(4)
    for count in (1, 2, 3, 5):
        values = [generator.random() ** 3 for _ in range(count)]
        sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
        for index, found in enumerate(holm(values)):
            worst = max(min(1.0, len(s) * min(values[i] for i in s)) for s in sets if index in s)
            assert found == pytest.approx(worst)
    assert holm([]) == []


def test_samples_of_another_order_cannot_hide_behind_ties_or_numbers() -> None:
    """The least p is that of samples that do not overlap, exact for few as for many."""
    for n, m in ((2, 2), (5, 5), (7, 7), (3, 60), (12, 12)):
        low, high = [float(x) for x in range(n)], [100.0 + x for x in range(m)]
        assert mann_whitney(low, high) == pytest.approx(least_p(n, m)) == pytest.approx(2 / math.comb(n + m, n))


@pytest.mark.parametrize("figures", [1, 10, 11])
def test_what_is_needed_is_enough_and_one_less_is_not(figures: int) -> None:
    """Judged by the comparison itself, of samples ten times as long."""

    def verdicts(before: int, after: int) -> set[str]:
        old = {str(figure): [1.0 + 0.001 * n for n in range(before)] for figure in range(figures)}
        new = {str(figure): [10.0 + 0.001 * n for n in range(after)] for figure in range(figures)}
        return {one.verdict for one in compare(old, new)}

    for before in (3, 5, 10, 20):
        after = needed(before, figures)
        assert after is not None
        assert (verdicts(before, after), verdicts(before, after - 1)) == ({"slower"}, {"unclear"})
    both = needed_of_both(figures)
    assert (verdicts(both, both), verdicts(both - 1, both - 1)) == ({"slower"}, {"unclear"})
    if figures > 1:
        assert both == 7 and needed(1, figures) is None
        assert least_p(5, 5) * figures > FALSE_ALARMS, "five edits are too few"


def test_a_large_change_that_is_not_certain_is_unclear() -> None:
    old = [1.0 + 0.01 * n for n in range(10)]
    assert compare_one(old, [0.9, 1.25, 1.3, 0.95, 1.27, 1.31, 0.92, 1.26, 1.29, 1.28]).verdict == "unclear"


def test_nothing_in_common() -> None:
    assert compare({"a": [1.0]}, {"b": [1.0]}) == []
    assert compare_one([1.0], [1.0]).verdict == "unclear", "one sample shows no likeness either"


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])
