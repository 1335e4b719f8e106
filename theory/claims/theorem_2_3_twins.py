"""Theorem 2.3 with one assumption broken at a time. Every number comes from the twin's file."""

from __future__ import annotations

import math

import numpy as np

from theory.claims.base import Broken, attains, included, violation
from theory.claims.replay import Replay
from theory.claims.roads import (
    listed,
    matching_member,
    mixture,
    offline,
    prompt_term,
    roads_apart,
    unmix,
)
from theory.claims.theorem_2_2_twins import NO_MAXIMISER, NO_MAXIMISER_SMALLEST, ends_apart
from theory.classes import TabularPolicies
from theory.fit import fit_tabular
from theory.fit_policy import fit_policy
from theory.soft import kl, log_optimal

NAME = "theorem-2.3"


def _outside(replay: Replay, *, image: bool) -> float:
    """Both roads over one list, R = R(Pi). NaN unless the other half of the condition holds.

    image: T(pi_mle) is the half that may lie outside Pi; otherwise T^-1(pi_dpo).
    """
    tree, beta, log_ref = replay.tree, replay.beta, replay.log_ref
    policies = listed(replay)
    log_probs = policies.log_probs(tree)
    if image:
        dpo = log_probs[offline(tree, policies, replay.data, beta=beta, log_ref=log_ref)]
        other = np.stack([unmix(tree, table, log_ref) for table in dpo])
    else:
        mle = log_probs[offline(tree, policies, replay.data, beta=beta)]
        other = np.stack([mixture(tree, table, log_ref) for table in mle])
    if not included(tree, NAME, "", other, log_probs).holds:
        return math.nan
    rewards = policies.rewards(tree, beta)
    return roads_apart(replay, policies, rewards=rewards, log_ref=log_ref)


def _uncovered(replay: Replay) -> float:
    """The first policy, which is a DPO policy (NaN if not), and the RLHF policy nearest to it.

    Rewards of completions that the reference never generates do not matter to RLHF.
    """
    replay.need(policies=1)
    tree, data, beta, log_ref = replay.tree, replay.data, replay.beta, replay.log_ref
    dpo, optima = replay.policies[0], fit_tabular(tree, data)
    best = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    if not attains(NAME, "twin", dpo, data, best, beta=beta, log_ref=log_ref).holds:
        return math.nan
    covered = np.isfinite(log_ref)
    implied = np.where(covered, beta * (dpo - np.where(covered, log_ref, 0.0)), 0.0)
    r = matching_member(tree, optima, implied)
    return kl(tree, log_optimal(tree, r, beta, log_ref), dpo)


def _printed(replay: Replay) -> float:
    """log P_dpo - log P_mle - log P_ref, with numbers.prompt_term times the term that is dropped.

    The least absolute value over the completions.
    """
    tree, data, beta, log_ref = replay.tree, replay.data, replay.beta, replay.log_ref
    policies = TabularPolicies.of(tree)
    start = np.zeros(policies.dimension)
    dpo = fit_policy(policies, data, start, beta=beta, log_ref=log_ref).log_p
    mle = fit_policy(policies, data, start, beta=beta).log_p
    term = prompt_term(tree, mle, log_ref) * replay.number("prompt_term")
    return float(np.abs((dpo - mle - log_ref - term)[:, tree.leaves]).min())


def _other_rewards(replay: Replay) -> float:
    """R is the list of the file, in place of R(Pi)."""
    return roads_apart(replay, listed(replay), log_ref=replay.log_ref)


def _other_beta(replay: Replay) -> float:
    """All policies; DPO at numbers.local_beta, RLHF at the file's beta."""
    tree, data, log_ref = replay.tree, replay.data, replay.log_ref
    optima, policies = fit_tabular(tree, data), TabularPolicies.of(tree)
    local, start = replay.number("local_beta"), np.zeros(policies.dimension)
    dpo = fit_policy(policies, data, start, beta=local, log_ref=log_ref)
    r = optima.member(np.zeros(optima.graph.n_components))
    rlhf = log_optimal(tree, r, replay.beta, log_ref)
    return violation(tree, rlhf[None], dpo.log_p[None])


BROKEN = (
    Broken(
        "image-outside",
        "T(pi_mle) lies outside Pi (T^-1(pi_dpo) is in it)",
        "Three policies. Of two, T^-1(pi_dpo) and pi_dpo, if pi_mle is the first T(pi_mle) is in "
        "Pi; if the second, soft RL aims past it along a line and still takes it.",
        lambda replay: _outside(replay, image=True),
    ),
    Broken(
        "source-outside",
        "T^-1(pi_dpo) lies outside Pi (T(pi_mle) is in it)",
        "Two policies: with one both roads have no choice.",
        lambda replay: _outside(replay, image=False),
    ),
    Broken(
        "uncovered",
        "P_ref is 0 on a completion that is not compared: DPO leaves its mass free, RLHF forces 0",
        "Three completions: two that are compared and one that is not.",
        _uncovered,
    ),
    Broken(
        "printed",
        "Eq. 14 as printed, without its prompt term (numbers.prompt_term = 0)",
        "Two completions: with one, the sum in the term is 1.",
        _printed,
    ),
    Broken(
        "other-rewards",
        "R is not R(Pi): it lacks the local reward of one policy",
        "Three policies. Of two, pi_mle and T(pi_mle), the reward of the second alone leads past "
        "T(pi_mle) along a line, and the nearer of the two is still the second (with an even "
        "reference two are enough, and the theorem is Theorem 2.2).",
        _other_rewards,
    ),
    Broken(
        "other-beta",
        "beta of the local reward (numbers.local_beta) is not that of the KL term",
        "Two completions: with one there is one policy.",
        _other_beta,
    ),
    Broken(
        "no-maximiser",
        NO_MAXIMISER,
        NO_MAXIMISER_SMALLEST,
        lambda replay: ends_apart(replay, replay.log_ref),
    ),
)
