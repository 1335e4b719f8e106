"""Exact fractions: brute force, symmetries, exact order of logarithms, agreement with float64."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.claims.rational import instances
from theory.claims.rational.lemmas import identity_gap
from theory.classes import FinitePolicies, FiniteRewards
from theory.errors import InputError
from theory.fit import fit_finite, fit_tabular
from theory.logsum import LogSum
from theory.preferences import PairData, bt_log_likelihood, comparison_graph
from theory.projection import project_finite, soft_return
from theory.rational import (
    LIMIT,
    ExactTree,
    argmax,
    check_whole_beta,
    comparisons,
    expected_log,
    kl,
    likelihood,
    nearest,
    normalised,
    over,
    partition,
    path_probabilities,
    soft_policy,
    times,
    tree_maximiser,
)
from theory.rational import soft_return as exact_return
from theory.soft import (
    kl as float_kl,
)
from theory.soft import (
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.tree import TokenTree

seeds = st.integers(0, 10_000)


def drawn(seed):
    """A generator and a random small tree."""
    rng = np.random.default_rng(seed)
    return rng, instances.random_tree(rng, seed)


def few_shapes(seed):
    """The same with few shapes, so that little is compiled."""
    rng = np.random.default_rng(seed)
    return rng, instances.random_tree(rng, seed % 3)


def dense(tree, table, beta=1):
    """beta log of a table as a (P, L) float array, 0 where no completion is."""
    found = np.zeros((tree.tree.n_prompts, tree.tree.n_leaves))
    found[:, tree.tree.leaves] = [[beta * math.log(v) for v in row] for row in table]
    return found


def pair_data(tree, pairs):
    """The same comparisons as float code reads them."""
    leaf = tree.tree.leaves.tolist()
    return PairData.of(
        tree.tree, [(p.prompt, leaf[p.winner], leaf[p.loser], float(p.count)) for p in pairs]
    )


def one_step(*weights, tokens="ab"):
    names = tuple(f"x{i}" for i in range(len(weights)))
    return ExactTree(TokenTree(tuple(tokens), 1, names, weights))


# --- soft values, policies -----------------------------------------------------------------------


@given(seeds)
def test_soft_values_are_sums_over_completions_and_policies_their_quotients(seed):
    rng, tree = drawn(seed)
    y = instances.random_table(rng, tree)
    z, policy = partition(tree, y), soft_policy(tree, y)
    for i, row in enumerate(y):
        for prefix in {words[:h] for words in tree.completions for h in range(len(words) + 1)}:
            below = [
                value
                for words, value in zip(tree.completions, row, strict=True)
                if words[: len(prefix)] == prefix
            ]
            assert z[i][prefix] == sum(below)
        assert all(sum(tokens.values()) == 1 for tokens in policy[i].values())
    assert path_probabilities(tree, policy) == normalised(y)
    assert soft_policy(tree, normalised(y)) == policy


@given(seeds)
def test_a_shift_a_prompt_changes_no_policy_and_no_likelihood(seed):
    rng, tree = drawn(seed)
    y = instances.random_table(rng, tree)
    shifted = instances.prompt_shift(rng, tree, y)
    pairs = instances.random_comparisons(rng, tree, "any")
    assert soft_policy(tree, shifted) == soft_policy(tree, y)
    for beta in (1, 3):
        assert likelihood(shifted, pairs, beta=beta) == likelihood(y, pairs, beta=beta)


def test_no_mass_below_a_prefix_is_named():
    tree = ExactTree(TokenTree(("a", "b"), 2, ("x",), (1.0,)))
    y = ((Fraction(0), Fraction(0), Fraction(1), Fraction(1)),)
    with pytest.raises(InputError, match="prefix 'a': no completion below it has mass"):
        soft_policy(tree, y)


# --- Bradley-Terry -------------------------------------------------------------------------------


@given(seeds, st.integers(1, 4))
def test_the_likelihood_is_the_product_over_single_comparisons(seed, beta):
    rng, tree = drawn(seed)
    y = instances.random_table(rng, tree)
    pairs = instances.random_comparisons(rng, tree, "disconnected")
    product = Fraction(1)
    for pair in pairs:
        a, b = y[pair.prompt][pair.winner] ** beta, y[pair.prompt][pair.loser] ** beta
        for _ in range(pair.count):
            product *= a / (a + b)
    assert likelihood(y, pairs, beta=beta) == product


@given(seeds)
def test_exact_ties_are_found_where_floats_see_one_more(seed):
    rng, tree = drawn(seed)
    y = instances.random_table(rng, tree)
    pairs = comparisons(tree, [(0, int(tree.tree.leaves[0]), int(tree.tree.leaves[1]), 3)])
    near = instances.near_tie(tree, pairs[0], y)
    tie = instances.component_shift(rng, tree, pairs, y)
    assert tie is not None
    assert tie != y
    values = [likelihood(table, pairs, beta=2) for table in (y, near, tie)]
    assert values[0] == values[2] < values[1]
    assert argmax(values) == (1,)
    assert argmax([values[0], values[2]]) == (0, 1)
    assert float(values[0]) == float(values[1])


@given(seeds)
def test_a_forest_of_comparisons_has_the_maximiser_of_the_float_fit(seed):
    rng, tree = drawn(seed)
    pairs = instances.random_comparisons(rng, tree, "disconnected" if seed % 2 else "connected")
    optimum, data = tree_maximiser(tree, pairs), pair_data(tree, pairs)
    optima = fit_tabular(tree.tree, data)
    assert optima.empty == (optimum.y is None)
    if optimum.y is None:
        _check_witness(pairs, *optimum.witness)
        return
    graph = optima.graph
    float_labels = graph.component[:, tree.tree.leaves].reshape(-1)
    labels = np.asarray(optimum.component).reshape(-1)
    assert graph.n_components == len(set(labels.tolist()))
    assert len(set(zip(labels.tolist(), float_labels.tolist(), strict=True))) == len(set(labels))
    difference = (dense(tree, optimum.y) - optima.r)[:, tree.tree.leaves].reshape(-1)
    for label in set(labels.tolist()):
        assert np.ptp(difference[labels == label]) < 1e-11
    exact = math.log(likelihood(optimum.y, pairs, beta=1))
    assert exact == pytest.approx(optima.log_likelihood, rel=1e-12)
    raised = [list(row) for row in optimum.y]  # any other reward is worse, exactly
    raised[pairs[0].prompt][pairs[0].winner] *= Fraction(101, 100)
    assert likelihood(tree.table(raised), pairs, beta=1) < likelihood(optimum.y, pairs, beta=1)


def _check_witness(pairs, prompt, places):
    """The witness wins against completions outside it, at least once, and never loses."""
    crossing = [
        (p.winner in places, p.loser in places)
        for p in pairs
        if p.prompt == prompt and (p.winner in places) != (p.loser in places)
    ]
    assert crossing
    assert all(wins for wins, _ in crossing)


def test_a_cycle_of_comparisons_is_refused_with_its_prompt():
    tree = one_step(1.0, tokens="abc")
    pairs = comparisons(tree, [(0, 0, 1, 1), (0, 1, 2, 1), (0, 2, 0, 1)])
    with pytest.raises(InputError, match="prompt 'x0' has a cycle"):
        tree_maximiser(tree, pairs)


# --- sums of logarithms --------------------------------------------------------------------------


@given(seeds)
def test_kl_is_zero_only_between_equal_distributions_and_the_lemma_holds_exactly(seed):
    rng, tree = drawn(seed)
    p, y = instances.random_distribution(rng, tree), instances.random_table(rng, tree)
    target = normalised(y)
    assert kl(tree, p, p).sign() == 0
    assert kl(tree, p, target).sign() == (p != target)
    log_z = expected_log(tree, [sum(row) for row in y])
    assert (exact_return(tree, p, y) - (log_z - kl(tree, p, target))).sign() == 0


def test_ties_of_the_projection_are_exact_where_the_target_is_not_in_the_list():
    tree = one_step(1.0, tokens="abc")
    half, left, right = (
        tree.table([[Fraction(n, 12) for n in row]]) for row in ((4, 4, 4), (6, 2, 4), (2, 6, 4))
    )
    farther = tree.table([[Fraction(1, 12), Fraction(7, 12), Fraction(4, 12)]])
    assert nearest(tree, [farther, left, right], half) == (1, 2)
    assert nearest(tree, [left, half, right, half], half) == (1, 3)
    aside = tree.table([[Fraction(10**30 + 1), Fraction(10**30), Fraction(10**30)]])
    assert nearest(tree, [farther, right, left], normalised(aside)) == (2,)


def test_infinite_values_are_refused_with_their_place():
    tree = one_step(1.0)
    p, q = ((Fraction(1, 2), Fraction(1, 2)),), ((Fraction(1), Fraction(0)),)
    for function in (kl, exact_return):
        with pytest.raises(InputError, match="prompt 'x0', completion 'b': P has mass where"):
            function(tree, p, q)
        assert float(function(tree, q, q)) == 0.0
    assert float(kl(tree, q, p)) == pytest.approx(math.log(2), rel=1e-15)
    with pytest.raises(ValueError, match="no logarithm of 0"):
        LogSum.of([(Fraction(1), Fraction(0))])


# --- against float64 -----------------------------------------------------------------------------


@given(seeds, st.integers(1, 3))
def test_soft_values_and_likelihoods_agree_with_float64(seed, beta):
    rng, tree = few_shapes(seed)
    y = instances.random_table(rng, tree)
    reference = instances.random_distribution(rng, tree)
    p = instances.random_distribution(rng, tree)
    pairs = instances.random_comparisons(rng, tree, "any")
    leaves, r = tree.tree.leaves, dense(tree, y, beta)
    solved = soft_value_iteration(tree.tree, r, beta=float(beta))
    log_p = np.asarray(leaf_log_probs(tree.tree, solved.log_policy))[:, leaves]
    exact = path_probabilities(tree, soft_policy(tree, y))
    assert np.abs(log_p - dense(tree, exact)[:, leaves]).max() < 1e-12
    log_z = [math.log(sum(row)) for row in y]
    assert np.abs(np.asarray(solved.log_z) - log_z).max() < 1e-12
    mixed = log_optimal(tree.tree, r, float(beta), dense(tree, reference))[:, leaves]
    assert np.abs(mixed - dense(tree, normalised(times(y, reference)))[:, leaves]).max() < 1e-12
    log_q, target = dense(tree, p), dense(tree, exact)
    assert float_kl(tree.tree, log_q, target) == pytest.approx(float(kl(tree, p, exact)), abs=1e-12)
    policy = policy_from_leaves(tree.tree, log_q)
    gained = soft_return(tree.tree, policy, r, beta=float(beta)) / beta
    assert gained == pytest.approx(float(exact_return(tree, p, y)), abs=1e-12)
    value = bt_log_likelihood(r, pair_data(tree, pairs))
    exact_value = likelihood(y, pairs, beta=beta)
    log_value = math.log(exact_value.numerator) - math.log(exact_value.denominator)
    assert value == pytest.approx(log_value, rel=1e-12)


@given(seeds)
def test_argmax_sets_with_planted_ties_agree_with_float64(seed):
    rng, tree = few_shapes(seed)
    pairs = instances.random_comparisons(rng, tree, instances.KINDS[seed % 4])
    tables = [instances.random_distribution(rng, tree) for _ in range(4)]
    for table in list(tables):
        shifted = instances.component_shift(rng, tree, pairs, table)
        tables.append(table if shifted is None else normalised(shifted))
    exact = argmax([likelihood(table, pairs, beta=2) for table in tables])
    rewards = FiniteRewards.of(tree.tree, [dense(tree, table, 2) for table in tables])
    assert exact == tuple(fit_finite(rewards, pair_data(tree, pairs)).indices.tolist())
    target = normalised(instances.random_table(rng, tree))
    policies = FinitePolicies(
        tuple(policy_from_leaves(tree.tree, dense(tree, table)) for table in tables)
    )
    close = project_finite(tree.tree, policies.log_probs(tree.tree), dense(tree, target)).indices
    assert nearest(tree, tables, target) == tuple(close.tolist())


# --- limits and bad input ------------------------------------------------------------------------


def test_a_tree_of_500_completions():
    rng = np.random.default_rng(0)
    shape = TokenTree(tuple(f"t{i}" for i in range(22)), 2, ("x",), (1.0,))
    tree = ExactTree(shape)
    assert len(tree.completions) == 484
    y = instances.random_table(rng, tree, 1000)
    policy = soft_policy(tree, y)
    chain = path_probabilities(tree, policy)
    assert chain == normalised(y)
    rows = [rng.choice(484, size=2, replace=False).tolist() for _ in range(200)]
    pairs = comparisons(tree, [(0, a, b, 3) for a, b in rows])
    assert likelihood(chain, pairs, beta=2) == likelihood(y, pairs, beta=2)
    assert float(kl(tree, chain, normalised(instances.random_table(rng, tree, 1000)))) > 0


@pytest.mark.parametrize(("vocab", "horizon"), [(7, 3), (499, 1)])
def test_log_z_of_long_fractions_is_one_term_and_the_lemma_is_decided(vocab, horizon):
    """Z of 500 fractions of six digits has 10,000 bits: it must not enter each of 500 terms."""
    rng = np.random.default_rng(1)
    tokens = tuple(f"t{i}" for i in range(vocab))
    tree = ExactTree(TokenTree(tokens, horizon, ("x",), (1.0,)))
    y, other = (instances.random_table(rng, tree, 10**6) for _ in range(2))
    target = normalised(y)
    for p in (instances.random_distribution(rng, tree), normalised(other), target):
        gap = identity_gap(tree, p, y, target)
        assert gap.sign() == 0
        assert len(gap.terms) <= 6
        assert identity_gap(tree, p, y, normalised(other)).sign() != 0
    swapped = tuple((row[1], row[0], *row[2:]) for row in normalised(other))
    level = tuple((row[0], row[0], *row[2:]) for row in y)
    pair = [normalised(other), swapped]
    assert argmax([exact_return(tree, p, level) for p in pair]) == (0, 1)
    assert nearest(tree, pair, normalised(level)) == (0, 1)


def test_rows_without_mass_and_division_by_zero_are_refused():
    row = ((Fraction(0), Fraction(0)),)
    with pytest.raises(InputError, match="no completion has mass"):
        normalised(row)
    with pytest.raises(InputError, match="division by a table that is 0"):
        over(row, row)


def test_larger_trees_are_refused_with_size_and_limit():
    with pytest.raises(InputError, match=r"1,024 completions \(512 for each of 2 .*at most 500"):
        ExactTree(TokenTree(("a", "b"), 9, ("x", "y"), (0.5, 0.5)))
    assert LIMIT == 500


def test_a_likelihood_too_long_is_refused_with_its_limit():
    tree = one_step(1.0)
    y = tree.table([[Fraction(10**20), Fraction(1)]])
    with pytest.raises(InputError, match="10,000 comparisons at beta 2 takes more than 262,144"):
        likelihood(y, comparisons(tree, [(0, 0, 1, 10_000)]), beta=2)


@pytest.mark.parametrize("beta", [0, -1, 0.5, 1.5, math.inf, math.nan])
def test_beta_must_be_whole(beta):
    with pytest.raises(InputError, match=r"whole number beta >= 1, got"):
        check_whole_beta(beta)


@pytest.mark.parametrize("value", [0, -1, Fraction(-1, 2), True])
def test_a_table_names_what_is_no_positive_fraction(value):
    with pytest.raises(InputError, match="prompt 'x1', completion 'b': must be"):
        one_step(0.5, 0.5).table([[1, 1], [Fraction(1, 2), value]])


def test_a_table_of_floats_is_refused():
    with pytest.raises((InputError, TypeError), match=r"0\.5"):
        one_step(1.0).table([[0.5, 0.5]])


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"rows of \[2, 1\] numbers on a tree of 2 prompt"):
        one_step(0.5, 0.5).table([[1, 1], [1]])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((1, 0, 1, 1), "no prompt 1"),
        ((0, 0, 2, 1), "leaf 2 is no completion"),
        ((0, 1, 1, 1), "completion 1 is compared with itself"),
        ((0, 0, 1, 0), "whole number > 0, got 0"),
        ((0, 0, 1, 1.5), "whole number > 0, got 1.5"),
        ((0, 0, 1, math.nan), "whole number > 0, got nan"),
        ((0, 0, 1, math.inf), "whole number > 0, got inf"),
    ],
)
def test_a_bad_comparison_is_named(row, words):
    with pytest.raises(InputError, match=words):
        comparisons(one_step(1.0), [row])


def test_weights_sum_to_one_exactly():
    assert sum(one_step(0.1, 0.2, 0.7).weights) == 1
    assert one_step(0.5, 0.5).weights == (Fraction(1, 2), Fraction(1, 2))
    assert over(((Fraction(1),),), ((Fraction(2),),)) == ((Fraction(1, 2),),)


def test_the_comparison_graph_of_the_float_code_agrees_on_existence():
    tree = one_step(1.0, tokens="abc")
    pairs = comparisons(tree, [(0, 0, 1, 2), (0, 1, 0, 1), (0, 1, 2, 1)])
    optimum = tree_maximiser(tree, pairs)
    witness = comparison_graph(tree.tree, pair_data(tree, pairs)).witness
    assert witness is not None
    assert optimum.witness == (0, (0, 1)) == (witness.prompt, witness.leaves)


def test_no_jax_is_loaded():
    code = "import sys, theory.rational; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
