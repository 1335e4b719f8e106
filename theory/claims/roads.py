"""The two roads of the paper over finite lists, by brute force, on separate code paths.

Online: the maximum-likelihood rewards of a list (reward tables), then soft RL over the policies
(backward induction). Offline: the maximum-likelihood policies, through their own log-probabilities.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theory.classes import FinitePolicies, FiniteRewards
from theory.fit import fit_finite, tied_maximisers
from theory.preferences import PairData
from theory.projection import soft_rl_finite
from theory.soft import leaf_log_probs
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
