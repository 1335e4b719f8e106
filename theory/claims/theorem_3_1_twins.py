"""Theorem 3.1 with one assumption broken at a time. Every number comes from the twin's file."""

from __future__ import annotations

import math

import numpy as np

from theory.claims.base import Broken, included, violation
from theory.claims.replay import Replay
from theory.claims.roads import listed, offline, online, restricted_class, roads_apart
from theory.classes import FiniteRewards
from theory.soft import log_optimal

NAME = "theorem-3.1"


def _apart(replay: Replay, *, local_beta: float) -> float:
    """RLHF over R_sim from maximum likelihood over Pi(R_sim), the latter at local_beta."""
    replay.need(rewards=1)
    tree, data, beta = replay.tree, replay.data, replay.beta
    rewards, policies = FiniteRewards.of(tree, list(replay.rewards)), listed(replay)
    simple = restricted_class(tree, rewards, policies, beta)
    rlhf = policies.log_probs(tree)[online(tree, rewards, policies, data, beta=beta)]
    sim = simple.log_probs(tree)[offline(tree, simple, data, beta=local_beta)]
    return violation(tree, rlhf, sim)


def _outside(replay: Replay) -> float:
    return _apart(replay, local_beta=replay.beta)


def _over_pi(replay: Replay) -> float:
    """The same, and the hypothesis read over Pi: the projections of every P*_r lie in Pi.

    NaN if they do not, which cannot be: the reading says nothing. numbers.over_pi = 0 asks for
    the optima over all policies instead.
    """
    replay.need(rewards=1)
    tree, beta = replay.tree, replay.beta
    rewards, policies = FiniteRewards.of(tree, list(replay.rewards)), listed(replay)
    optima = restricted_class(tree, rewards, policies, beta).log_probs(tree)
    if not replay.number("over_pi"):
        optima = np.stack([log_optimal(tree, r, beta) for r in replay.rewards])
    if not included(tree, NAME, "", optima, policies.log_probs(tree)).holds:
        return math.nan
    return _apart(replay, local_beta=beta)


def _all_policies(replay: Replay) -> float:
    """RLHF over R_sim from maximum likelihood over all of Pi, not over Pi(R_sim)."""
    return roads_apart(replay, listed(replay))


def _other_beta(replay: Replay) -> float:
    return _apart(replay, local_beta=replay.number("local_beta"))


BROKEN = (
    Broken(
        "optimum-outside",
        "one soft-optimal policy lies outside Pi",
        "Two rewards and two policies: with one of either, Pi(R_sim) is one policy, which both "
        "roads take.",
        _outside,
    ),
    Broken(
        "optimum-over-pi",
        "pi*_r is read as the best of Pi (numbers.over_pi = 1): every Pi meets the hypothesis",
        "Two rewards and two policies, as for optimum-outside.",
        _over_pi,
    ),
    Broken(
        "other-classes",
        "the roads' classes differ: maximum likelihood over Pi in place of Pi(R_sim)",
        "One reward and two policies: with one policy both roads have no choice.",
        _all_policies,
    ),
    Broken(
        "other-beta",
        "beta of the local reward (numbers.local_beta) is not that of soft RL",
        "Two rewards and two policies: with one of either, Pi(R_sim) is one policy.",
        _other_beta,
    ),
)
