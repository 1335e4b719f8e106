"""Online DPO in population: data and loss by hand, no minimiser without a ridge, one with it."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from theory.classes import TabularPolicies
from theory.errors import InputError
from theory.fit import ConvergenceError
from theory.operators import best_worst_of_k, temper
from theory.population import (
    GradientSteps,
    OnlineDpo,
    Ridge,
    online_dpo,
    online_dpo_loss,
    online_dpo_step,
    population_pairs,
)
from theory.preferences import comparison_graph
from theory.soft import kl, leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

PLAIN = TokenTree(("a", "b"), 2, ("x", "y"), (0.3, 0.7))
ENDING = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
TWO = TokenTree(("a", "b"), 1, ("x",), (1.0,))


def random_case(tree: TokenTree, seed: int):
    """(policy, utilities with ties)."""
    rng = np.random.default_rng(seed)
    shape = (tree.n_prompts, tree.n_leaves)
    log_p = np.where(tree.leaf_mask, rng.normal(size=shape), -np.inf)
    return policy_from_leaves(tree, log_p), rng.integers(0, 3, size=shape).astype(float)


def by_hand(tree, theta, theta_ref, mass, tau, beta):
    """The loss in plain numpy: one completion at a time, one softmax at a time."""

    def log_probs(flat):
        out, start = np.full((tree.n_prompts, tree.n_leaves), np.nan), 0
        levels = []
        for mask in tree.allowed_levels:
            size = tree.n_prompts * mask.size
            levels.append(flat[start : start + size].reshape(tree.n_prompts, *mask.shape))
            start += size
        for x, leaf in itertools.product(range(tree.n_prompts), tree.leaves):
            total = 0.0
            for h, mask in enumerate(tree.allowed_levels):
                state, token = divmod(leaf // tree.vocab ** (tree.horizon - 1 - h), tree.vocab)
                scaled = levels[h][x, state][mask[state]] / tau
                total += levels[h][x, state, token] / tau - np.log(np.exp(scaled).sum())
            out[x, leaf] = total
        return out

    ratio = log_probs(theta) - log_probs(theta_ref)
    return -sum(
        mass[x, i, j] * log_expit(beta * (ratio[x, i] - ratio[x, j]))
        for x, i, j in zip(*np.nonzero(mass), strict=True)
    )


def slope_by_differences(function, theta, step=1e-5):
    moves = step * np.eye(len(theta))
    return np.asarray([(function(theta + m) - function(theta - m)) / (2 * step) for m in moves])


def enumerated_pairs(tree, log_p, u, k):
    """rho0 times the chance of (best, worst), and of no pair, by enumeration of the draws."""
    mass, tied = np.zeros((*u.shape, u.shape[1])), np.zeros(tree.n_prompts)
    for x in range(tree.n_prompts):
        for drawn in itertools.product(tree.leaves, repeat=k):
            chance = np.exp(log_p[x, list(drawn)].sum())
            values = u[x, list(drawn)]
            best = [i for i, v in zip(drawn, values, strict=True) if v == values.max()]
            worst = [i for i, v in zip(drawn, values, strict=True) if v == values.min()]
            if values.max() == values.min():
                tied[x] += chance
                continue
            for i, j in itertools.product(best, worst):
                mass[x, i, j] += tree.weights[x] * chance / len(best) / len(worst)
    return mass, tied


def test_one_step_is_the_slope_of_the_loss_by_hand():
    tree = ENDING
    policy, u = random_case(tree, 1)
    tau, beta, k, rate = 0.4, 0.7, 3, 0.01
    log_p = np.asarray(leaf_log_probs(tree, temper(tree, policy, tau)))
    mass, tied = enumerated_pairs(tree, log_p, u, k)
    policies = TabularPolicies.of(tree)
    theta = policies.logits(policy)

    def loss(at, tau=tau):
        return by_hand(tree, at, theta, mass, tau, beta)

    setting = OnlineDpo(k, tau, beta, GradientSteps(1, rate))
    after = online_dpo_step(tree, policy, u, setting)
    np.testing.assert_allclose(after.no_pair, tied, atol=1e-13)
    moved = theta - rate * slope_by_differences(loss, theta)
    expected = np.asarray(leaf_log_probs(tree, list(policies.log_policy(jnp.asarray(moved)))))
    np.testing.assert_allclose(after.log_p[:, tree.leaves], expected[:, tree.leaves], atol=1e-9)
    assert after.loss == pytest.approx(loss(moved), abs=1e-10)
    assert after.gradient == pytest.approx(
        np.linalg.norm(slope_by_differences(loss, moved)), abs=1e-8
    )
    pairs = best_worst_of_k(tree, log_p, u, k)
    assert online_dpo_loss(
        tree, after.log_policy, policy, pairs, tau=tau, beta=beta
    ) == pytest.approx(after.loss, abs=1e-12)
    untempered = slope_by_differences(lambda at: loss(at, 1.0), theta)  # logits not divided by tau
    assert np.linalg.norm(untempered - slope_by_differences(loss, theta)) > 0.01


def test_the_loss_has_no_minimiser_even_in_population():
    tree = ENDING
    policy, u = random_case(tree, 2)
    tau, beta, k = 0.5, 0.5, 25
    tempered = np.asarray(leaf_log_probs(tree, temper(tree, policy, tau)))
    pairs = best_worst_of_k(tree, tempered, u, k)
    graph = comparison_graph(tree, population_pairs(tree, pairs))
    assert not graph.exists
    assert graph.witness is not None
    along = np.zeros_like(tempered)
    along[graph.witness.prompt, list(graph.witness.leaves)] = 1.0
    losses = []
    for t in (0.0, 1.0, 10.0, 100.0):
        target = policy_from_leaves(tree, tempered + t * along)  # tempered log-ratios: t on them
        moved = temper(tree, target, 1.0 / tau)
        losses.append(online_dpo_loss(tree, moved, policy, pairs, tau=tau, beta=beta))
    assert (np.diff(losses) < 0).all()
    runs = [
        online_dpo_step(tree, policy, u, OnlineDpo(k, tau, beta, GradientSteps(steps, 1.0)))
        for steps in (0, 10, 100, 1000)
    ]
    assert (np.diff([run.loss for run in runs]) < 0).all()
    assert runs[0].loss == pytest.approx(np.log(2.0) * tree.rho0 @ (1.0 - runs[0].no_pair))
    assert (np.diff([run.kl_from_start for run in runs]) > 0).all()
    assert all(run.gradient > 1e-6 for run in runs)


def test_with_pairs_both_ways_there_is_a_minimiser():
    """The twin of the absence: labels that err now and then close the cycles."""
    policy, u = random_case(PLAIN, 2)
    pairs = best_worst_of_k(PLAIN, np.asarray(leaf_log_probs(PLAIN, policy)), u, 3)
    noisy = type(pairs)(0.9 * pairs.joint + 0.1 * pairs.joint.transpose(0, 2, 1), pairs.no_pair)
    assert comparison_graph(PLAIN, population_pairs(PLAIN, noisy)).exists


def test_a_ridge_makes_a_stationary_point():
    tree = ENDING
    policy, u = random_case(tree, 3)
    tau, beta, k, strength = 0.8, 0.9, 4, 0.05
    after = online_dpo_step(tree, policy, u, OnlineDpo(k, tau, beta, Ridge(strength)))
    assert after.gradient <= 1e-10
    policies = TabularPolicies.of(tree)
    theta = policies.logits(policy)
    mass = tree.rho0[:, None, None] * (
        best_worst_of_k(tree, leaf_log_probs(tree, temper(tree, policy, tau)), u, k).joint
    )
    moved = policies.logits(after.log_policy)
    # the ridge fixes the shift of each state: the logits move by 0 on average over its tokens
    start = 0
    for mask in tree.allowed_levels:
        size = tree.n_prompts * mask.size
        block = slice(start, start + size)
        gap = (moved - theta)[block].reshape(tree.n_prompts, *mask.shape)
        count = np.maximum(mask.sum(axis=1), 1)[None, :, None]
        gap = np.where(mask, gap - (gap * mask).sum(axis=2, keepdims=True) / count, 0.0)
        moved[block] = theta[block] + gap.reshape(-1)
        start += size

    def objective(at):
        ridge = 0.5 * strength * ((at - theta) ** 2).sum()
        return by_hand(tree, at, theta, mass, tau, beta) + ridge

    assert np.abs(slope_by_differences(objective, moved)).max() < 1e-8
    assert np.abs(slope_by_differences(objective, theta)).max() > 0.01
    rng = np.random.default_rng(4)
    assert all(
        objective(moved + 0.1 * rng.normal(size=len(theta))) > objective(moved) for _ in range(20)
    )


def test_the_ridge_optimum_of_two_completions_by_a_root():
    policy = policy_from_leaves(TWO, np.log([[0.7, 0.3]]))
    tau, beta, k, strength = 0.5, 0.8, 5, 0.1
    after = online_dpo_step(
        TWO, policy, np.asarray([[0.0, 1.0]]), OnlineDpo(k, tau, beta, Ridge(strength))
    )
    p = expit((np.log(0.7) - np.log(0.3)) / tau)
    made = 1.0 - p**k - (1.0 - p) ** k
    assert after.no_pair[0] == pytest.approx(1.0 - made, abs=1e-14)
    d = brentq(
        lambda d: made * beta / tau * expit(-beta * d / tau) - strength * d / 2, 0, 100, xtol=1e-15
    )
    gap = after.log_p[0, 1] - after.log_p[0, 0]
    assert gap == pytest.approx(np.log(0.3) - np.log(0.7) + d, abs=1e-12)


@pytest.mark.parametrize("update", [GradientSteps(25, 1.0), Ridge(0.02)])
def test_each_policy_generates_the_data_and_is_the_reference_of_the_next(update):
    policy, u = random_case(ENDING, 5)
    u = u + np.linspace(0.0, 0.5, u.size).reshape(u.shape)
    setting, done = OnlineDpo(4, 0.5, 0.3, update), []
    rounds = online_dpo(ENDING, policy, u, setting, iterations=3, report=done.append)
    assert done == [1, 2, 3]
    at = policy
    for found in rounds:
        alone = online_dpo_step(ENDING, at, u, setting)
        np.testing.assert_allclose(alone.log_p, found.log_p, atol=1e-11)
        at = found.log_policy
    if isinstance(update, GradientSteps):  # as many steps, the data and reference never renewed
        update = GradientSteps(3 * update.steps, update.rate)
    stale = online_dpo_step(ENDING, policy, u, OnlineDpo(4, 0.5, 0.3, update))
    assert kl(ENDING, rounds[2].log_p, stale.log_p) > 0.01
    assert (np.diff([found.utility for found in rounds]) > 0).all()
    assert (np.diff([found.kl_from_start for found in rounds]) > 0).all()
    assert (rounds[2].no_pair > rounds[0].no_pair).all()  # draws agree more and more
    again = online_dpo(ENDING, policy, 2.0 * u + 7.0, setting, iterations=1)[0]
    np.testing.assert_allclose(again.log_p, rounds[0].log_p, atol=1e-12)


@settings(max_examples=8)
@given(st.integers(0, 2**31), st.permutations(range(2)))
def test_renaming_the_tokens_renames_the_result(seed: int, order):
    policy, u = random_case(PLAIN, seed)
    setting = OnlineDpo(3, 0.7, 0.5, GradientSteps(20, 1.0))
    place = [order[i] * 2 + order[j] for i, j in itertools.product(range(2), range(2))]
    log_p = np.asarray(leaf_log_probs(PLAIN, policy))
    moved = policy_from_leaves(PLAIN, log_p[:, place])
    found = online_dpo_step(PLAIN, moved, u[:, place], setting).log_p
    np.testing.assert_allclose(
        found, online_dpo_step(PLAIN, policy, u, setting).log_p[:, place], atol=1e-12
    )


def test_a_prompt_whose_completions_all_tie_stays_where_it_is_and_is_counted():
    policy, u = random_case(ENDING, 6)
    u[0] = 1.0
    before = np.asarray(leaf_log_probs(ENDING, policy))[:, ENDING.leaves]
    for update in (GradientSteps(30, 1.0), Ridge(0.1)):
        found = online_dpo_step(ENDING, policy, u, OnlineDpo(5, 0.5, 0.3, update))
        assert found.no_pair[0] == pytest.approx(1.0, abs=1e-14)
        assert found.no_pair[1] < 0.9
        after = found.log_p[:, ENDING.leaves]
        np.testing.assert_allclose(after[0], before[0], atol=1e-14)
        assert np.abs(after[1] - before[1]).max() > 0.01


def test_bad_settings_are_named():
    policy, u = random_case(PLAIN, 7)
    steps = GradientSteps(1, 1.0)
    for bad, word in (
        (lambda: OnlineDpo(1, 0.1, 0.1, steps), "k must be"),
        (lambda: OnlineDpo(2, 0.0, 0.1, steps), "tau"),
        (lambda: OnlineDpo(2, 0.1, float("nan"), steps), "beta"),
        (lambda: GradientSteps(-1, 1.0), "steps"),
        (lambda: GradientSteps(1, 0.0), "rate"),
        (lambda: Ridge(0.0), "strength"),
        (lambda: online_dpo(PLAIN, policy, u, OnlineDpo(2, 1.0, 1.0, steps), iterations=0), "iter"),
    ):
        with pytest.raises(InputError, match=word):
            bad()
    setting = OnlineDpo(2, 1.0, 1.0, steps)
    with np.errstate(divide="ignore"):
        gone = policy_from_leaves(PLAIN, np.log([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.3, 0.3]]))
    with pytest.raises(InputError, match="'b' no probability at prompt 'x', level 0"):
        online_dpo_step(PLAIN, gone, u, setting)
    with pytest.raises(InputError, match="gradient at the generating policy"):
        online_dpo_step(PLAIN, policy, u, OnlineDpo(2, 1.0, 1e300, steps))
    with pytest.raises(ConvergenceError, match=r"rate=1e\+308.*steps are too large"):
        online_dpo_step(PLAIN, policy, u, OnlineDpo(2, 0.1, 99.0, GradientSteps(3, 1e308)))
