"""Intervals over seeds (t), over prompts within a seed (bootstrap), and what would decide."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MAX_SEEDS = 10_000  # beyond this, "more seeds" is no advice
MAX_PROMPTS = 1_000_000
DRAWS = 60_000_000


@dataclass(frozen=True)
class Interval:
    """A two-sided interval around a mean, in the unit of the values. kind: how it was made."""

    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests (Schuirmann 1987) of |mean| < margin, over seeds.

    p: the larger of the two p-values. holds: both reject at (1 - level) / 2, which is the same as
    the two-sided t interval of that level lying inside +-margin.
    """

    margin: float
    interval: Interval
    p: float
    holds: bool


def t_interval(per_seed: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean over seeds; None for fewer than two.

    The spread is between seeds, prompts being the same; equal values give an interval of width 0.
    """
    values = finite(per_seed, "per-seed value")
    _check_level(level)
    n = len(values)
    if n < 2:
        return None
    half = _t(n, level) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(mean - half, mean + half, f"{level:.0%} t interval over {n} seeds")


def equivalence(
    per_seed: Sequence[float], margin: float, level: float = 0.95
) -> Equivalence | None:
    """Whether the mean over seeds lies within +-margin, by a test; None for fewer than two seeds.

    That the difference is not found to differ from 0 is no evidence of this.
    """
    _check_margin(margin)
    interval = t_interval(per_seed, level)
    if interval is None:
        return None
    values = finite(per_seed, "per-seed value")
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    gap = margin - abs(mean)
    if sd == 0:
        p = 0.0 if gap > 0 else 1.0
    else:
        p = float(stats.t.sf(gap / (sd / math.sqrt(n)), n - 1))
    holds = -margin < interval.low and interval.high < margin
    return Equivalence(margin, interval, p, holds)


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
    with replacement; the randomness is that of `seed`. Of very many prompts fewer resamples are
    drawn (`DRAWS` in all, never fewer than 1,000): the paper has 83,800 validation pairs.
    """
    first, second = finite(a, "value of a"), finite(b, "value of b")
    _check_level(level)
    if len(first) != len(second):
        raise ValueError(f"not paired: {len(first)} and {len(second)} prompts")
    if len(first) < 2:
        return None
    difference, n = first - second, len(first)
    resamples = min(resamples, max(1000, DRAWS // n))
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


def over_prompts(
    value: float, groups: Sequence[Sequence[Sequence[float]]], level: float = 0.95
) -> tuple[float, float] | None:
    """(low, high) around a value for other prompts, the seeds' models kept; None for < 2 prompts.

    groups: sets of prompts whose means add up to the value; in each, for every seed, its values on
    the same prompts. A t interval of the prompts' means over seeds; groups are independent.
    """
    _check_level(level)
    tables = [np.stack([finite(row, "per-prompt value") for row in group]) for group in groups]
    if not tables or any(table.shape[1] < 2 for table in tables):
        return None
    error = math.sqrt(sum(float(t.mean(axis=0).var(ddof=1)) / t.shape[1] for t in tables))
    half = _t(min(table.shape[1] for table in tables), level) * error
    return value - half, value + half


# --- what would decide ---------------------------------------------------------------------------


def seeds_to_decide(
    per_seed: Sequence[float], *, margin: float | None = None, level: float = 0.95
) -> int | None:
    """The total number of seeds at which the t interval would decide, mean and spread kept.

    margin None: it would lie on one side of 0. Otherwise it would lie inside +-margin, or wholly
    outside. None if fewer than two seeds are given (no spread is known), if the mean lies exactly
    on the boundary, or if more than 10,000 seeds were needed.
    """
    values = finite(per_seed, "per-seed value")
    _check_level(level)
    if len(values) < 2:
        return None
    distance = _distance(float(values.mean()), margin)
    sd = float(values.std(ddof=1))

    def decides(n: int) -> bool:
        return _t(n, level) * sd / math.sqrt(n) < distance

    return _first(decides, 2, MAX_SEEDS)


def prompts_to_decide(
    differences: Sequence[Sequence[float]], *, margin: float | None = None, level: float = 0.95
) -> int | None:
    """The prompts a seed at which the t interval over these seeds would decide, mean kept.

    differences: for each seed, its value on every prompt, the same prompts in the same order. The
    spread over seeds of their means is split in two: what the seeds' own training makes, and what
    each seed's prompts make (the residual variance of the two-way table, over the prompts). More
    prompts shrink the second alone. None as in `seeds_to_decide`, for fewer than two prompts, and
    where the first part leaves the interval too wide whatever the prompts.
    """
    _check_level(level)
    rows = [finite(row, "per-prompt value") for row in differences]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"not paired: {[len(row) for row in rows]} prompts")
    seeds, prompts = len(rows), len(rows[0]) if rows else 0
    if seeds < 2 or prompts < 2:
        return None
    table = np.stack(rows)
    means = table.mean(axis=1)
    residual = table - means[:, None] - table.mean(axis=0) + table.mean()
    noise = float((residual**2).sum()) / ((seeds - 1) * (prompts - 1))
    training = max(0.0, float(means.var(ddof=1)) - noise / prompts)
    distance, factor = _distance(float(means.mean()), margin), _t(seeds, level) / math.sqrt(seeds)

    def decides(n: int) -> bool:
        return factor * math.sqrt(training + noise / n) < distance

    return _first(decides, 2, MAX_PROMPTS)


def _distance(mean: float, margin: float | None) -> float:
    """From the mean to what it is held against: 0, or the nearer end of +-margin."""
    if margin is None:
        return abs(mean)
    _check_margin(margin)
    return abs(margin - abs(mean))


def _first(decides: Callable[[int], bool], least: int, most: int) -> int | None:
    """The least n at which `decides` holds, as it does from there on; None beyond `most`."""
    if not decides(most):
        return None
    return bisect.bisect_left(range(least, most), True, key=decides) + least


def _t(n: int, level: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, n - 1))


def finite(values: Sequence[float], what: str) -> np.ndarray:
    """One-dimensional float64, or ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"a {what} is not a finite number: {values!r}")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level = {level!r} is not between 0 and 1")


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin = {margin!r} is not positive")
