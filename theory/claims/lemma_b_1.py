"""Lemma B.1: soft RL with a reference policy is a reverse-KL projection of a mixture."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from theory.certificate import SLACK, Certificate, Twin
from theory.claims.base import Claim, Trial, same
from theory.claims.instances import (
    SHAPES,
    one_step_tree,
    random_beta,
    random_log_p,
    random_policy,
    random_reward,
    random_tree,
)
from theory.classes import FinitePolicies
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

NAME = "lemma-b.1"
STATEMENT = (
    "Lemma B.1: the policy of Pi with the largest E[r] - beta KL(P_pi || P_ref) is the one with "
    "the smallest KL to the mixture P*_r . P_ref. Checked as an identity for EVERY policy: E_pi[r] "
    "- beta KL(P_pi || P_ref) = beta E_x[log Z_{r,ref}(x)] - beta KL(P_pi || P*_r . P_ref). "
    "The mixture must be normalised for each prompt: Eq. 12 as printed normalises over all prompts "
    "together, which leaves the argmin alone and breaks the identity."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """The identity, the optimum by soft value iteration, and the chosen set of a list."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 1.0))
    log_ref = random_log_p(rng, tree, scale=float(rng.uniform(0.2, 3.0)))
    policy = random_policy(rng, tree, scale=float(rng.uniform(0.2, 5.0)))
    mixture = log_optimal(tree, r, beta, log_ref)
    paid = r + beta * np.where(tree.leaf_mask, log_ref, 0.0)
    solution = soft_value_iteration(tree, paid, beta=beta)
    listed = FinitePolicies(tuple(random_policy(rng, tree) for _ in range(5)))
    chosen = soft_rl_finite(tree, listed, r, beta=beta, log_ref=log_ref).indices
    nearest = project_finite(tree, listed.log_probs(tree), mixture).indices
    codes = [float((2.0**indices).sum()) for indices in (chosen, nearest)]
    optimum = np.asarray(leaf_log_probs(tree, solution.log_policy))
    return Trial(
        (
            _identity(tree, policy, r, beta, log_ref, "a random policy"),
            _identity(tree, solution.log_policy, r, beta, log_ref, "the optimum"),
            same(tree, NAME, "soft value iteration gives the mixture", optimum, mixture),
            Certificate(NAME, codes[0], codes[1], SLACK, "the chosen set of a list"),
        )
    )


def _identity(
    tree: TokenTree,
    policy: Policy,
    r: np.ndarray,
    beta: float,
    log_ref: np.ndarray,
    part: str,
) -> Certificate:
    """Both sides divided by beta, nats; log Z_{r,ref} summed over the leaves."""
    log_p = leaf_log_probs(tree, policy)
    score = np.where(tree.leaf_mask, r / beta + log_ref, -np.inf)
    log_z = float(np.dot(tree.rho0, np.asarray(logsumexp(score, axis=1))))
    left = soft_return(tree, policy, r, beta=beta, log_ref=log_ref) / beta
    right = log_z - kl(tree, log_p, log_optimal(tree, r, beta, log_ref))
    return Certificate(NAME, left, right, SLACK, part)


def twins() -> tuple[Twin, ...]:
    """Fixed small instances: two prompts, two completions."""
    tree = one_step_tree("a", "b", prompts=2)
    r = np.asarray([[1.0, 0.0], [0.0, 2.0]])
    log_ref = np.log([[0.7, 0.3], [0.4, 0.6]])
    policy = policy_from_leaves(tree, np.log([[0.5, 0.5], [0.2, 0.8]]))
    log_p = leaf_log_probs(tree, policy)
    left = soft_return(tree, policy, r, log_ref=log_ref)
    log_z = float(np.dot(tree.rho0, np.asarray(logsumexp(r + log_ref, axis=1))))
    product = log_optimal(tree, r) + log_ref
    pooled = product - logsumexp(product)
    return (
        Twin(
            "the mixture is normalised over all prompts together, as Eq. 12 prints it",
            abs(left - (log_z - kl(tree, log_p, pooled))),
        ),
        Twin(
            "the reference is left out of the target: P*_r in place of P*_r . P_ref",
            abs(left - (log_z - kl(tree, log_p, log_optimal(tree, r)))),
        ),
    )


CLAIM = Claim(NAME, STATEMENT, trial, twins, trials=40)
