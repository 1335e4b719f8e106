"""Maximum likelihood: closed forms, an independent optimiser, sets and empty sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from theory import fit as fit_module
from theory.claims.instances import random_tree, two_way_pairs
from theory.classes import FiniteRewards, LinearRewards, SoftOptimalPolicies, TabularPolicies
from theory.errors import InputError
from theory.fit import (
    ConvergenceError,
    EmptySetError,
    fit_finite,
    fit_linear,
    fit_tabular,
    newton_logistic,
    separating_direction,
    tied_maximisers,
)
from theory.fit_policy import fit_policy
from theory.preferences import PairData, bt_gradient, bt_log_likelihood, margins
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
    assert (optima.witness, optima.dimension) == (optima.graph.witness, None)
    with pytest.raises(EmptySetError, match=r"empty: Witness\(prompt=0, leaves=\(0,\)\)"):
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


# --- one face for the three sets -----------------------------------------------------------------


def test_the_three_sets_answer_the_same_questions():
    data = PairData.of(TREE, [(0, 0, 1, 4.0), (0, 1, 0, 1.0)])
    phi = np.eye(4)[None]
    table = np.log([[4.0, 1.0, 1.0, 1.0]])
    tabular = fit_tabular(TREE, data)
    linear = fit_linear(TREE, LinearRewards(phi), data)
    finite = fit_finite(FiniteRewards.of(TREE, [0 * table, table, table + 1.0]), data)
    expected = 4 * np.log(0.8) + np.log(0.2)
    for optima, dimension in ((tabular, 2), (linear, 2), (finite, 0)):
        assert (optima.empty, optima.witness, optima.dimension) == (False, None, dimension)
        assert optima.log_likelihood == pytest.approx(expected, abs=1e-13)
    assert (finite.size, finite.member(0), finite.member(1)) == (2, 1, 2)
    with pytest.raises(IndexError, match="there is no number 2"):
        finite.member(2)


@given(seeds)
def test_members_of_a_linear_set_are_equally_likely_and_others_less(seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, (2, 2, 3))
    data = two_way_pairs(rng, tree, connected=False)
    phi = rng.normal(size=(2, 8, 9))
    phi[:, :, 8] = phi[:, :, 0] - phi[:, :, 1]
    rewards = LinearRewards(phi)
    optima = fit_linear(tree, rewards, data)
    if optima.empty:  # the features cannot undo every upset
        assert optima.witness is not None
        assert optima.dimension is None
        step = margins(rewards.reward(optima.witness), data)
        assert step.min() > -1e-9
        assert step.max() > 0.1
        with pytest.raises(EmptySetError, match="separates"):
            optima.member(np.zeros(optima.kernel.shape[1]))
        return
    theta = optima.member(rng.normal(size=optima.kernel.shape[1]))
    r = rewards.reward(theta)
    assert bt_log_likelihood(r, data) == pytest.approx(optima.log_likelihood, abs=1e-10)
    assert np.abs(np.einsum("pld,pl->d", phi, bt_gradient(r, data))).max() < 1e-9
    seen = rng.normal(size=9)
    seen -= optima.kernel @ (optima.kernel.T @ seen)
    if np.linalg.norm(seen) > 1e-6:
        away = rewards.reward(theta + 0.1 * seen)
        assert bt_log_likelihood(away, data) < bt_log_likelihood(r, data)


@settings(max_examples=6)
@given(seeds, st.booleans())
def test_the_dimension_is_the_nullity_of_the_hessian_in_policy_logits(seed, connected):
    """#components - #prompts against a count that does not come from the formula."""
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, (2, 2, 3))
    data = two_way_pairs(rng, tree, connected=connected)
    policies = TabularPolicies.of(tree)
    fit = fit_policy(policies, data, rng.normal(size=policies.dimension))
    assert fit.gap > 1e3
    assert fit_tabular(tree, data).dimension == fit.nullity - policies.flat_directions


# --- tabular fits: uneven counts, components apart, many completions -----------------------------


def test_no_component_drowns_another():
    """Counts of 1e9 on one component and 1e-9 on another: both odds are reached."""
    rows = [(0, 0, 1, 3e9), (0, 1, 0, 1e9), (0, 2, 3, 5e-9), (0, 3, 2, 1e-9)]
    r = fit_tabular(TREE, PairData.of(TREE, rows)).member(np.zeros(2))[0]
    assert r[0] - r[1] == pytest.approx(np.log(3), abs=1e-13)
    assert r[2] - r[3] == pytest.approx(np.log(5), abs=1e-13)


@given(seeds, st.sampled_from([1.0, 3.0, 4.5]))
def test_uneven_cycles_are_balanced(seed, spread):
    """A random cycle with chords, counts over up to nine decades: every node wins what it loses."""
    rng = np.random.default_rng(seed)
    tree = TokenTree(tuple("abcdefgh"), 1, ("x",), (1.0,))
    order = rng.permutation(8)
    pairs = list(zip(order, np.roll(order, -1), strict=True))
    pairs += [tuple(rng.choice(8, size=2, replace=False)) for _ in range(8)]
    counts = 10.0 ** rng.uniform(-spread, spread, size=16)
    rows = [(0, int(a), int(b), float(c)) for (a, b), c in zip(pairs, counts, strict=True)]
    data = PairData.of(tree, rows)
    r = fit_tabular(tree, data).member(np.zeros(1))
    flow = data.count / (1 + np.exp(margins(r, data)))
    won, lost = (np.bincount(end, flow, 8) for end in (data.winner, data.loser))
    np.testing.assert_allclose(won, lost, rtol=1e-6)


def test_counts_that_are_too_uneven_are_refused():
    rows = [(0, 0, 1, 1e11), (0, 1, 0, 1.0), (0, 2, 3, 1e12), (0, 3, 2, 1e12)]
    with pytest.raises(InputError, match=r"'x': the counts of one component span 1.0 to 1000000"):
        fit_tabular(TREE, PairData.of(TREE, rows))


def test_a_fit_that_stops_early_is_no_fit(monkeypatch):
    monkeypatch.setattr(fit_module, "STEPS", 2)
    data = PairData.of(TREE, [(0, 0, 1, 1e6), (0, 1, 0, 1.0)])
    with pytest.raises(ConvergenceError, match="still moves a margin"):
        fit_tabular(TREE, data)


def test_sparse_and_dense_steps_agree(monkeypatch):
    rng = np.random.default_rng(0)
    tree = TokenTree(tuple(f"t{i}" for i in range(60)), 1, ("x",), (1.0,))
    data = two_way_pairs(rng, tree, connected=True)
    dense = fit_tabular(tree, data).member(np.zeros(1))
    monkeypatch.setattr(fit_module, "DENSE", 2)
    np.testing.assert_allclose(fit_tabular(tree, data).member(np.zeros(1)), dense, atol=1e-12)


@given(seeds, st.floats(0.01, 100.0))
def test_the_set_does_not_depend_on_the_scale_of_the_counts(seed, scale):
    rng = np.random.default_rng(seed)
    data = two_way_pairs(rng, TREE, connected=False)
    scaled = PairData(data.prompt, data.winner, data.loser, scale * data.count)
    one, two = (fit_tabular(TREE, d) for d in (data, scaled))
    np.testing.assert_allclose(one.r, two.r, atol=1e-12)
    assert one.dimension == two.dimension
