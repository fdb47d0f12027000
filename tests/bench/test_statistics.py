"""The rule that tells a slower build from noise: checked by counting, and by how often it is wrong."""

from __future__ import annotations

import itertools
import random

import pytest

from freeprompt.benchstats import compare, compare_one, drift, mann_whitney, percentile, summarise


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
    assert compare_one("a", old, [1.2 * x for x in old]).verdict == "slower"
    assert compare_one("a", old, [0.8 * x for x in old]).verdict == "faster"
    assert compare_one("a", old, [1.01 * x for x in old]).verdict == "same"


def test_a_drifting_run_is_not_trusted_with_small_changes() -> None:
    old = [1.0 + 0.001 * n for n in range(10)]
    warming = [1.0] * 2 + [1.2] * 8
    assert drift(warming) == 0.0, "its halves have the same median"
    cooling = [1.25] * 5 + [1.1] * 5
    assert drift(cooling) > 0.1
    assert compare_one("a", old, cooling).verdict == "same"


def test_too_few_samples_are_said_to_be_too_few() -> None:
    assert compare_one("a", [1.0, 1.1, 1.0], [2.0, 2.1, 2.0]).verdict == "unclear"
    assert compare({"a": [1.0]}, {"b": [1.0]}) == []


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])
