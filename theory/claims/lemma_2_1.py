"""Lemma 2.1: soft RL is a reverse-KL projection."""

from __future__ import annotations

import numpy as np

from theory.certificate import SLACK, Certificate, Twin
from theory.claims.base import Claim, Trial
from theory.claims.instances import (
    SHAPES,
    one_step_tree,
    random_beta,
    random_policy,
    random_reward,
    random_tree,
)
from theory.classes import FinitePolicies, local_reward
from theory.projection import project_finite, soft_return, soft_rl_finite
from theory.soft import (
    Policy,
    kl,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "lemma-2.1"
STATEMENT = (
    "Lemma 2.1: the policy of Pi with the largest E[r] + beta H is the one with the smallest "
    "KL(P_pi || P*_r). Checked as an identity that holds for EVERY policy, reward and beta: "
    "E_pi[r] + beta H(pi) = beta E_x[log Z_r(x)] - beta KL(P_pi || P*_r). The paper sets beta = 1; "
    "prompts must have positive weight and policies must be positive on allowed tokens."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """The identity at a random policy, at the optimum, at a local reward; then the two sets."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 1.0))
    policy = random_policy(rng, tree, scale=float(rng.uniform(0.2, 5.0)))
    solution = soft_value_iteration(tree, r, beta=beta)
    local = local_reward(tree, random_policy(rng, tree), beta)
    local = np.where(tree.leaf_mask, local, 0.0)
    found = [
        _identity(tree, policy, r, beta, "a random policy"),
        _identity(tree, solution.log_policy, r, beta, "the soft-optimal policy"),
        _identity(tree, policy, local, beta, "a local reward"),
    ]
    policies = [random_policy(rng, tree) for _ in range(5)]
    listed = FinitePolicies((*policies, policies[int(rng.integers(5))]))  # a planted tie
    found.append(_same_choice(tree, listed, r, beta))
    return Trial(tuple(found))


def _identity(
    tree: TokenTree, policy: Policy, r: np.ndarray, beta: float, part: str
) -> Certificate:
    """Both sides divided by beta, nats."""
    log_p = leaf_log_probs(tree, policy)
    log_z = float(np.dot(tree.rho0, np.asarray(soft_value_iteration(tree, r, beta=beta).log_z)))
    left = soft_return(tree, policy, r, beta=beta) / beta
    right = log_z - kl(tree, log_p, log_optimal(tree, r, beta))
    return Certificate(NAME, left, right, SLACK, part)


def _same_choice(
    tree: TokenTree, policies: FinitePolicies, r: np.ndarray, beta: float
) -> Certificate:
    """argmax of soft RL over a list, and argmin of KL: the same set, ties included."""
    chosen = soft_rl_finite(tree, policies, r, beta=beta).indices
    nearest = project_finite(tree, policies.log_probs(tree), log_optimal(tree, r, beta)).indices
    codes = [float((2.0**indices).sum()) for indices in (chosen, nearest)]
    return Certificate(NAME, codes[0], codes[1], SLACK, "the chosen set of a list")


def twins() -> tuple[Twin, ...]:
    """Fixed small instances."""
    tree = one_step_tree("a", "b")
    r = np.asarray([[1.0, 0.0]])
    policy = policy_from_leaves(tree, np.log([[0.5, 0.5]]))
    beta = 0.5
    left = soft_return(tree, policy, r, beta=beta) / beta
    log_p = leaf_log_probs(tree, policy)
    log_z = float(np.dot(tree.rho0, np.asarray(soft_value_iteration(tree, r, beta=beta).log_z)))
    other = log_z - kl(tree, log_p, log_optimal(tree, r, 1.0))
    return (
        Twin("P*_r is formed with beta = 1 while the RL step uses beta = 0.5", abs(left - other)),
        Twin(
            "the entropy term is dropped: E[r] alone against the same right-hand side",
            abs(
                float(np.dot(np.exp(np.asarray(log_p))[0], r[0])) / beta
                - (log_z - kl(tree, log_p, log_optimal(tree, r, beta)))
            ),
        ),
    )


CLAIM = Claim(NAME, STATEMENT, trial, twins, trials=40)
