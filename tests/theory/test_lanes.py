"""The vector exp and log against numpy's, over the whole range that they promise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from theory.lanes import exp_below_zero, log_from_one


def test_exp():
    rng = np.random.default_rng(0)
    x = -np.abs(rng.normal(size=200_000)) * rng.choice([1e-12, 1e-3, 1.0, 10.0, 150.0], 200_000)
    x = np.append(x[x > -700.0], [0.0, -700.0])
    found = np.asarray(jax.jit(exp_below_zero)(jnp.asarray(x)))
    assert np.abs(found / np.exp(x.astype(np.longdouble)) - 1.0).max() < 1e-15
    assert found[-2] == 1.0


def test_exp_far_below_zero_is_negligible_and_nan_stays():
    found = np.asarray(jax.jit(exp_below_zero)(jnp.asarray([-1e4, -1e308, -np.inf, np.nan])))
    assert (found[:3] < 1e-300).all()
    assert (found[:3] >= 0.0).all()
    assert np.isnan(found[3])


def test_log():
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [1.0 + rng.exponential(size=100_000), 1.0 + 10.0 ** -rng.uniform(0, 16, 9999)]
    )
    x = np.append(x, [1.0, 32.0, 1e300])
    exact = np.log(x.astype(np.longdouble))
    found = np.asarray(jax.jit(log_from_one)(jnp.asarray(x)))
    assert (np.abs(found - exact) <= 1e-15 * np.maximum(1.0, exact)).all()
    assert found[-3] == 0.0
    assert np.isnan(np.asarray(log_from_one(jnp.asarray([np.nan]))))[0]
