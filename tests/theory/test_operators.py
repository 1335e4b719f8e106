"""Tempering, best-of-N, best/worst-of-K and win rates against enumeration of the draws."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.errors import InputError
from theory.operators import beats, best_of_n, best_worst_of_k, temper, win_rate
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

PLAIN = TokenTree(("a", "b"), 2, ("x", "y"), (0.3, 0.7))
ENDING = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
TREES = [PLAIN, ENDING]


def random_case(tree: TokenTree, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(log P, utilities with planted ties)."""
    generator = np.random.default_rng(seed)
    score = np.where(
        tree.leaf_mask, generator.normal(size=(tree.n_prompts, tree.n_leaves)), -np.inf
    )
    log_p = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
    return log_p, generator.integers(0, 3, size=log_p.shape).astype(float)


def draws(p: np.ndarray, k: int):
    """Every sequence of k leaves with its probability."""
    for leaves in itertools.product(np.flatnonzero(p), repeat=k):
        yield leaves, float(np.prod(p[list(leaves)]))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_equals_enumeration(tree: TokenTree, n: int):
    log_p, u = random_case(tree, 3)
    expected = np.zeros_like(u)
    for x in range(tree.n_prompts):
        for leaves, mass in draws(np.exp(log_p[x]), n):
            best = [leaf for leaf in leaves if u[x, leaf] == max(u[x, list(leaves)])]
            for leaf in best:
                expected[x, leaf] += mass / len(best)
    np.testing.assert_allclose(np.exp(best_of_n(tree, log_p, u, n)), expected, atol=1e-14)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_best_and_worst_equal_enumeration(tree: TokenTree, k: int):
    log_p, u = random_case(tree, 5)
    expected, tied = np.zeros((*u.shape, u.shape[1])), np.zeros(tree.n_prompts)
    for x in range(tree.n_prompts):
        for leaves, mass in draws(np.exp(log_p[x]), k):
            values = u[x, list(leaves)]
            best = [leaf for leaf, v in zip(leaves, values, strict=True) if v == values.max()]
            worst = [leaf for leaf, v in zip(leaves, values, strict=True) if v == values.min()]
            if values.max() == values.min():
                tied[x] += mass
                continue
            for i, j in itertools.product(best, worst):
                expected[x, i, j] += mass / len(best) / len(worst)
    pairs = best_worst_of_k(tree, log_p, u, k)
    np.testing.assert_allclose(pairs.joint, expected, atol=1e-14)
    np.testing.assert_allclose(pairs.no_pair, tied, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 30), st.floats(0.1, 5.0), st.floats(-9.0, 9.0))
def test_only_the_order_of_utilities_counts(seed: int, k: int, scale: float, shift: float):
    log_p, u = random_case(ENDING, seed)
    pairs, moved = (best_worst_of_k(ENDING, log_p, v, k) for v in (u, np.exp(u) * scale + shift))
    np.testing.assert_allclose(pairs.joint, moved.joint, atol=1e-15)
    np.testing.assert_allclose(pairs.joint.sum(axis=(1, 2)) + pairs.no_pair, 1.0, atol=1e-12)
    turned = best_worst_of_k(ENDING, log_p, -u, k).joint
    np.testing.assert_allclose(pairs.joint, turned.transpose(0, 2, 1), atol=1e-13)


@pytest.mark.parametrize("tree", TREES)
def test_win_rate_equals_enumeration_and_both_sides_sum_to_one(tree: TokenTree):
    log_p, u = random_case(tree, 7)
    log_q, _ = random_case(tree, 8)
    expected = sum(
        weight * np.exp(log_p[x, i] + log_q[x, j]) * (1.0 if u[x, i] > u[x, j] else 0.5)
        for x, weight in enumerate(tree.weights)
        for i in tree.leaves
        for j in tree.leaves
        if u[x, i] >= u[x, j]
    )
    assert win_rate(tree, log_p, log_q, u) == pytest.approx(expected, abs=1e-14)
    both = win_rate(tree, log_p, log_q, u) + win_rate(tree, log_q, log_p, u)
    assert both == pytest.approx(1.0, abs=1e-14)


def test_beats_integrates_to_the_win_rate():
    log_p, u = random_case(PLAIN, 9)
    log_q, _ = random_case(PLAIN, 10)
    chance = np.sum(PLAIN.rho0[:, None] * np.exp(log_p) * beats(u, np.exp(log_q)))
    assert chance == pytest.approx(win_rate(PLAIN, log_p, log_q, u), abs=1e-14)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_tempering_is_a_token_at_a_time(tree: TokenTree, tau: float):
    log_p, _ = random_case(tree, 11)
    policy = policy_from_leaves(tree, log_p)
    tempered = temper(tree, policy, tau)
    for level, before in zip(tempered, policy, strict=True):
        for row, old in zip(
            np.exp(np.asarray(level).reshape(-1, tree.vocab)),
            np.exp(np.asarray(before).reshape(-1, tree.vocab)),
            strict=True,
        ):
            if old.sum() > 0:
                np.testing.assert_allclose(
                    row, old ** (1 / tau) / (old ** (1 / tau)).sum(), atol=1e-14
                )
            else:
                assert row.sum() == 0
    total = np.exp(np.asarray(leaf_log_probs(tree, tempered))).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)
    if tau != 1.0:
        whole = jnp.exp(jnp.asarray(log_p) / tau)
        whole = whole / whole.sum(axis=1, keepdims=True)
        assert np.abs(np.exp(np.asarray(leaf_log_probs(tree, tempered))) - whole).max() > 1e-3


def test_bad_arguments_are_named():
    log_p, u = random_case(PLAIN, 1)
    with pytest.raises(InputError, match=r"-0\.1"):
        temper(PLAIN, policy_from_leaves(PLAIN, log_p), -0.1)
    with pytest.raises(InputError, match="got 0"):
        best_of_n(PLAIN, log_p, u, 0)
    with pytest.raises(InputError, match="got 1"):
        best_worst_of_k(PLAIN, log_p, u, 1)
    with pytest.raises(InputError, match="'x'"):
        win_rate(PLAIN, log_p + 0.1, log_p, u)
    with pytest.raises(InputError, match="not finite"):
        win_rate(PLAIN, log_p, log_p, np.full_like(u, np.nan))
