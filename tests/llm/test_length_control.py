"""The length-controlled win rate: known models, symmetries, ties, and what has no fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from llm.results.length_control import length_controlled


def _drawn(a: float, b: float, n: int, seed: int, ties: float = 0.0):
    rng = np.random.default_rng(seed)
    d = rng.integers(-20, 30, n).astype(float)
    wins = (rng.random(n) < expit(a + b * d)).astype(float)
    return np.where(rng.random(n) < ties, 0.5, wins), d


def test_a_policy_that_wins_by_length_alone_is_even() -> None:
    wins, d = _drawn(0.0, 0.1, 4000, 0)
    assert wins.mean() > 0.56
    found = length_controlled(wins.tolist(), d.tolist(), seed=0)
    assert found.win_rate == pytest.approx(0.5, abs=0.03)
    assert found.interval is not None
    assert found.interval.low < found.win_rate < found.interval.high
    assert "4000 prompts" in found.interval.kind
    assert found == length_controlled(wins.tolist(), d.tolist(), seed=0)


@given(seed=st.integers(0, 1000), ties=st.sampled_from([0.0, 0.3]))
def test_it_is_the_maximum_of_the_likelihood(seed: int, ties: float) -> None:
    wins, d = _drawn(0.4, -0.05, 60, seed, ties)
    found = length_controlled(wins.tolist(), d.tolist(), seed=0, resamples=1)

    def loss(x):
        score = x[0] + x[1] * d
        return float((np.logaddexp(0, score) - wins * score).sum())

    if found.win_rate is None:
        assert found.reason
    else:
        best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8})
        assert found.win_rate == pytest.approx(float(expit(best.x[0])), abs=1e-4)


def test_it_follows_sides_and_units_and_not_the_order() -> None:
    wins, d = _drawn(0.4, 0.05, 200, 3, ties=0.2)
    one = length_controlled(wins.tolist(), d.tolist(), seed=1).win_rate
    assert one is not None
    others = (
        (1 - wins, -d, 1 - one),  # the reference's side
        (wins, 7 * d, one),  # another unit of length
        (wins[::-1], d[::-1], one),
    )
    for w, x, expected in others:
        found = length_controlled(w.tolist(), x.tolist(), seed=1).win_rate
        assert found == pytest.approx(expected, abs=1e-8)


def test_the_interval_covers_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        wins, d = _drawn(0.3, 0.05, 150, seed)
        found = length_controlled(wins.tolist(), d.tolist(), seed=seed, resamples=200)
        assert found.interval is not None
        covered += found.interval.low < expit(0.3) < found.interval.high
    assert abs(covered / 200 - 0.95) < 0.06


@pytest.mark.parametrize(
    ("wins", "differences", "reason"),
    [
        ([1, 1, 0, 0], [5, 6, -5, -6], "separable"),
        ([1, 0.5, 0], [5, 0, -5], "separable"),  # the tie stands on the line
        ([1, 1, 1], [5, 0, -5], "separable"),  # no loss at all
        ([1, 0, 1], [4, 4, 4], "differs from its reference by 4 tokens"),
        ([1.0], [3.0], "1 prompts"),
    ],
)
def test_what_has_no_fit_says_so(wins: list, differences: list, reason: str) -> None:
    found = length_controlled(wins, differences, seed=0)
    assert found.win_rate is None
    assert found.interval is None
    assert reason in str(found.reason)


def test_equal_lengths_leave_the_plain_win_rate() -> None:
    found = length_controlled([1, 0, 0.5], [0, 0, 0], seed=0)
    assert found.win_rate == pytest.approx(0.5)
    tie_between = length_controlled([1, 0.5, 0], [1, 2, 3], seed=0)
    assert tie_between.win_rate is None
    overlapping = length_controlled([1, 0.5, 0.5, 0], [1, 2, 1, 2], seed=0)
    assert overlapping.win_rate is not None


@pytest.mark.parametrize(("wins", "lengths"), [([2.0, 0], [1, 2]), ([math.nan, 0], [1, 2])])
def test_wins_that_are_none_are_refused(wins: list, lengths: list) -> None:
    with pytest.raises(ValueError, match="win"):
        length_controlled(wins, lengths, seed=0)
    with pytest.raises(ValueError, match="not paired"):
        length_controlled([1, 0], [1], seed=0)
