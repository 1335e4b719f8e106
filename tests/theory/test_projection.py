"""Soft RL and reverse-KL projection: the return by enumeration, the two argmins, local optima."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.claims.instances import random_log_p, random_policy, random_reward, random_tree
from theory.classes import FinitePolicies, LogLinearPolicies, TabularPolicies
from theory.projection import (
    project_all,
    project_finite,
    soft_return,
    soft_rl,
    soft_rl_finite,
)
from theory.soft import (
    entropy,
    expected_reward,
    kl,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
)
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)
shapes = st.sampled_from([(1, 2, 3), (2, 3, 2)])
betas = st.floats(0.1, 10.0)


@given(shapes, seeds, betas)
def test_the_return_by_backward_induction_equals_the_sum_over_completions(shape, seed, beta):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    policy, r = random_policy(rng, tree), random_reward(rng, tree, 2.0)
    log_ref = random_log_p(rng, tree)
    log_p = leaf_log_probs(tree, policy)
    plain = expected_reward(tree, log_p, r) + beta * entropy(tree, log_p)
    assert soft_return(tree, policy, r, beta=beta) == pytest.approx(plain, abs=1e-11)
    held = expected_reward(tree, log_p, r) - beta * kl(tree, log_p, log_ref)
    assert soft_return(tree, policy, r, beta=beta, log_ref=log_ref) == pytest.approx(
        held, abs=1e-11
    )


@given(shapes, seeds)
def test_the_projection_onto_all_policies_is_the_target(shape, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    target = random_log_p(rng, tree)
    assert abs(kl(tree, leaf_log_probs(tree, project_all(tree, target)), target)) < 1e-13


@given(seeds)
def test_adding_a_constant_to_the_reward_keeps_the_choice(seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, (2, 3, 2))
    policies = [random_policy(rng, tree) for _ in range(4)]
    listed = FinitePolicies((*policies, policies[1]))
    r = random_reward(rng, tree, 1.0)
    one, two = (soft_rl_finite(tree, listed, x, beta=0.5) for x in (r, r + 3.0))
    assert one.indices.tolist() == two.indices.tolist()
    near = project_finite(tree, listed.log_probs(tree), log_optimal(tree, r, 0.5))
    assert near.indices.tolist() == one.indices.tolist()
    if 1 in one.indices:
        assert 4 in one.indices


def test_ascent_over_all_policies_reaches_kl_zero():
    rng = np.random.default_rng(0)
    tree = TokenTree(("a", "b", "e"), 2, ("x", "y"), (0.4, 0.6), "e", (("a", "b"),))
    r = random_reward(rng, tree, 2.0)
    policies = TabularPolicies.of(tree)
    for run in soft_rl(tree, policies, r, rng.normal(size=(2, policies.dimension)), beta=0.5):
        assert abs(kl(tree, run.log_p, log_optimal(tree, r, 0.5))) < 1e-13
        assert run.gradient < 1e-12


def test_ascent_in_a_restricted_class_can_miss_the_target():
    """pi(1|s) = sigmoid(theta f_s), f = (1, 0, -20): the KL of each run tells which to believe."""
    f = np.asarray([1.0, 0.0, -20.0])
    tree = TokenTree(("0", "1"), 1, ("s0", "s1", "s2"), (1 / 3, 1 / 3, 1 / 3))
    features = np.zeros((3, 1, 2, 1))
    features[:, 0, 1, 0] = f
    import jax.numpy as jnp

    policies = LogLinearPolicies((jnp.asarray(features),), (jnp.ones((1, 2), dtype=bool),))
    logit = 1.0 * f
    target = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], axis=1)
    runs = soft_rl(tree, policies, target, np.asarray([[0.5], [-40.0]]))
    gaps = [kl(tree, run.log_p, target) for run in runs]
    assert gaps[0] < 1e-12
    assert gaps[1] > 1.0


def test_a_restricted_list_is_projected_by_reverse_kl():
    tree = TokenTree(("a", "b"), 1, ("x",), (1.0,))
    tables = [np.log([[p, 1 - p]]) for p in (0.5, 0.98)]
    listed = FinitePolicies(tuple(policy_from_leaves(tree, t) for t in tables))
    target = np.log([[0.8, 0.2]])
    found = project_finite(tree, listed.log_probs(tree), target)
    exact = [
        0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2),
        0.98 * np.log(0.98 / 0.8) + 0.02 * np.log(0.02 / 0.2),
    ]
    np.testing.assert_allclose(found.values, exact, atol=1e-14)
    assert found.indices.tolist() == [1]
