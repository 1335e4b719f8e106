"""Policy classes: proper conditionals, the right dimensions, gradients that stay finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.claims.instances import random_policy, random_tree
from theory.classes import (
    FinitePolicies,
    FiniteRewards,
    LinearRewards,
    SoftOptimalPolicies,
    TabularPolicies,
    bigram_policies,
    chain,
    local_reward,
)
from theory.errors import InputError
from theory.soft import leaf_log_probs, log_optimal, policy_from_leaves
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)
EOS_TREE = TokenTree(("a", "b", "e"), 2, ("x", "y"), (0.4, 0.6), "e", (("a", "b"), ("e",)))


def classes(tree, rng):
    linear = LinearRewards(rng.normal(size=(tree.n_prompts, tree.n_leaves, 3)))
    return (
        TabularPolicies.of(tree),
        bigram_policies(tree),
        SoftOptimalPolicies.of(tree, linear, 0.7),
    )


@given(st.sampled_from([(2, 2, 3), (2, 3, 2)]), seeds)
def test_every_class_makes_a_distribution_over_completions(shape, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    for policies in classes(tree, rng):
        levels = policies.log_policy(jnp.asarray(rng.normal(size=policies.dimension)))
        log_p = np.asarray(leaf_log_probs(tree, list(levels)))
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, atol=1e-12)
        assert np.isfinite(log_p[:, tree.leaves]).all()
        for h, level in enumerate(levels):
            assert (np.isfinite(np.asarray(level)[0]) == tree.allowed(h)).all()


def test_gradients_are_finite_under_masks():
    rng = np.random.default_rng(0)
    for policies in classes(EOS_TREE, rng):
        theta = jnp.asarray(rng.normal(size=policies.dimension))
        slope = jax.jacobian(lambda t, c=policies: chain(c.log_policy(t))[:, EOS_TREE.leaves])(
            theta
        )
        assert np.isfinite(np.asarray(slope)).all()


def test_flat_directions_are_what_the_jacobian_does_not_see():
    policies = TabularPolicies.of(EOS_TREE)
    theta = jnp.asarray(np.random.default_rng(1).normal(size=policies.dimension))
    jacobian = jax.jacobian(lambda t: chain(policies.log_policy(t))[:, EOS_TREE.leaves])(theta)
    rank = np.linalg.matrix_rank(np.asarray(jacobian).reshape(-1, policies.dimension))
    assert policies.dimension - policies.flat_directions == rank
    assert rank == 2 * (len(EOS_TREE.leaves) - 1)


def test_logits_of_a_policy_give_it_back():
    policy = random_policy(np.random.default_rng(2), EOS_TREE)
    policies = TabularPolicies.of(EOS_TREE)
    back = policies.log_policy(jnp.asarray(policies.logits(policy)))
    for a, b in zip(policy, back, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-14)


def test_soft_optimal_policies_are_the_closed_form():
    rng = np.random.default_rng(3)
    linear = LinearRewards(rng.normal(size=(2, 9, 4)))
    policies = SoftOptimalPolicies.of(EOS_TREE, linear, 0.3)
    theta = rng.normal(size=4)
    found = np.asarray(chain(policies.log_policy(jnp.asarray(theta))))
    exact = log_optimal(EOS_TREE, linear.reward(theta), 0.3)
    leaves = EOS_TREE.leaves
    np.testing.assert_allclose(found[:, leaves], exact[:, leaves], atol=1e-13)


@given(seeds, st.floats(0.1, 10.0))
def test_the_optimum_of_a_local_reward_is_its_policy(seed, beta):
    """P*_{r_pi} = P_pi: true only if r_pi carries the beta of the RL step."""
    policy = random_policy(np.random.default_rng(seed), EOS_TREE)
    reward = local_reward(EOS_TREE, policy, beta)
    found = log_optimal(EOS_TREE, reward, beta)[:, EOS_TREE.leaves]
    expected = np.asarray(leaf_log_probs(EOS_TREE, policy))[:, EOS_TREE.leaves]
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_a_policy_without_mass_has_no_local_reward():
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    sure = policy_from_leaves(tree, np.asarray([[0.0, -np.inf]]))
    with pytest.raises(InputError, match="completion 'b'"):
        local_reward(tree, sure)


def test_lists():
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    policies = FinitePolicies(
        tuple(policy_from_leaves(tree, np.log([[p, 1 - p]])) for p in (0.5, 0.9))
    )
    np.testing.assert_allclose(np.exp(policies.log_probs(tree))[:, 0, 0], [0.5, 0.9])
    np.testing.assert_allclose(policies.rewards(tree, 2.0).tables[1, 0, 0], 2 * np.log(0.9))
    with pytest.raises(InputError, match="at least one reward"):
        FiniteRewards.of(tree, [])
    with pytest.raises(InputError, match="not finite"):
        FiniteRewards.of(tree, [np.asarray([[0.0, np.inf]])])
