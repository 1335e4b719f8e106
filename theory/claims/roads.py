"""The two roads of the paper over finite lists, by brute force, on separate code paths.

Online: the maximum-likelihood rewards of a list (reward tables), then soft RL over the policies
(backward induction). Offline: the maximum-likelihood policies, through their own log-probabilities.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from theory.claims.base import violation
from theory.claims.replay import Replay
from theory.classes import FinitePolicies, FiniteRewards
from theory.fit import TabularOptima, fit_finite, tied_maximisers
from theory.preferences import PairData
from theory.projection import project_finite, soft_rl_finite
from theory.soft import leaf_log_probs, log_optimal, policy_from_leaves
from theory.tree import TokenTree


def online(
    tree: TokenTree,
    rewards: FiniteRewards,
    policies: FinitePolicies,
    data: PairData,
    *,
    beta: float,
    log_ref: np.ndarray | None = None,
) -> Int[np.ndarray, " K"]:
    """Indices of {argmax over Pi of soft RL on r : r in the argmax over R of Eq. 6}."""
    chosen: set[int] = set()
    for index in fit_finite(rewards, data).indices:
        r = rewards.tables[index]
        solved = soft_rl_finite(tree, policies, r, beta=beta, log_ref=log_ref)
        chosen.update(int(i) for i in solved.indices)
    return np.asarray(sorted(chosen))


def offline(
    tree: TokenTree,
    policies: FinitePolicies,
    data: PairData,
    *,
    beta: float,
    log_ref: np.ndarray | None = None,
) -> Int[np.ndarray, " K"]:
    """Indices of argmax over Pi of Eq. 9, or of the DPO likelihood if log_ref is given."""
    values = policy_log_likelihoods(tree, policies, data, beta=beta, log_ref=log_ref)
    return tied_maximisers(values, data.total)


def policy_log_likelihoods(
    tree: TokenTree,
    policies: FinitePolicies,
    data: PairData,
    *,
    beta: float,
    log_ref: np.ndarray | None = None,
) -> Float[np.ndarray, " M"]:
    """Eq. 9 (or DPO) of every policy of a list, nats."""
    values = []
    for policy in policies.policies:
        log_p = np.asarray(leaf_log_probs(tree, policy))
        margin = log_p[data.prompt, data.winner] - log_p[data.prompt, data.loser]
        if log_ref is not None:
            margin = margin - log_ref[data.prompt, data.winner] + log_ref[data.prompt, data.loser]
        values.append(-float(np.sum(data.count * np.logaddexp(0.0, -beta * margin))))
    return np.asarray(values)


def restricted_class(
    tree: TokenTree, rewards: FiniteRewards, policies: FinitePolicies, beta: float
) -> FinitePolicies:
    """Pi(R_sim): the reverse-KL projections onto Pi of every P*_r, by enumeration."""
    log_probs, kept = policies.log_probs(tree), set()
    for r in rewards.tables:
        nearest = project_finite(tree, log_probs, log_optimal(tree, r, beta))
        kept.update(int(i) for i in nearest.indices)
    return FinitePolicies(tuple(policies.policies[i] for i in sorted(kept)))


# --- reference policies, and sets along their components ------------------------------------------


def mixture(tree: TokenTree, log_p: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
    """T(P) = P . P_ref normalised for each prompt, log-probabilities (P, L)."""
    score = np.where(tree.leaf_mask, np.asarray(log_p) + log_ref, -np.inf)
    return score - np.asarray(logsumexp(score, axis=1, keepdims=True))


def unmix(tree: TokenTree, log_p: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
    """T^-1(P) = P / P_ref normalised for each prompt, log-probabilities (P, L)."""
    return mixture(tree, log_p, np.where(tree.leaf_mask, -log_ref, 0.0))


def prompt_term(
    tree: TokenTree, log_mle: np.ndarray, log_ref: np.ndarray
) -> Float[np.ndarray, "P 1"]:
    """-log sum_xi P_mle P_ref, what Eqs. 14-16 drop, one a prompt, nats."""
    score = np.where(tree.leaf_mask, np.asarray(log_mle) + log_ref, -np.inf)
    return -np.asarray(logsumexp(score, axis=1, keepdims=True))


def matching_member(tree: TokenTree, optima: TabularOptima, target: np.ndarray) -> np.ndarray:
    """The maximiser whose mean on every component is that of `target` (P, L)."""
    graph = optima.graph
    base = optima.member(np.zeros(graph.n_components))
    labels = graph.component[:, tree.leaves].reshape(-1)
    gap = (np.asarray(target) - base)[:, tree.leaves].reshape(-1)
    return optima.member(np.bincount(labels, gap) / np.bincount(labels))


# --- the two roads of a twin's file --------------------------------------------------------------


def listed(replay: Replay, *, first: int | None = None) -> FinitePolicies:
    """The policies of a file, or the first of them. Raises InputError if it has none."""
    replay.need(policies=first or 1)
    tables = replay.policies[:first]
    return FinitePolicies(tuple(policy_from_leaves(replay.tree, table) for table in tables))


def roads_apart(
    replay: Replay,
    policies: FinitePolicies,
    *,
    rewards: FiniteRewards | None = None,
    log_ref: np.ndarray | None = None,
) -> float:
    """How far soft RL on `rewards` is from maximum likelihood over `policies`, nats.

    rewards: those of the file if left out. At the file's beta; with log_ref, RLHF from DPO.
    """
    tree, data, beta = replay.tree, replay.data, replay.beta
    if rewards is None:
        replay.need(rewards=1)
        rewards = FiniteRewards.of(tree, list(replay.rewards))
    log_probs = policies.log_probs(tree)
    rlhf = online(tree, rewards, policies, data, beta=beta, log_ref=log_ref)
    mle = offline(tree, policies, data, beta=beta, log_ref=log_ref)
    return violation(tree, log_probs[rlhf], log_probs[mle])
