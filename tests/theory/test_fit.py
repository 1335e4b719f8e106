"""Maximum likelihood: closed forms, an independent optimiser, sets and empty sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from theory.claims.instances import random_tree, two_way_pairs
from theory.classes import FiniteRewards, LinearRewards, SoftOptimalPolicies, TabularPolicies
from theory.fit import (
    ConvergenceError,
    fit_finite,
    fit_linear,
    fit_tabular,
    newton_logistic,
    separating_direction,
    tied_maximisers,
)
from theory.fit_policy import fit_policy
from theory.preferences import PairData, bt_gradient, bt_log_likelihood
from theory.soft import check_beta
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)
TREE = TokenTree(("a", "b"), 2, ("x",), (1.0,))


def problem(seed, n=40, dim=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), rng.uniform(0.0, 2.0, size=n)


@given(seeds, st.sampled_from([1e-3, 0.3, 30.0]))
def test_newton_logistic_equals_an_independent_optimiser(seed, ridge):
    d, w = problem(seed)

    def loss(theta):
        p = 1 / (1 + np.exp(d @ theta))
        value = np.sum(w * np.logaddexp(0, -d @ theta)) + 0.5 * ridge * theta @ theta
        return value, ridge * theta - d.T @ (w * p)

    exact = minimize(loss, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-9})
    theta, norm = jax.jit(newton_logistic)(jnp.asarray(d), jnp.asarray(w), ridge)
    np.testing.assert_allclose(np.asarray(theta), exact.x, atol=2e-6 / ridge**0.5)
    assert float(norm) < 1e-11


@given(seeds, st.floats(0.2, 5.0))
def test_newton_logistic_scales(seed, scale):
    """d -> s d, ridge -> s**2 ridge takes theta to theta / s."""
    d, w = problem(seed)
    one, _ = jax.jit(newton_logistic)(jnp.asarray(d), jnp.asarray(w), 0.5)
    two, _ = jax.jit(newton_logistic)(jnp.asarray(scale * d), jnp.asarray(w), 0.5 * scale**2)
    np.testing.assert_allclose(np.asarray(two) * scale, np.asarray(one), atol=1e-10)


def test_newton_logistic_maps_over_problems_and_weight_zero_pads():
    d, w = (np.stack(x) for x in zip(*(problem(s) for s in range(3)), strict=True))
    both = jax.jit(lambda d, w: jax.lax.map(lambda p: newton_logistic(*p, 0.1), (d, w)))
    thetas, _ = both(jnp.asarray(d), jnp.asarray(w))
    for i in range(3):
        padded = np.concatenate([d[i], np.full((4, 5), 7.0)]), np.concatenate([w[i], np.zeros(4)])
        alone, _ = jax.jit(newton_logistic)(*(jnp.asarray(x) for x in padded), 0.1)
        np.testing.assert_allclose(np.asarray(thetas[i]), np.asarray(alone), atol=1e-12)


def test_newton_logistic_survives_separable_data():
    d, w = np.asarray([[1.0], [2.0]]), np.ones(2)
    theta, norm = jax.jit(newton_logistic)(jnp.asarray(d), jnp.asarray(w), 1e-6)
    assert float(norm) < 1e-12
    assert 5 < float(theta[0]) < 50


def test_a_chain_has_the_log_odds_as_its_maximiser():
    data = PairData.of(TREE, [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (0, 1, 2, 1.0), (0, 2, 1, 5.0)])
    optima = fit_tabular(TREE, data)
    r = optima.member(np.zeros(2))[0]
    assert r[0] - r[1] == pytest.approx(np.log(3), abs=1e-13)
    assert r[1] - r[2] == pytest.approx(-np.log(5), abs=1e-13)
    assert optima.graph.dimension == 1


@given(st.sampled_from([(2, 2, 3), (2, 3, 2)]), seeds)
def test_every_member_of_the_set_is_stationary_and_equally_likely(shape, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    data = two_way_pairs(rng, tree, connected=False)
    optima = fit_tabular(tree, data)
    for _ in range(3):
        r = optima.member(5 * rng.normal(size=optima.graph.n_components))
        assert np.abs(bt_gradient(r, data)).max() < 1e-10
        assert bt_log_likelihood(r, data) == pytest.approx(optima.log_likelihood, abs=1e-11)
        elsewhere = r + 0.1 * rng.normal(size=r.shape)
        assert bt_log_likelihood(elsewhere, data) < bt_log_likelihood(r, data)


def test_an_empty_set_is_empty_and_says_why():
    data = PairData.of(TREE, [(0, 0, 1, 9.0), (0, 1, 2, 1.0), (0, 2, 1, 1.0)])
    optima = fit_tabular(TREE, data)
    assert optima.empty
    assert optima.log_likelihood is None
    assert optima.graph.witness is not None
    assert optima.graph.witness.leaves == (0,)
    with pytest.raises(ValueError, match="empty"):
        optima.member(np.zeros(2))


@given(seeds)
def test_linear_optima(seed):
    rng = np.random.default_rng(seed)
    data = two_way_pairs(rng, TREE, connected=True)
    phi = rng.normal(size=(1, 4, 2))
    wide = np.concatenate([phi, phi[..., :1] + 2.0, np.ones((1, 4, 1))], axis=2)
    one, two = (fit_linear(TREE, LinearRewards(x), data) for x in (phi, wide))
    assert one.theta is not None
    assert two.theta is not None
    margins = [x @ t for x, t in ((phi, one.theta), (wide, two.theta))]
    gap = margins[0] - margins[1]
    assert np.ptp(gap) < 1e-9
    assert (one.kernel.shape[1], two.kernel.shape[1]) == (0, 2)
    assert (one.policy_dimension, two.policy_dimension) == (0, 0)


def test_one_hot_features_are_the_tabular_class():
    rng = np.random.default_rng(5)
    data = two_way_pairs(rng, TREE, connected=True)
    linear = fit_linear(TREE, LinearRewards(np.eye(4)[None]), data)
    assert linear.theta is not None
    tabular = fit_tabular(TREE, data).member(np.zeros(1))
    np.testing.assert_allclose(linear.theta, tabular[0], atol=1e-12)


def test_a_separable_linear_class_is_empty_with_a_direction():
    data = PairData.of(TREE, [(0, 0, 1, 1.0), (0, 0, 1, 2.0), (0, 2, 3, 1.0)])
    phi = np.asarray([[[2.0], [1.0], [5.0], [5.0]]])
    optima = fit_linear(TREE, LinearRewards(phi), data)
    assert optima.empty
    assert optima.witness is not None
    assert optima.witness[0] > 0


@given(seeds)
def test_a_separating_direction_separates(seed):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(4, 3))
    theta = separating_direction(d)
    if theta is not None:
        assert (d @ theta > -1e-9).all()
        assert (d @ theta).max() > 0.1
    both = np.concatenate([d, -d])
    assert separating_direction(both) is None


def test_a_finite_list_keeps_every_tie():
    data = PairData.of(TREE, [(0, 0, 1, 4.0), (0, 1, 0, 1.0)])
    base = np.asarray([[np.log(4.0), 0.0, 0.0, 0.0]])
    tables = [0.5 * base, base + 3.0, base, base + np.asarray([[0.0, 0.0, 7.0, 0.0]]), 1.01 * base]
    found = fit_finite(FiniteRewards.of(TREE, tables), data)
    assert found.indices.tolist() == [1, 2, 3]


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_policy_fits_reach_the_closed_form(beta):
    """log P(a)/P(b) = log-odds / beta, plus the reference's own for DPO."""
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    data = PairData.of(tree, [(0, 0, 1, 4.0), (0, 1, 0, 1.0)])
    policies = TabularPolicies.of(tree)
    start = np.asarray([2.0, -1.0])
    mle = fit_policy(policies, data, start, beta=beta)
    assert np.diff(mle.log_p)[0, 0] == pytest.approx(-np.log(4) / beta, abs=1e-12)
    log_ref = np.log([[0.3, 0.7]])
    dpo = fit_policy(policies, data, start, beta=beta, log_ref=log_ref)
    expected = -np.log(4) / beta + np.log(0.7 / 0.3)
    assert np.diff(dpo.log_p)[0, 0] == pytest.approx(expected, abs=1e-12)
    assert mle.nullity == policies.flat_directions == 1


def test_a_policy_fit_inside_soft_optimal_policies_equals_the_linear_reward():
    rng = np.random.default_rng(7)
    data = two_way_pairs(rng, TREE, connected=True)
    rewards = LinearRewards(rng.normal(size=(1, 4, 2)))
    optima = fit_linear(TREE, rewards, data)
    policies = SoftOptimalPolicies.of(TREE, rewards, 0.5)
    fit = fit_policy(policies, data, rng.normal(size=2), beta=0.5)
    np.testing.assert_allclose(fit.theta, optima.theta, atol=1e-11)
    with pytest.raises(ValueError, match="beta"):
        check_beta(0.0)
    with pytest.raises(ValueError, match="beta must be > 0"):
        fit_policy(policies, data, np.zeros(2), beta=0.0)


def test_a_list_with_nan_has_no_maximiser():
    with pytest.raises(ConvergenceError, match="member 1 of the list is NaN"):
        tied_maximisers(np.asarray([0.0, np.nan, 1.0]), 1.0)
