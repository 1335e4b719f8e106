"""The arms of the sweep: their classes, their ranks, and fits that must agree (Theorem 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from theory.arms import Arm, Fit, fit, jacobian_rank, make_arm, pair_objective, soft_policy
from theory.errors import InputError
from theory.grid import ARM_NAMES
from theory.soft import soft_value_iteration
from theory.sweep import draw_pairs, true_reward
from theory.tree import TokenTree

RIDGES = (0.03, 1.0, 10.0)


def problem(bits: int, n_pairs: int, replicates: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, weights) of a degree-2 reward of sharpness 2."""
    rewards = [true_reward(bits, 2, 2.0, seed) for seed in range(replicates)]
    pairs = [draw_pairs(r, n_pairs, seed) for seed, r in enumerate(rewards)]
    return np.stack(pairs), np.ones(n_pairs)


def fitted_log_probs(arm: Arm, result: Fit) -> np.ndarray:
    return np.asarray(jax.vmap(jax.vmap(arm.log_probs))(jnp.asarray(result.theta)))


@pytest.mark.parametrize(
    ("name", "parameters", "rank"),
    [
        ("two_stage", 36, 36),
        ("offline_all", 502, 255),
        ("offline_all_one_hot", 510, 255),
        ("offline_matched", 120, 36),
        ("offline_proper", 36, 36),
    ],
)
def test_parameters_and_jacobian_ranks_of_eight_bits(name: str, parameters: int, rank: int):
    arm = make_arm(name, 8, 2, 8, 1.0)
    assert arm.n_parameters == parameters
    assert jacobian_rank(arm) == rank


@pytest.mark.parametrize("name", ARM_NAMES)
@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_every_policy_is_a_distribution_and_starts_uniform(name: str, horizon: int):
    arm = make_arm(name, 4, 2, horizon, 0.7)
    np.testing.assert_allclose(arm.log_probs(jnp.zeros(arm.n_parameters)), -4 * np.log(2))
    theta = jnp.asarray(np.random.default_rng(0).normal(size=arm.n_parameters))
    assert float(jnp.exp(arm.log_probs(theta)).sum()) == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.floats(-5.0, 5.0), st.sampled_from([1, 2, 4]))
def test_the_traceable_soft_policy_is_soft_value_iteration(seed: int, shift: float, horizon: int):
    vocab = 16 ** (1 / horizon)
    tree = TokenTree(tuple(map(str, range(round(vocab)))), horizon, ("x",), (1.0,))
    r = np.random.default_rng(seed).normal(size=(1, 16)) * 3
    expected = soft_value_iteration(tree, r, beta=1.0).log_policy
    for level, other in zip(
        soft_policy(jnp.asarray(r[0] + shift), tree.vocab), expected, strict=True
    ):
        np.testing.assert_allclose(level, other[0], atol=1e-12)


def test_offline_all_reaches_every_policy():
    target = np.random.default_rng(1).normal(size=8)
    target = target - np.log(np.exp(target).sum())
    for name in ("offline_all", "offline_all_one_hot"):
        arm = make_arm(name, 3, 3, 3, 1.0)
        found = minimize(
            lambda t, arm=arm: float(-(np.exp(target) * arm.log_probs(jnp.asarray(t))).sum()),
            np.zeros(arm.n_parameters),
            jac=jax.grad(lambda t, arm=arm: -(jnp.exp(target) * arm.log_probs(t)).sum()),
        )
        np.testing.assert_allclose(arm.log_probs(jnp.asarray(found.x)), target, atol=1e-4)


@pytest.mark.parametrize(("bits", "horizon", "beta"), [(5, 5, 1.0), (4, 2, 0.5)])
def test_proper_offline_learning_equals_two_stage(bits: int, horizon: int, beta: float):
    pairs, weights = problem(bits, 100)
    results = {}
    for name in ("two_stage", "offline_proper"):
        arm = make_arm(name, bits, 2, horizon, beta)
        result = fit(arm, pairs, weights, RIDGES)
        assert result.gradient.max() < 1e-10
        results[name] = fitted_log_probs(arm, result)
    assert np.abs(results["two_stage"] - results["offline_proper"]).max() <= 1e-8


def test_newton_agrees_with_another_optimiser():
    pairs, weights = problem(4, 60, replicates=1)
    arm = make_arm("two_stage", 4, 2, 4, 1.0)
    result = fit(arm, pairs, weights, RIDGES)
    for k, ridge in enumerate(RIDGES):
        objective = jax.jit(
            lambda t, ridge=ridge: pair_objective(
                arm, t, jnp.asarray(pairs[0]), jnp.asarray(weights), jnp.float64(ridge)
            )
        )
        other = minimize(objective, np.zeros(10), jac=jax.grad(objective), method="BFGS")
        assert float(objective(jnp.asarray(result.theta[k, 0]))) <= other.fun + 1e-9
        np.testing.assert_allclose(result.theta[k, 0], other.x, atol=1e-3)


def test_one_token_as_id_is_the_lookup_reward():
    """At H = 1 and full degree both sides are the same estimator."""
    pairs, weights = problem(4, 80)
    fitted = []
    for name in ("two_stage", "offline_all"):
        arm = make_arm(name, 4, 4, 1, 1.0)
        fitted.append(fitted_log_probs(arm, fit(arm, pairs, weights, RIDGES)))
    # The policy's fit stops at a gradient of 1e-3, the ridge bounds what that leaves.
    np.testing.assert_allclose(fitted[0][1:], fitted[1][1:], atol=1e-2)


def test_padding_changes_nothing():
    pairs, weights = problem(4, 60)
    padded = np.pad(pairs, ((0, 0), (0, 40), (0, 0)))
    for name in ("two_stage", "offline_matched"):
        arm = make_arm(name, 4, 2, 4, 1.0)
        plain = fitted_log_probs(arm, fit(arm, pairs, weights, (1.0,)))
        other = fitted_log_probs(arm, fit(arm, padded, np.pad(weights, (0, 40)), (1.0,)))
        np.testing.assert_allclose(plain, other, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("other", 4, 2, 4, 1.0), "'other'"), (("two_stage", 4, 2, 3, 1.0), "horizon 3"),
     (("two_stage", 4, 5, 4, 1.0), "got 5")],
)  # fmt: skip
def test_bad_arms_are_refused(arguments: tuple, words: str):
    with pytest.raises(InputError, match=words):
        make_arm(*arguments)
