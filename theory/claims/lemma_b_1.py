"""Lemma B.1: soft RL with a reference policy is a reverse-KL projection of a mixture."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import (
    SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_policy,
    random_reward,
    random_tree,
)
from theory.claims.replay import Replay
from theory.classes import FinitePolicies
from theory.projection import project_finite, soft_return, soft_rl_finite
from theory.soft import (
    Policy,
    expected_reward,
    kl,
    leaf_log_probs,
    log_optimal,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "lemma-b.1"
STATEMENT = (
    "Lemma B.1: the policy of Pi with the largest E[r] - beta KL(P_pi || P_ref) is the one with "
    "the smallest KL to the mixture P*_r . P_ref. Checked as an identity for EVERY policy: E_pi[r] "
    "- beta KL(P_pi || P_ref) = beta E_x[log Z_{r,ref}(x)] - beta KL(P_pi || P*_r . P_ref), where "
    "P*_r . P_ref is the mixture normalised for each prompt."
)
LEFT_OUT = (
    "Eq. 12 as printed normalises the mixture over all prompts together, which leaves the argmin "
    "alone and breaks the identity. The proof drops the normaliser of the mixture from its second "
    "line on: it depends on the prompt alone. P*_r is exp(r / beta), so that beta tempers the "
    "reward and not the reference."
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
        ),
        drawn=Drawn.of(tree),
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


# --- broken twins --------------------------------------------------------------------------------


def _miss(replay: Replay, log_target: np.ndarray) -> float:
    """|left - right| of the identity (divided by beta, nats) with another target of the KL."""
    replay.need(policies=1)
    tree, beta, log_p = replay.tree, replay.beta, replay.policies[0]
    gained = expected_reward(tree, log_p, replay.reward) / beta
    left = gained - kl(tree, log_p, replay.log_ref)
    score = np.where(tree.leaf_mask, replay.reward / beta + replay.log_ref, -np.inf)
    log_z = float(np.dot(tree.rho0, np.asarray(logsumexp(score, axis=1))))
    return abs(left - log_z + kl(tree, log_p, log_target))


def _pooled(replay: Replay) -> float:
    tree = replay.tree
    product = log_optimal(tree, replay.reward, replay.beta) + replay.log_ref
    return _miss(replay, product - np.asarray(logsumexp(product[:, tree.leaves])))


def _no_reference(replay: Replay) -> float:
    return _miss(replay, log_optimal(replay.tree, replay.reward, replay.beta))


def _other_beta(replay: Replay) -> float:
    beta = replay.number("target_beta")
    return _miss(replay, log_optimal(replay.tree, replay.reward, beta, replay.log_ref))


def _tempered_reference(replay: Replay) -> float:
    """P*_r . P_ref^power; the power of the lemma is 1 for every beta."""
    log_ref = replay.log_ref * replay.number("reference_power")
    return _miss(replay, log_optimal(replay.tree, replay.reward, replay.beta, log_ref))


BROKEN = (
    Broken(
        "pooled",
        "the mixture is normalised over all prompts together, as Eq. 12 prints it",
        "Two prompts: with one, together and for each prompt are the same.",
        _pooled,
    ),
    Broken(
        "no-reference",
        "the reference is left out of the target: P*_r in place of P*_r . P_ref",
        "Two completions and a reference that is not even: with one, or an even one, P*_r . P_ref "
        "is P*_r.",
        _no_reference,
    ),
    Broken(
        "other-beta",
        "P*_r is formed with another beta (numbers.target_beta) than the RL step's",
        "Two completions: with one, P*_r is 1 for every beta.",
        _other_beta,
    ),
    Broken(
        "tempered-reference",
        "the reference is tempered too: P_ref^numbers.reference_power with power 1 / beta",
        "Two completions and a reference that is not even: an even one is the same at any power.",
        _tempered_reference,
    ),
)

CLAIM = Claim(NAME, "Lemma B.1, proof in App. B.1.1", STATEMENT, LEFT_OUT, trial, BROKEN, trials=16)
