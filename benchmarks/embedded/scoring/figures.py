"""Rates and means with the intervals that a few hundred scenes allow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a table with its 95 % interval.

    Attributes:
        value: a rate in 0..1 or a mean.
        low, high: ends of the 95 % interval.
        count: how many scenes it was measured on.
    """

    value: float
    low: float
    high: float
    count: int


def rate(outcomes: Sequence[bool]) -> Figure:
    """Rate of successes with Wilson's interval, which stays sensible near 0 and 1."""
    count = len(outcomes)
    if not count:
        return Figure(math.nan, math.nan, math.nan, 0)
    part = sum(outcomes) / count
    square = Z95**2
    middle = (part + square / (2 * count)) / (1 + square / count)
    spread = Z95 / (1 + square / count)
    spread *= math.sqrt(part * (1 - part) / count + square / (4 * count**2))
    return Figure(part, max(0.0, middle - spread), min(1.0, middle + spread), count)


def mean(values: Sequence[float], seed: int = 0, draws: int = 2000) -> Figure:
    """Mean with a percentile bootstrap interval; the same values give the same interval."""
    if not len(values):
        return Figure(math.nan, math.nan, math.nan, 0)
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(draws, len(array)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(float(array.mean()), float(low), float(high), len(array))
