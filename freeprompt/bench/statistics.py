"""Statistics of timings: summaries of one run, and whether two runs differ by more than noise.

The rule of ``compare``: a figure has changed if both hold,

1. a two-sided Mann-Whitney test of its samples gives p <= ``FALSE_ALARMS`` after Holm's correction for the number of
   figures compared. The test assumes nothing about the shape of the distributions, and outliers weigh no more than any
   other sample; the correction holds the chance that *any* of the figures is flagged without cause at
   ``FALSE_ALARMS``, however they depend on each other, and finds at least as much as dividing by their number does;
2. the medians differ by more than ``LEAST_CHANGE``, and by more than twice the drift seen within either run: the
   difference between the medians of its first and second half. The samples of one process share its memory layout,
   clock and neighbours, so that a test on samples alone would flag differences between runs of one build.

A figure of which only one holds is "unclear", and so is every figure with too few samples to reach that p whatever they
are: 5 against 5 have at least p = 2/252. ``needed`` says how many it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FALSE_ALARMS = 0.01
LEAST_CHANGE = 0.03
# Above this many samples the normal approximation is as good as counting.
_EXACT = 100
# Against fewer samples than make do with so many, it is the other run that has to be repeated.
_MOST_NEEDED = 100


@dataclass(frozen=True)
class Summary:
    """Samples of one figure: percentiles, and the median absolute deviation from the median as spread."""

    count: int
    p50: float
    p90: float
    p99: float
    mean: float
    least: float
    most: float
    mad: float


def summarise(samples: Sequence[float]) -> Summary:
    """Raises ValueError for no samples."""
    if not samples:
        raise ValueError("no samples")
    middle = median(samples)
    return Summary(
        len(samples),
        middle,
        percentile(samples, 0.9),
        percentile(samples, 0.99),
        sum(samples) / len(samples),
        min(samples),
        max(samples),
        median([abs(sample - middle) for sample in samples]),
    )


def percentile(samples: Sequence[float], part: float) -> float:
    """Linear interpolation between the two nearest samples."""
    ordered = sorted(samples)
    place = part * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Comparison:
    """One figure in two runs.

    Attributes:
        change: of the median, relative to the old one; positive is slower.
        noise: change below which nothing is flagged.
        p: of the Mann-Whitney test, corrected for the figures compared with it.
        verdict: "slower", "faster", "same" (within the noise) or "unclear" (beyond it and not certain, or too few
            samples).
    """

    name: str
    old: float
    new: float
    change: float
    noise: float
    p: float
    verdict: str


def compare(old: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Compare the figures that both runs have; see the module's rule."""
    names = [name for name in old if len(old[name]) and len(new.get(name, ()))]
    corrected = holm([mann_whitney(old[name], new[name]) for name in names])
    return [_compare_one(name, old[name], new[name], p, len(names)) for name, p in zip(names, corrected)]


def _compare_one(name: str, old: Sequence[float], new: Sequence[float], p: float, figures: int) -> Comparison:
    before, after = median(old), median(new)
    change = after / before - 1.0 if before else 0.0
    noise = max(LEAST_CHANGE, 2 * drift(old), 2 * drift(new))
    if least_p(len(old), len(new)) * figures > FALSE_ALARMS:
        verdict = "unclear"
    elif abs(change) <= noise:
        verdict = "same"
    elif p > FALSE_ALARMS:
        verdict = "unclear"
    else:
        verdict = "slower" if change > 0 else "faster"
    return Comparison(name, before, after, change, noise, p, verdict)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected: with nothing to be found, any is at most alpha with probability alpha."""
    corrected = [1.0] * len(values)
    reached = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        reached = max(reached, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = reached
    return corrected


def least_p(first: int, second: int) -> float:
    """The least p of so many samples: where every one of the first is below every one of the second, or above."""
    return min(1.0, 2 / math.comb(first + second, first))


def needed(other: int, figures: int) -> int | None:
    """Fewest samples of a run that can show a difference from one with ``other`` samples, over so many figures.

    None: more than is worth it, since the other run has too few.
    """
    able = (n for n in range(1, _MOST_NEEDED + 1) if least_p(n, other) * figures <= FALSE_ALARMS)
    return next(able, None)


def needed_of_both(figures: int) -> int:
    """Fewest samples of two runs alike that can show a difference, over so many figures."""
    return next(n for n in range(1, _MOST_NEEDED + 1) if least_p(n, n) * figures <= FALSE_ALARMS)


def drift(samples: Sequence[float]) -> float:
    """How much the median moved between the first and the second half of a run, relative to the whole; 0 below six."""
    half = len(samples) // 2
    middle = median(samples)
    if half < 3 or not middle:
        return 0.0
    return abs(median(samples[half:]) - median(samples[:half])) / middle


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p: how often samples of one distribution would be ordered as unevenly as these two."""
    n, m = len(first), len(second)
    # U counts the pairs in which the second is larger; ties count half.
    u = sum((b > a) + 0.5 * (b == a) for a in first for b in second)
    if n + m <= _EXACT and len({*first, *second}) == n + m:
        counts = _orderings(n, m)
        extreme = int(min(u, n * m - u))
        return min(1.0, 2 * sum(counts[: extreme + 1]) / math.comb(n + m, n))
    ties = [0.0] + [float(c) for c in _multiplicities((*first, *second))]
    total = n + m
    spread = math.sqrt(n * m / 12 * (total + 1 - sum(t**3 - t for t in ties) / (total * (total - 1))))
    if spread == 0:
        return 1.0
    z = (abs(u - n * m / 2) - 0.5) / spread
    return min(1.0, math.erfc(z / math.sqrt(2)))


def _orderings(n: int, m: int) -> list[int]:
    """How many orderings of n and m distinct values give U = 0, 1, ..., n * m."""
    # The coefficients of the Gaussian binomial: a product of (1 - q^(m+i)) / (1 - q^i).
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for power in range(n * m, m + i - 1, -1):
            counts[power] -= counts[power - m - i]
        for power in range(i, n * m + 1):
            counts[power] += counts[power - i]
    return counts


def _multiplicities(values: Sequence[float]) -> list[int]:
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return list(counts.values())
