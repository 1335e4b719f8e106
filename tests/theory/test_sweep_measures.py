"""Measures of a fitted policy against their definitions, by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.operators import best_of_n, win_rate
from theory.sweep.measures import held_out_loss, measure
from theory.sweep.schema import BEST_OF
from theory.tree import TokenTree

TREE = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.25, 0.75), eos=".")
SHAPE = (2, 2, TREE.n_prompts, TREE.n_leaves)  # candidates, replicates


def log_policies(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random distributions over the completions of each prompt."""
    logits = np.where(TREE.leaf_mask, generator.normal(size=shape), -np.inf)
    top = np.exp(logits)
    with np.errstate(divide="ignore"):
        return np.log(top / top.sum(axis=-1, keepdims=True))


def one(found: dict[str, np.ndarray], k: int, i: int) -> dict[str, np.ndarray]:
    return {name: value[k, i] for name, value in found.items()}


def brute(reward, log_ref, log_p, score, beta: float) -> dict[str, float]:
    """Loops over prompts and pairs of completions."""
    out = dict.fromkeys(("kl", "regret", "val_loss", "val_accuracy"), 0.0)
    for x, weight in enumerate(TREE.weights):
        r, s, p = (row[x, TREE.leaves] for row in (reward, score, np.exp(log_p)))
        star = np.exp(r / beta) / np.exp(r / beta).sum()
        out["kl"] += weight * float((p * np.log(p / star)).sum())
        out["regret"] += weight * float((star - p) @ r)
        n = len(r)
        for i, j in itertools.permutations(range(n), 2):
            label = 1 / (1 + math.exp(r[j] - r[i]))
            share = weight / (n * (n - 1) / 2)
            out["val_loss"] += share * label * math.log1p(math.exp(s[j] - s[i]))
            tied = abs(s[i] - s[j]) < 1e-12
            out["val_accuracy"] += share * label * (0.5 if tied else float(s[i] > s[j]))
    out["win_rate"] = win_rate(TREE, log_p, log_ref, reward)
    return out


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.floats(0.3, 2.0), st.floats(-3.0, 3.0))
def test_measures_equal_their_definitions(seed: int, beta: float, shift: float):
    generator = np.random.default_rng(seed)
    reward = np.where(TREE.leaf_mask, generator.normal(size=SHAPE[1:]), 0.0)
    score = np.where(TREE.leaf_mask, 2.0 * generator.normal(size=SHAPE), 0.0)
    a, b, c = TREE.leaves[:3]
    reward[..., a] = reward[..., b]  # ties of the reward and of the score
    score[..., c] = score[..., b]
    log_p, log_ref = log_policies(generator, SHAPE), log_policies(generator, SHAPE[1:])
    found = measure(TREE, beta, reward + shift, log_ref, log_p, score - shift)
    for k, i in itertools.product(range(2), range(2)):
        have = one(found, k, i)
        wanted = brute(reward[i], log_ref[i], log_p[k, i], score[k, i], beta)
        for name, value in wanted.items():
            assert float(have[name]) == pytest.approx(value, abs=1e-12), name
        for n, value in zip(BEST_OF, have["best_of_n"], strict=True):
            best = np.exp(best_of_n(TREE, log_ref[i], score[k, i], n)) - np.exp(log_ref[i])
            gain = float((TREE.rho0 * (best * reward[i]).sum(axis=1)).sum())
            assert value == pytest.approx(gain, abs=1e-12), n


def test_the_truth_itself_has_no_kl_and_no_regret():
    generator = np.random.default_rng(3)
    reward = np.where(TREE.leaf_mask, generator.normal(size=SHAPE[1:]), 0.0)
    star = reward / 0.7
    star = np.where(TREE.leaf_mask, star, -np.inf)
    star = star - np.log(np.exp(star).sum(axis=-1, keepdims=True))
    log_ref = log_policies(generator, SHAPE[1:])
    found = measure(TREE, 0.7, reward, log_ref, star[None], reward[None])
    np.testing.assert_allclose(found["kl"], 0.0, atol=1e-14)
    np.testing.assert_allclose(found["regret"], 0.0, atol=1e-14)
    np.testing.assert_allclose(found["best_of_n"][..., 0], 0.0, atol=1e-14)
    assert (np.diff(found["best_of_n"], axis=-1) > 0).all()
    upside_down = measure(TREE, 0.7, reward, log_ref, star[None], -reward[None])
    np.testing.assert_allclose(found["val_accuracy"] + upside_down["val_accuracy"], 1.0, atol=1e-12)
    assert (upside_down["val_loss"] > found["val_loss"]).all()


def test_scores_far_apart_stay_finite_and_replicates_do_not_mix():
    generator = np.random.default_rng(4)
    many = (1, 11, *SHAPE[2:])
    reward = np.where(TREE.leaf_mask, generator.normal(size=many[1:]), 0.0)
    score = np.where(TREE.leaf_mask, 1e4 * generator.normal(size=many), 0.0)
    log_p, log_ref = log_policies(generator, many), log_policies(generator, many[1:])
    found = measure(TREE, 1.0, reward, log_ref, log_p, score)
    assert all(np.isfinite(value).all() for value in found.values())
    alone = measure(TREE, 1.0, reward[7:8], log_ref[7:8], log_p[:, 7:8], score[:, 7:8])
    for name, value in alone.items():
        assert (value == found[name][:, 7:8]).all(), name


def test_a_policy_that_never_says_a_thing_has_a_finite_kl():
    generator = np.random.default_rng(5)
    reward = np.where(TREE.leaf_mask, generator.normal(size=SHAPE[1:]), 0.0)
    log_p, log_ref = log_policies(generator, SHAPE), log_policies(generator, SHAPE[1:])
    log_p[..., TREE.leaves[0]] = -np.inf
    found = measure(TREE, 1.0, reward, log_ref, log_p, np.zeros(SHAPE))
    assert np.isfinite(found["kl"]).all()
    np.testing.assert_allclose(found["val_accuracy"], 0.5, atol=1e-12)
    np.testing.assert_allclose(found["val_loss"], math.log(2.0), atol=1e-12)


def test_the_held_out_loss_reads_the_last_pairs_only():
    score = np.array([[[[0.0, 1.0, 3.0]]], [[[0.0, -1.0, 2.0]]]])
    pairs = np.array([[[0, 1], [2, 1], [1, 0]]])
    found = held_out_loss(score, pairs, 2)
    softplus = lambda m: math.log1p(math.exp(-m))  # noqa: E731
    wanted = [(softplus(2.0) + softplus(1.0)) / 2, (softplus(3.0) + softplus(-1.0)) / 2]
    np.testing.assert_allclose(found[:, 0], wanted)
