"""Soft value iteration against plain enumeration, and the symmetries it must have."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.claims.instances import random_log_p, random_reward, random_tree
from theory.errors import InputError
from theory.soft import (
    entropy,
    expected_reward,
    hard_policy,
    hard_value_iteration,
    kl,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
    uniform_over_completions,
)
from theory.tree import TokenTree

shapes = st.sampled_from([(1, 2, 3), (2, 3, 2), (2, 2, 4)])
seeds = st.integers(0, 10**6)
betas = st.floats(0.1, 10.0)


def instance(shape, seed, scale=2.0):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    return tree, random_reward(rng, tree, scale), rng


def log_sum(terms):
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))


@given(shapes, seeds, betas)
def test_values_and_policy_equal_enumeration(shape, seed, beta):
    """V(s) = beta log sum over the completions below s; pi(a|s) = their share below s.a."""
    tree, r, _ = instance(shape, seed)
    solution = soft_value_iteration(tree, r, beta=beta)
    padded = {}
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        padded[words + (tree.eos or "",) * (tree.horizon - len(words))] = int(leaf)
    for p in range(tree.n_prompts):
        for h in range(tree.horizon + 1):
            below = {}
            for words, leaf in padded.items():
                below.setdefault(words[:h], []).append(r[p, leaf] / beta)
            exact = {state: log_sum(terms) for state, terms in below.items()}
            for state, value in exact.items():
                index = sum(
                    tree.tokens.index(w) * tree.vocab ** (h - 1 - i) for i, w in enumerate(state)
                )
                assert abs(float(solution.values[h][p, index]) / beta - value) < 1e-12 * (
                    1 + abs(value)
                )
                if h:
                    parent, token = divmod(index, tree.vocab)
                    up = log_sum([t for s, ts in below.items() if s[:-1] == state[:-1] for t in ts])
                    found = float(solution.log_policy[h - 1][p, parent, token])
                    assert abs(found - (value - up)) < 1e-11
            live = np.isfinite(np.asarray(solution.values[h][p]))
            assert live.sum() == len(exact)


@given(shapes, seeds, betas)
def test_the_chain_of_conditionals_is_the_optimal_distribution(shape, seed, beta):
    tree, r, rng = instance(shape, seed)
    log_ref = random_log_p(rng, tree)
    paid = r + beta * np.where(tree.leaf_mask, log_ref, 0.0)
    for reward, reference in ((r, None), (paid, log_ref)):
        solution = soft_value_iteration(tree, reward, beta=beta)
        chained = np.asarray(leaf_log_probs(tree, solution.log_policy))
        direct = log_optimal(tree, r, beta, reference)
        np.testing.assert_allclose(chained[:, tree.leaves], direct[:, tree.leaves], atol=1e-10)
        assert np.isneginf(chained[:, ~tree.leaf_mask]).all()


@given(shapes, seeds, betas, st.floats(-50, 50))
def test_a_shift_of_the_reward_shifts_values_alone(shape, seed, beta, shift):
    tree, r, _ = instance(shape, seed)
    one, two = (soft_value_iteration(tree, x, beta=beta) for x in (r, r + shift))
    np.testing.assert_allclose(np.asarray(two.log_z - one.log_z), shift / beta, atol=1e-10)
    for a, b in zip(one.log_policy, two.log_policy, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-10)


@given(shapes, seeds, betas, st.floats(0.2, 5.0))
def test_reward_and_beta_scale_together(shape, seed, beta, scale):
    tree, r, _ = instance(shape, seed)
    one = soft_value_iteration(tree, r, beta=beta)
    two = soft_value_iteration(tree, scale * r, beta=scale * beta)
    for a, b in zip(one.log_policy, two.log_policy, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-10)


@given(seeds, st.permutations([0, 1, 2]))
def test_renaming_the_tokens_permutes_the_policy(seed, order):
    rng = np.random.default_rng(seed)
    tree = TokenTree(("a", "b", "c"), 2, ("x",), (1.0,))
    r = rng.normal(size=(1, 9))
    renamed = r.reshape(1, 3, 3)[:, order][:, :, order].reshape(1, 9)
    one, two = (soft_value_iteration(tree, x).log_policy for x in (r, renamed))
    np.testing.assert_allclose(
        np.asarray(one[0])[0, 0, order], np.asarray(two[0])[0, 0], atol=1e-13
    )
    permuted = np.asarray(one[1])[0][order][:, order]
    np.testing.assert_allclose(permuted, np.asarray(two[1])[0], atol=1e-13)


def test_large_beta_is_uniform_over_completions_not_over_tokens():
    tree = TokenTree(("a", "e"), 3, ("x",), (1.0,), eos="e")
    r = np.random.default_rng(0).normal(size=(1, 8))
    first = np.exp(np.asarray(soft_value_iteration(tree, r, beta=1e9).log_policy[0]))[0, 0]
    np.testing.assert_allclose(first, [3 / 4, 1 / 4], atol=1e-8)


def test_small_beta_takes_the_best_completion_without_overflow():
    tree = TokenTree(("a", "b"), 3, ("x",), (1.0,))
    r = np.arange(8.0)[None]
    solution = soft_value_iteration(tree, r, beta=1e-6)
    assert float(solution.values[0][0, 0]) == 7.0
    assert float(leaf_log_probs(tree, solution.log_policy)[0, 7]) == 0.0


@given(shapes, seeds)
def test_a_policy_is_its_completion_distribution(shape, seed):
    tree, _, rng = instance(shape, seed)
    log_p = random_log_p(rng, tree)
    back = np.asarray(leaf_log_probs(tree, policy_from_leaves(tree, log_p + 3.0)))
    np.testing.assert_allclose(back[:, tree.leaves], log_p[:, tree.leaves], atol=1e-12)


def test_expectations_by_hand():
    tree = TokenTree(("a", "b"), 1, ("x", "y"), (0.25, 0.75))
    p, q = np.log([[0.5, 0.5], [0.2, 0.8]]), np.log([[0.25, 0.75], [0.2, 0.8]])
    by_hand = 0.25 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl(tree, p, q) == pytest.approx(by_hand, abs=1e-15)
    tail = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert entropy(tree, p) == pytest.approx(0.25 * math.log(2) + 0.75 * tail, abs=1e-15)
    r = np.asarray([[1.0, 3.0], [0.0, 10.0]])
    assert expected_reward(tree, p, r) == pytest.approx(0.25 * 2 + 0.75 * 8, abs=1e-14)


def test_kl_with_zeros():
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    sure = np.asarray([[0.0, -np.inf]])
    assert kl(tree, sure, np.log([[0.5, 0.5]])) == pytest.approx(math.log(2))
    assert kl(tree, np.log([[0.5, 0.5]]), sure) == math.inf
    assert entropy(tree, sure) == 0.0


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_positive(beta):
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    with pytest.raises(InputError, match="beta must be > 0"):
        soft_value_iteration(tree, np.zeros((1, 2)), beta=beta)


@pytest.mark.parametrize("beta", [1e-309, 5e-324, 1e308])
def test_a_beta_without_a_normal_inverse_is_refused(beta):
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    for solve in (soft_value_iteration, log_optimal):
        with pytest.raises(InputError, match=re.escape(f"7, got {beta!r}")):
            solve(tree, np.zeros((1, 2)), beta=beta)


def test_a_reward_that_is_not_finite_is_named():
    tree = TokenTree(("a", "b"), 2, ("x", "y"), (0.5, 0.5))
    r = np.zeros((2, 4))
    r[1, 2] = np.nan
    with pytest.raises(InputError, match="prompt 'y', completion 'b a'"):
        soft_value_iteration(tree, r)


def test_masked_slots_are_never_read():
    tree = TokenTree(("a", "e"), 2, ("x",), (1.0,), eos="e")
    r = np.asarray([[1.0, 2.0, np.nan, 3.0]])
    total = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    assert float(soft_value_iteration(tree, r).log_z[0]) == pytest.approx(total)


def test_wrong_shapes_are_refused():
    tree = TokenTree(("a", "b"), 2, ("x",), (1.0,))
    with pytest.raises(InputError, match=r"shape \(1, 3\)"):
        soft_value_iteration(tree, np.zeros((1, 3)))
    with pytest.raises(InputError, match="level shapes"):
        leaf_log_probs(tree, [])


def test_a_reference_without_mass_on_a_prompt_is_refused():
    tree = TokenTree(("a", "b"), 1, ("x", "y"), (0.5, 0.5))
    log_ref = np.asarray([[0.0, -np.inf], [-np.inf, -np.inf]])
    with pytest.raises(InputError, match="no mass on prompt 'y'"):
        log_optimal(tree, np.zeros((2, 2)), 1.0, log_ref)


def test_kl_is_infinite_also_where_p_underflows():
    tree = TokenTree(("a", "b"), 2, ("x",), (1.0,))
    r = np.asarray([[0.0, -10.0, -20.0, -30.0]])
    soft = soft_value_iteration(tree, r, beta=0.02).log_policy
    p, q = (leaf_log_probs(tree, policy) for policy in (soft, hard_policy(tree, r)))
    assert kl(tree, p, q) == math.inf
    assert kl(tree, q, p) == pytest.approx(0.0, abs=1e-15)


def test_nan_is_never_a_distance_of_0():
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    good, bad = np.log([[0.5, 0.5]]), np.asarray([[np.nan, np.log(0.5)]])
    nowhere = np.full((1, 2), np.nan)
    for p, q in ((bad, good), (good, bad), (nowhere, good), (nowhere, nowhere)):
        assert np.isnan(kl(tree, p, q))
    nowhere_under_p = np.asarray([[-np.inf, 0.0]])
    assert np.isnan(kl(tree, nowhere_under_p, bad))
    assert np.isnan(kl(tree, np.asarray([[np.nan, 0.0]]), nowhere_under_p))
    assert np.isnan(entropy(tree, bad))
    assert np.isnan(entropy(tree, nowhere))


# --- the limits in beta --------------------------------------------------------------------------


def complete(vocab, horizon, prompts=1):
    names = tuple(f"x{i}" for i in range(prompts))
    tokens = tuple(f"t{i}" for i in range(vocab))
    return TokenTree(tokens, horizon, names, (1.0 / prompts,) * prompts)


def tied_instance(shape, seed):
    tree, _, rng = instance(shape, seed)
    return tree, rng.integers(0, 3, size=(tree.n_prompts, tree.n_leaves)).astype(float), rng


@given(shapes, seeds)
def test_hard_values_and_ties_equal_enumeration(shape, seed):
    tree, r, _ = tied_instance(shape, seed)
    hard = hard_value_iteration(tree, r)
    for p in range(tree.n_prompts):
        best = max(r[p, leaf] for leaf in tree.leaves)
        optimal = [int(leaf) for leaf in tree.leaves if r[p, leaf] == best]
        assert hard.values[0][p, 0] == best
        assert hard.n_optimal[0][p, 0] == len(optimal)
        for leaf in tree.leaves:
            path = [
                hard.argmax[h][p].reshape(-1)[int(leaf) // tree.vocab ** (tree.horizon - 1 - h)]
                for h in range(tree.horizon)
            ]
            assert all(path) == (int(leaf) in optimal)


@given(shapes, seeds, st.booleans())
def test_the_hard_policy_is_the_limit_of_the_soft_one_at_every_state(shape, seed, with_reference):
    tree, r, rng = tied_instance(shape, seed)
    log_ref = random_log_p(rng, tree) if with_reference else None
    beta = 1e-3  # rewards differ by 1 or not at all: exp(-1000) is 0
    paid = r if log_ref is None else r + beta * np.where(tree.leaf_mask, log_ref, 0.0)
    soft = soft_value_iteration(tree, paid, beta=beta).log_policy
    for a, b in zip(soft, hard_policy(tree, r, log_ref), strict=True):
        np.testing.assert_allclose(np.exp(np.asarray(a)), np.exp(np.asarray(b)), atol=1e-9)


@given(shapes, seeds)
def test_the_hard_policy_shares_equally_over_the_optimal_completions(shape, seed):
    tree, r, _ = tied_instance(shape, seed)
    p = np.exp(np.asarray(leaf_log_probs(tree, hard_policy(tree, r))))[:, tree.leaves]
    best = r[:, tree.leaves] == r[:, tree.leaves].max(axis=1, keepdims=True)
    np.testing.assert_allclose(p, best / best.sum(axis=1, keepdims=True), atol=1e-13)


def test_a_reference_of_0_forbids_a_best_completion():
    tree = complete(2, 2)
    log_ref = np.append(np.log([[0.25, 0.25, 0.5]]), [[-np.inf]], axis=1)
    policy = hard_policy(tree, np.asarray([[1.0, 1.0, 0.0, 2.0]]), log_ref)
    p = np.exp(np.asarray(leaf_log_probs(tree, policy)))
    np.testing.assert_allclose(p, [[0.5, 0.5, 0.0, 0.0]], atol=1e-15)
    with pytest.raises(InputError, match="no mass on prompt 'x0'"):
        hard_policy(tree, np.zeros((1, 4)), np.full((1, 4), -np.inf))


@given(shapes, seeds)
def test_uniform_over_completions_is_the_limit_of_large_beta(shape, seed):
    tree, r, _ = instance(shape, seed)
    uniform = uniform_over_completions(tree)
    p = np.exp(np.asarray(leaf_log_probs(tree, uniform)))[:, tree.leaves]
    np.testing.assert_allclose(p, 1.0 / len(tree.leaves), atol=1e-13)
    soft = soft_value_iteration(tree, r, beta=1e10).log_policy
    for a, b in zip(soft, uniform, strict=True):
        np.testing.assert_allclose(np.exp(np.asarray(a)), np.exp(np.asarray(b)), atol=1e-8)
