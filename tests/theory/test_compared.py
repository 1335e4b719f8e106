"""The offline road over all policies: against the generic policy fit, and against exact odds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import compared
from theory.claims.instances import random_log_p, random_tree, two_way_pairs
from theory.classes import TabularPolicies
from theory.compared import fit_offline, offline_work
from theory.errors import InputError
from theory.fit import ConvergenceError, fit_tabular
from theory.fit_policy import fit_policy
from theory.preferences import PairData, bt_gradient, comparison_graph, margins
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)
TREE = TokenTree(("a", "b"), 2, ("x",), (1.0,))


def problem(seed, shape=(2, 2, 3)):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    data = two_way_pairs(rng, tree, connected=bool(seed % 2))
    return rng, tree, data, comparison_graph(tree, data)


@given(seeds, st.sampled_from([1e-3, 0.2, 1.0, 30.0]), st.booleans())
def test_every_slope_is_zero_and_the_probabilities_sum_to_one(seed, beta, with_reference):
    rng, tree, data, graph = problem(seed)
    log_ref = random_log_p(rng, tree) if with_reference else None
    found = fit_offline(tree, data, graph, beta=beta, log_ref=log_ref)
    np.testing.assert_allclose(np.exp(found.log_p).sum(axis=1), 1.0, atol=1e-12)
    assert (found.log_p[:, tree.leaves] > -np.inf).all()
    inside = found.log_p[:, tree.leaves]
    table = np.zeros_like(found.log_p)
    table[:, tree.leaves] = inside if log_ref is None else inside - log_ref[:, tree.leaves]
    # Over all policies a maximiser leaves no slope in any log-probability.
    assert np.abs(bt_gradient(beta * table, data)).max() < 1e-10 * data.total


@settings(max_examples=4)
@given(seeds)
def test_it_agrees_with_the_generic_fit_in_all_logits(seed):
    """`fit_policy` climbs with L-BFGS in every logit of the tree, from a random start."""
    rng, tree, data, graph = problem(seed)
    log_ref = random_log_p(rng, tree)
    policies = TabularPolicies.of(tree)
    start = rng.normal(size=policies.dimension)
    for reference in (None, log_ref):
        one = fit_offline(tree, data, graph, beta=0.7, log_ref=reference)
        other = fit_policy(policies, data, start, beta=0.7, log_ref=reference)
        np.testing.assert_allclose(
            margins(one.log_p, data), margins(other.log_p, data), atol=1e-9, rtol=0
        )


def test_odds_of_a_billion_are_reached():
    rows = [(0, 0, 1, 1e9), (0, 1, 0, 1.0), (0, 1, 2, 1.0), (0, 2, 1, 1.0)]
    data = PairData.of(TREE, rows)
    for beta in (0.05, 1.0, 20.0):
        found = fit_offline(TREE, data, comparison_graph(TREE, data), beta=beta)
        gap = beta * (found.log_p[0, 0] - found.log_p[0, 1])
        assert gap == pytest.approx(np.log(1e9), rel=1e-10)
        assert found.step < 1e-9


def cycle(leaves, big):
    """Each completion beats the next `big` times, and the last the first once."""
    n = len(leaves)
    rows = [(0, leaves[i], leaves[(i + 1) % n], big if i < n - 1 else 1.0) for i in range(n)]
    return PairData.of(tree_of(n), rows)


def tree_of(n):
    return TokenTree(("a", "b"), int(np.log2(n)), ("x",), (1.0,))


@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0])
@pytest.mark.parametrize(("n", "big"), [(8, 1e6), (16, 1e5), (32, 50.0)])
def test_long_cycles_reach_the_maximiser_and_not_a_plateau(n, big, beta):
    """Known exactly: a step down the cycle has the margin m with big sigmoid(-m) = sigmoid(m')."""
    order = np.random.default_rng(n).permutation(n).tolist()
    tree, data = tree_of(n), cycle(order, big)
    found = fit_offline(tree, data, comparison_graph(tree, data), beta=beta)
    scores = beta * found.log_p[0, order]
    step = np.log(big)
    for _ in range(60):  # big / (1 + e^m) = 1 / (1 + e^{-(n - 1) m})
        step = np.log(big * (1 + np.exp(-(n - 1) * step)) - 1)
    np.testing.assert_allclose(-np.diff(scores), step, rtol=1e-10)


@pytest.mark.parametrize("n", [8, 32])
def test_a_fit_whose_flows_do_not_cancel_is_refused(n, monkeypatch):
    """A solver that reports tiny steps has not converged while the net flows are large."""
    exact = compared._newton

    def small_steps(margin, duels):
        step, net = exact(margin, duels)
        return 1e-12 * step, net

    monkeypatch.setattr(compared, "_newton", small_steps)
    tree, data = tree_of(n), cycle(list(range(n)), 1e3)
    with pytest.raises(ConvergenceError, match="not at its maximiser"):
        fit_offline(tree, data, comparison_graph(tree, data))


@pytest.mark.parametrize("seed", range(6))
def test_wild_counts_on_a_deep_tree_are_fitted(seed):
    """Counts over nine decades, a far reference: a step of the logits must follow Newton's."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(16).tolist()
    counts = 10 ** rng.uniform(0, 9, size=16)
    tree, ends = tree_of(16), [*order[1:], order[0]]
    data = PairData.of(tree, list(zip([0] * 16, order, ends, counts.tolist(), strict=True)))
    log_ref = 30 * rng.normal(size=(1, 16))
    log_ref -= np.logaddexp.reduce(log_ref, axis=1, keepdims=True)
    optima = fit_tabular(tree, data)
    found = fit_offline(tree, data, optima.graph, beta=0.02, log_ref=log_ref)
    assert optima.r is not None
    np.testing.assert_allclose(
        margins(0.02 * (found.log_p - log_ref), data), margins(optima.r, data), rtol=1e-8, atol=1e-8
    )


def test_many_prompts_are_passed_through_the_tracker():
    rows = [(x, *pair, 2.0) for x in range(3) for pair in ((0, 1), (1, 0))]
    tree = TokenTree(("a", "b"), 1, ("x", "y", "z"), (0.5, 0.25, 0.25))
    data, seen = PairData.of(tree, rows), []
    fit_offline(
        tree, data, comparison_graph(tree, data), track=lambda parts: seen.extend(parts) or parts
    )
    assert len(seen) == 3


def test_a_reference_far_from_uniform_is_no_obstacle():
    log_ref = np.log([[1e-300, 0.5, 0.5, 1e-200]])
    data = PairData.of(TREE, [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (0, 3, 1, 1.0), (0, 1, 3, 2.0)])
    found = fit_offline(TREE, data, comparison_graph(TREE, data), beta=10.0, log_ref=log_ref)
    table = 10.0 * (found.log_p - log_ref)
    assert table[0, 0] - table[0, 1] == pytest.approx(np.log(3), abs=1e-9)
    assert table[0, 3] - table[0, 1] == pytest.approx(-np.log(2), abs=1e-9)


def test_a_completion_without_reference_mass_stays_without():
    log_ref = np.where([[True, True, True, False]], np.log(1 / 3), -np.inf)
    data = PairData.of(TREE, [(0, 0, 1, 3.0), (0, 1, 0, 1.0)])
    found = fit_offline(TREE, data, comparison_graph(TREE, data), log_ref=log_ref)
    assert found.log_p[0, 3] == -np.inf
    assert found.log_p[0, 0] - found.log_p[0, 1] == pytest.approx(np.log(3), abs=1e-12)


def test_no_data_leaves_the_start():
    data = PairData.of(TREE, [])
    found = fit_offline(TREE, data, comparison_graph(TREE, data))
    np.testing.assert_allclose(found.log_p, np.log(0.25))
    assert (found.logits, found.step) == (0, 0.0)


def test_only_the_paths_are_fitted():
    """Two of 2**12 completions: 12 tokens each, the first 11 in common."""
    tree = TokenTree(("a", "b"), 12, ("x",), (1.0,))
    data = PairData.of(tree, [(0, 0, 1, 3.0), (0, 1, 0, 1.0)])
    found = fit_offline(tree, data, comparison_graph(tree, data))
    assert found.logits == 13
    per_step = compared.OVERHEAD + 2.0**2 * (2 + 13)
    assert offline_work(tree, data) == compared.USUAL_STEPS * per_step
    assert found.log_p[0, 0] - found.log_p[0, 1] == pytest.approx(np.log(3), abs=1e-12)


def test_what_cannot_be_fitted_is_refused(monkeypatch):
    one_way = PairData.of(TREE, [(0, 0, 1, 1.0)])
    with pytest.raises(InputError, match=r"no finite maximiser .*leaves=\(0,\)"):
        fit_offline(TREE, one_way, comparison_graph(TREE, one_way))
    data = PairData.of(TREE, [(0, 0, 1, 1e9), (0, 1, 0, 1.0)])
    graph = comparison_graph(TREE, data)
    with pytest.raises(InputError, match="beta must be > 0"):
        fit_offline(TREE, data, graph, beta=0.0)
    monkeypatch.setattr(compared, "STEPS", 2)
    with pytest.raises(ConvergenceError, match="not at its maximiser"):
        fit_offline(TREE, data, graph)
    monkeypatch.setattr(compared, "MAX_WORK", 1.0)
    with pytest.raises(InputError, match="policy fit takes some"):
        fit_offline(TREE, data, graph)


@given(seeds, st.floats(0.3, 3.0))
def test_it_agrees_with_the_reward_fit(seed, beta):
    """Theorem 2.2 over all policies: beta log P and r have the same margins."""
    _, tree, data, graph = problem(seed, (2, 3, 2))
    found = fit_offline(tree, data, graph, beta=beta)
    r = fit_tabular(tree, data).member(np.zeros(graph.n_components))
    np.testing.assert_allclose(beta * margins(found.log_p, data), margins(r, data), atol=1e-10)
