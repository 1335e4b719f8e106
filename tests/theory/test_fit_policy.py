"""Fits of policies return none where the likelihood has no maximiser, and say why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.claims.instances import random_pairs, random_reward, random_tree, two_way_pairs
from theory.classes import (
    LinearRewards,
    LogLinearPolicies,
    SoftOptimalPolicies,
    TabularPolicies,
    bigram_policies,
)
from theory.fit import ConvergenceError, fit_linear, fit_tabular
from theory.fit_policy import NoMaximiserError, check_maximiser, fit_policy
from theory.preferences import PairData, sample_pairs
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)
TREE = TokenTree(("a", "b", "c"), 1, ("x", "y"), (0.5, 0.5))


def refuses(policies, data) -> bool:
    try:
        check_maximiser(policies, data)
    except NoMaximiserError:
        return True
    return False


@given(seeds, st.sampled_from(["connected", "disconnected", "sampled", "separable"]))
def test_all_policies_have_a_maximiser_exactly_where_all_rewards_do(seed, kind):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, (2, 2, 3))
    data = random_pairs(rng, tree, kind)
    assert refuses(TabularPolicies.of(tree), data) == fit_tabular(tree, data).empty


@given(seeds, st.integers(3, 30))
def test_soft_optimal_policies_have_a_maximiser_exactly_where_linear_rewards_do(seed, pairs):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, (2, 2, 3))
    data = sample_pairs(tree, random_reward(rng, tree, 1.0), pairs, seed=seed)
    rewards = LinearRewards(rng.normal(size=(tree.n_prompts, tree.n_leaves, 3)))
    policies = SoftOptimalPolicies.of(tree, rewards, 0.5)
    assert refuses(policies, data) == (fit_linear(tree, rewards, data).theta is None)


@pytest.mark.parametrize("log_ref", [None, np.log([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]])])
def test_separable_pairs_give_no_number_but_the_witness(log_ref):
    rows = [(0, 0, 1, 1.0), (0, 1, 0, 2.0), (1, 2, 0, 3.0), (1, 0, 1, 1.0), (1, 1, 0, 1.0)]
    data = PairData.of(TREE, rows)
    policies = TabularPolicies.of(TREE)
    with pytest.raises(NoMaximiserError, match=r"leaves \[2\] of prompt 1 win and never lose"):
        fit_policy(policies, data, np.zeros(policies.dimension), log_ref=log_ref)
    phi = np.zeros((2, 3, 1))
    phi[1, 2, 0] = 1.0
    soft = SoftOptimalPolicies.of(TREE, LinearRewards(phi), 1.0)
    with pytest.raises(NoMaximiserError, match=r"direction \[1\.0\] separates the pairs"):
        fit_policy(soft, data, np.zeros(1), log_ref=log_ref)


def test_other_classes_are_the_business_of_the_caller():
    data = PairData.of(TREE, [(0, 0, 1, 1.0)])
    policies = bigram_policies(TREE)
    assert isinstance(policies, LogLinearPolicies)
    assert not refuses(policies, data)


def test_planted_pairs_are_let_through():
    rng = np.random.default_rng(0)
    data = two_way_pairs(rng, TREE, connected=True)
    policies = TabularPolicies.of(TREE)
    fit = fit_policy(policies, data, rng.normal(size=policies.dimension))
    assert fit.gradient < 1e-14


@given(st.floats(0.0, 9.0), st.floats(0.0, 9.0), st.sampled_from([0.1, 1.0, 10.0]), seeds)
def test_uneven_counts_are_fitted_to_rounding_or_refused(first, second, beta, seed):
    """Margins of a chain of pairs are log odds; a fit that stops short of them is not returned."""
    odds = 10.0 ** np.asarray([first, second])
    rows = [(0, 0, 1, odds[0]), (0, 1, 0, 1.0), (0, 1, 2, odds[1]), (0, 2, 1, 1.0)]
    policies = TabularPolicies.of(TREE)
    start = np.random.default_rng(seed).normal(size=policies.dimension)
    try:
        fit = fit_policy(policies, PairData.of(TREE, rows), start, beta=beta)
    except ConvergenceError:
        assert max(first, second) > 5.0  # what the docstring promises
        return
    margins = beta * (fit.log_p[0, :2] - fit.log_p[0, 1:])
    np.testing.assert_allclose(margins, np.log(odds), atol=1e-6)


def test_a_fit_that_stops_short_is_not_returned(monkeypatch):
    """Without Newton steps L-BFGS leaves a gradient that is no maximiser's."""
    monkeypatch.setattr(
        "theory.fit_policy._polish",
        lambda objective, theta, arguments, scale: (theta, 1e-9, np.eye(len(theta))),
    )
    data = PairData.of(TREE, [(0, 0, 1, 3.0), (0, 1, 0, 2.0)])
    policies = TabularPolicies.of(TREE)
    with pytest.raises(ConvergenceError, match=r"gradient 1\.0e-09 a comparison is left"):
        fit_policy(policies, data, np.zeros(policies.dimension))
