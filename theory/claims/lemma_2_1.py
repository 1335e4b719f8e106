"""Lemma 2.1: soft RL is a reverse-KL projection."""

from __future__ import annotations

import numpy as np

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial
from theory.claims.instances import (
    SHAPES,
    Drawn,
    random_beta,
    random_policy,
    random_reward,
    random_tree,
)
from theory.claims.replay import Replay
from theory.classes import FinitePolicies, local_reward
from theory.projection import project_finite, soft_return, soft_rl_finite
from theory.soft import (
    Policy,
    entropy,
    expected_reward,
    kl,
    leaf_log_probs,
    log_optimal,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "lemma-2.1"
STATEMENT = (
    "Lemma 2.1: the policy of Pi with the largest E[r] + beta H is the one with the smallest "
    "KL(P_pi || P*_r). Checked as an identity that holds for EVERY policy, reward and beta: "
    "E_pi[r] + beta H(pi) = beta E_x[log Z_r(x)] - beta KL(P_pi || P*_r)."
)
LEFT_OUT = (
    "The paper sets beta = 1 and proves that the two optima agree; the identity behind it holds at "
    "every policy, so no optimiser is needed to check it. Prompts must have positive weight "
    "(elsewhere the RL step is free) and policies must be positive on allowed tokens."
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
    return Trial(tuple(found), drawn=Drawn.of(tree))


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


# --- broken twins --------------------------------------------------------------------------------


def _sides(
    replay: Replay, *, entropy_weight: float, target_beta: float, target: np.ndarray
) -> float:
    """|left - right| of the identity (divided by beta, nats) at the first policy of a file.

    entropy_weight: 1 in Eq. 10. target_beta, target: beta and reward of P*; those of the RL step
    in the lemma.
    """
    replay.need(policies=1)
    tree, beta, log_p = replay.tree, replay.beta, replay.policies[0]
    gained = expected_reward(tree, log_p, replay.reward)
    left = gained / beta + entropy_weight * entropy(tree, log_p)
    solution = soft_value_iteration(tree, replay.reward, beta=beta)
    log_z = float(np.dot(tree.rho0, np.asarray(solution.log_z)))
    return abs(left - log_z + kl(tree, log_p, log_optimal(tree, target, target_beta)))


def _other_beta(replay: Replay) -> float:
    beta = replay.number("target_beta")
    return _sides(replay, entropy_weight=1.0, target_beta=beta, target=replay.reward)


def _no_entropy(replay: Replay) -> float:
    weight = replay.number("entropy_weight")
    return _sides(replay, entropy_weight=weight, target_beta=replay.beta, target=replay.reward)


def _other_reward(replay: Replay) -> float:
    replay.need(rewards=1)
    target = replay.rewards[0]
    return _sides(replay, entropy_weight=1.0, target_beta=replay.beta, target=target)


BROKEN = (
    Broken(
        "other-beta",
        "P*_r is formed with another beta (numbers.target_beta) than the RL step's",
        "Two completions: with one, P*_r is 1 for every beta.",
        _other_beta,
    ),
    Broken(
        "no-entropy",
        "the entropy term is dropped (numbers.entropy_weight = 0): E[r] alone",
        "Two completions: with one, every entropy is 0.",
        _no_entropy,
    ),
    Broken(
        "other-reward",
        "P*_r belongs to another reward (rewards[0]) than the one that the RL step is paid",
        "Two completions: with one, P*_r is 1 for every reward.",
        _other_reward,
    ),
)

CLAIM = Claim(NAME, "Lemma 2.1, proof in App. B.1", STATEMENT, LEFT_OUT, trial, BROKEN, trials=16)
