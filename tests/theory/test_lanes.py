"""The vector exp, log and transpose against numpy's, over the whole range that they promise."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from theory import lanes


@numba.njit
def each_exp(x):
    return np.array([lanes.exp_near_zero(v) for v in x])


@numba.njit
def each_log(x):
    return np.array([lanes.log_from_one(v) for v in x])


def test_exp():
    rng = np.random.default_rng(0)
    x = -np.abs(rng.normal(size=200_000)) * rng.choice([1e-12, 1e-3, 1.0, 10.0, 150.0], 200_000)
    x = np.append(x[x > -700.0], [1.0, 1e-13, 0.0, -700.0])
    found, exact = each_exp(x), np.exp(x.astype(np.longdouble))
    assert (np.abs(found / exact - 1.0) <= 2.3e-16 + 4e-17 * np.abs(x)).all()
    assert np.abs(found - exact)[x <= 0.0].max() < 3e-16
    assert found[-2] == 1.0


def test_exp_far_below_zero_is_negligible():
    found = each_exp(np.asarray([-1e4, -1e308, -np.inf, np.nan]))
    assert (found < 1e-300).all()
    assert (found >= 0.0).all()


def test_log():
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [1.0 + rng.exponential(size=100_000), 1.0 + 10.0 ** -rng.uniform(0, 16, 9999)]
    )
    x = np.append(x, [1.0, 32.0, 1e300])
    exact = np.log(x.astype(np.longdouble))
    found = each_log(x)
    assert (np.abs(found - exact) <= 1e-15 * np.maximum(1.0, exact)).all()
    assert found[-3] == 0.0


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("cols", [1, 2, 4, 7, 8, 11])
def test_transpose(rows, cols):
    source = np.random.default_rng(0).normal(size=3 + rows * cols)
    target = np.full(5 + cols * 64, np.nan)
    lanes.transpose(source, 3, rows, cols, cols, target, 5, 64)
    found = target[5:].reshape(cols, 64)
    np.testing.assert_array_equal(found[:, :rows].T, source[3:].reshape(rows, cols))
    assert np.isnan(found[:, rows:]).all()
    assert np.isnan(target[:5]).all()
