"""The win rate that a policy would have if its summaries were as long as the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from llm.results.stats import Interval, finite

STEPS = 100
TOLERANCE = 1e-10  # on the largest change of a coefficient
LOST = 0.05  # the share of resamples without a fit above which there is no interval


@dataclass(frozen=True)
class LengthControlled:
    """The win rate (0-1) at no difference in length; None with a reason where there is none."""

    win_rate: float | None
    interval: Interval | None
    reason: str | None = None


def length_controlled(
    wins: Sequence[float],
    differences: Sequence[float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 1000,
) -> LengthControlled:
    """Logistic regression of the win (1, 0, a tie 0.5) on the difference in length, read at 0.

    P(win) = sigmoid(a + b z), z = tokens of the summary less tokens of its reference, over their
    standard deviation: sigmoid(a) is the value. In the spirit of Dubois et al. 2024, without their
    terms of model and prompt. Separable data have no maximiser: no value, and the reason. The
    interval is a percentile bootstrap over prompts.
    """
    y, d = finite(wins, "win"), finite(differences, "difference in length")
    if len(y) != len(d):
        raise ValueError(f"not paired: {len(y)} wins and {len(d)} lengths")
    if ((y < 0) | (y > 1)).any():
        raise ValueError(f"a win is not between 0 and 1: {wins!r}")
    if len(y) < 2:
        return LengthControlled(None, None, f"{len(y)} prompts")
    spread = float(d.std())
    if spread == 0:
        return _constant(y, float(d[0]))
    z = d / spread
    value = _fit(y, z, np.ones((1, len(y))))[0]
    if np.isnan(value):
        reason = "lengths and wins are separable: no finite fit"
        return LengthControlled(None, None, reason)
    interval = _bootstrap(y, z, np.random.default_rng(seed), level, resamples)
    return LengthControlled(float(value), interval)


def _constant(y: np.ndarray, difference: float) -> LengthControlled:
    """All differences equal: 0 leaves the plain win rate, anything else says nothing about 0."""
    if difference == 0:
        return LengthControlled(float(y.mean()), None, "every summary is as long as its reference")
    reason = f"every summary differs from its reference by {difference:g} tokens"
    return LengthControlled(None, None, reason)


def _bootstrap(
    y: np.ndarray, z: np.ndarray, rng: np.random.Generator, level: float, resamples: int
) -> Interval | None:
    n = len(y)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    block = max(1, 1_000_000 // n)
    parts = [_fit(y, z, weights[i : i + block]) for i in range(0, resamples, block)]
    values = np.concatenate(parts)
    found = values[~np.isnan(values)]
    if len(found) < (1 - LOST) * resamples:
        return None
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high), f"{level:.0%} bootstrap over {n} prompts")


def _fit(y: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sigmoid(a) of every row of weights (R, n); NaN where its data are separable. Newton."""
    value = np.full(len(weights), np.nan)
    rows = np.flatnonzero(~_separable(y, z, weights))
    w = weights[rows]
    a, b = np.zeros((2, len(rows)))
    loss = _loss(y, z, w, a, b)
    for _ in range(STEPS):
        p = expit(a[:, None] + b[:, None] * z)
        error, curve = w * (y - p), w * p * (1 - p)
        g0, g1 = error.sum(axis=1), error @ z
        h00, h01, h11 = curve.sum(axis=1), curve @ z, curve @ (z * z)
        det = h00 * h11 - h01**2
        da, db = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        step = np.ones(len(rows))
        for _ in range(30):  # halved until the loss does not rise
            tried = _loss(y, z, w, a + step * da, b + step * db)
            worse = tried > loss + 1e-12 * np.abs(loss)
            if not worse.any():
                break
            step = np.where(worse, step / 2, step)
        a, b, loss = a + step * da, b + step * db, tried
        if max(np.abs(da).max(initial=0), np.abs(db).max(initial=0)) < TOLERANCE:
            break
    value[rows] = expit(a)
    return value


def _loss(y: np.ndarray, z: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    score = a[:, None] + b[:, None] * z
    return (w * (np.logaddexp(0.0, score) - y * score)).sum(axis=1)


def _separable(y: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) whether some line puts all wins on one side (points on it may be either), or z is equal.

    A tie is both a win and a loss (Albert and Anderson 1984, for one regressor and a constant).
    """
    there = weights > 0

    def ends(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        used = there & which
        low = np.where(used, z, np.inf).min(axis=1)
        return low, np.where(used, z, -np.inf).max(axis=1)

    win_low, win_high = ends(y > 0)
    loss_low, loss_high = ends(y < 1)
    every_low, every_high = ends(np.ones_like(y, dtype=bool))
    return (loss_high <= win_low) | (win_high <= loss_low) | (every_low == every_high)
