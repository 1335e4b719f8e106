"""The least Bradley-Terry log-loss where it is hard to find: long chains, counts far apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from theory.bt_floor import least_log_loss
from theory.diagnose import Pairs, entropy_floor


def test_a_long_chain_of_rare_upsets_is_fitted():
    n = 12
    low, high = np.sort(np.stack([np.arange(n), (np.arange(n) + 1) % n]), axis=0)
    many, few = np.full(n, 10**9), np.zeros(n, dtype=np.int64)
    many[-1], few[-1] = 0, 1  # a cycle closed by one comparison out of 1.1e10
    loss = least_log_loss(low, high, many, few)
    # By symmetry every step of the chain is the same t.
    total = float(many.sum() + few.sum())
    at = minimize_scalar(chain_loss, bounds=(1.0, 40.0), method="bounded").x  # pyright: ignore
    assert loss == pytest.approx(chain_loss(at) / total, abs=2e-12)
    assert loss > 2e-8


@pytest.mark.parametrize(("n", "many"), [(300, 20), (1000, 10), (100, 10**5), (20_000, 3)])
def test_one_win_back_over_a_long_chain_is_fitted(n, many):
    low, high = np.sort(np.stack([np.arange(n), (np.arange(n) + 1) % n]), axis=0)
    low_wins, high_wins = np.full(n, many), np.zeros(n, dtype=np.int64)
    low_wins[-1], high_wins[-1] = 0, 1
    # By symmetry every step is the same t; the way back is (n - 1) t, so its slope is 1 - e^{-n t}.
    t = math.log(many - 1)
    loss = (n - 1) * (many * math.log1p(math.exp(-t)) + t)
    assert loss / (many * (n - 1) + 1) - 1e-11 < least_log_loss(low, high, low_wins, high_wins)
    assert least_log_loss(low, high, low_wins, high_wins) < loss / (many * (n - 1) + 1) + 1e-11


@given(st.integers(0, 10**6))
def test_counts_of_very_different_sizes_are_fitted(seed):
    rng = np.random.default_rng(seed)
    low, high = np.triu_indices(int(rng.integers(3, 9)), 1)
    low_wins, high_wins = (10 ** rng.uniform(0, 9, (2, len(low)))).astype(np.int64)
    loss = least_log_loss(low, high, low_wins, high_wins)
    assert entropy_floor(Pairs(low, high, low_wins, high_wins)) - 1e-11 < loss < math.log(2)


def chain_loss(t: float) -> float:
    return 11e9 * math.log1p(math.exp(-t)) + 11 * t + math.log1p(math.exp(-11 * t))
