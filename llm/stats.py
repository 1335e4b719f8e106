"""Intervals over seeds (t), over prompts within a seed (bootstrap), and what would decide."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MAX_SEEDS = 10_000  # beyond this, "more seeds" is no advice


@dataclass(frozen=True)
class Interval:
    """A two-sided interval around a mean, in the unit of the values. kind: how it was made."""

    low: float
    high: float
    kind: str


def t_interval(per_seed: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean over seeds; None for fewer than two.

    The spread is between seeds, prompts being the same; equal values give an interval of width 0.
    """
    values = _finite(per_seed, "per-seed value")
    _check_level(level)
    n = len(values)
    if n < 2:
        return None
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(mean - half, mean + half, f"{level:.0%} t interval over {n} seeds")


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval | None:
    """Percentile bootstrap interval of mean(a - b) over prompts within one seed; None for < 2.

    a, b: per-prompt values of two methods on the same prompts in the same order. Prompts are drawn
    with replacement; the randomness is that of `seed`.
    """
    first, second = _finite(a, "value of a"), _finite(b, "value of b")
    _check_level(level)
    if len(first) != len(second):
        raise ValueError(f"not paired: {len(first)} and {len(second)} prompts")
    if len(first) < 2:
        return None
    difference, n = first - second, len(first)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 1_000_000 // n)  # bounds the memory of one draw
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = difference[rng.integers(n, size=(rows, n))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(
        float(low), float(high), f"{level:.0%} paired bootstrap over {n} prompts within a seed"
    )


def seeds_to_decide(
    per_seed: Sequence[float], *, margin: float | None = None, level: float = 0.95
) -> int | None:
    """The total number of seeds at which the t interval would decide, mean and spread kept.

    margin None: it would lie on one side of 0. Otherwise it would lie inside +-margin, or wholly
    outside. None if fewer than two seeds are given (no spread is known), if the mean lies exactly
    on the boundary, or if more than 10,000 seeds were needed.
    """
    values = _finite(per_seed, "per-seed value")
    _check_level(level)
    if len(values) < 2:
        return None
    mean, sd = abs(float(values.mean())), float(values.std(ddof=1))
    distance = mean if margin is None else abs(margin - mean)
    if distance == 0:
        return None

    def decides(n: int) -> bool:
        return float(stats.t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n) < distance

    if not decides(MAX_SEEDS):
        return None
    return bisect.bisect_left(range(2, MAX_SEEDS), True, key=decides) + 2  # widths fall with n


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"a {what} is not a finite number: {values!r}")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level = {level!r} is not between 0 and 1")
