"""Theorem 2.2 with one assumption broken at a time. Every number comes from the twin's file."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from theory.certificate import SLACK
from theory.claims.base import Broken, violation
from theory.claims.replay import Replay
from theory.claims.roads import listed, offline, policy_log_likelihoods, roads_apart
from theory.classes import LogLinearPolicies, TabularPolicies
from theory.errors import InputError
from theory.fit import fit_tabular, tied_maximisers
from theory.fit_policy import fit_policy
from theory.preferences import bt_gradient
from theory.projection import soft_rl, soft_rl_finite
from theory.soft import kl, leaf_log_probs, log_optimal, soft_value_iteration

MANY = 100_000  # most policies kept, most steps: a file cannot ask for hours


def _other_rewards(replay: Replay) -> float:
    """R is the list of the file, in place of R(Pi)."""
    return roads_apart(replay, listed(replay))


def _unscaled(replay: Replay) -> float:
    """All policies; the likelihood of policies at numbers.local_beta, soft RL at the file's."""
    tree, data = replay.tree, replay.data
    optima, policies = fit_tabular(tree, data), TabularPolicies.of(tree)
    start = np.zeros(policies.dimension)
    mle = fit_policy(policies, data, start, beta=replay.number("local_beta"))
    r = optima.member(np.zeros(optima.graph.n_components))
    rlhf = np.asarray(
        leaf_log_probs(tree, soft_value_iteration(tree, r, beta=replay.beta).log_policy)
    )
    return violation(tree, rlhf[None], mle.log_p[None])


def _smaller_step(replay: Replay) -> float:
    """R = R(Pi), but soft RL chooses among the first numbers.kept policies alone."""
    tree, data, beta = replay.tree, replay.data, replay.beta
    policies, kept = listed(replay), listed(replay, first=replay.integer("kept", MANY))
    rewards = policies.rewards(tree, beta)
    values = policy_log_likelihoods(tree, policies, data, beta=beta)
    best = [rewards.tables[i] for i in tied_maximisers(values, data.total)]
    chosen = sorted(
        {int(i) for r in best for i in soft_rl_finite(tree, kept, r, beta=beta).indices}
    )
    mle = policies.log_probs(tree)[offline(tree, policies, data, beta=beta)]
    return violation(tree, kept.log_probs(tree)[sorted(chosen)], mle)


def _drift(replay: Replay) -> float:
    """pi(1|x) = sigmoid(theta f_x), f_x = numbers["f x"]; ascent of the soft return from a start.

    The reward is the local reward of the maximum-likelihood policy; the end of the run is taken
    for the RLHF policy whatever its KL.
    """
    tree, data, beta = replay.tree, replay.data, replay.beta
    _need_one_step(replay, completions=2)
    features = np.zeros((tree.n_prompts, 1, 2, 1))
    features[:, 0, 1, 0] = [replay.number(f"f {prompt}") for prompt in tree.prompts]
    policies = LogLinearPolicies((jnp.asarray(features),), (jnp.ones((1, 2), dtype=bool),))
    mle = fit_policy(policies, data, np.zeros(1), beta=beta)
    start = np.asarray([[replay.number("start")]])
    (run,) = soft_rl(tree, policies, beta * mle.log_p, start, beta=beta)
    return kl(tree, run.log_p, mle.log_p)


def _not_fitted(replay: Replay) -> float:
    """Soft RL over all policies on rewards[0] reaches KL 0 (NaN if not); maximum likelihood."""
    replay.need(rewards=1)
    tree, beta, r = replay.tree, replay.beta, replay.rewards[0]
    policies = TabularPolicies.of(tree)
    start = np.zeros(policies.dimension)
    (run,) = soft_rl(tree, policies, r, start[None], beta=beta)
    if not abs(kl(tree, run.log_p, log_optimal(tree, r, beta))) <= SLACK:
        return math.nan
    mle = fit_policy(policies, replay.data, start, beta=beta)
    return violation(tree, run.log_p[None], mle.log_p[None])


def _no_weight(replay: Replay) -> float:
    """Soft RL whose prompt weights are numbers["weight x"], some of which may be 0.

    R = R(Pi), one list for all prompts; KL is counted at each prompt alike.
    """
    tree, data, beta = replay.tree, replay.data, replay.beta
    policies = listed(replay)
    weights = np.asarray([replay.number(f"weight {prompt}") for prompt in tree.prompts])
    values = policy_log_likelihoods(tree, policies, data, beta=beta)
    mle = tied_maximisers(values, data.total)
    log_p = policies.log_probs(tree)
    inner = log_p[:, :, tree.leaves]
    returns = np.stack(
        [weights @ (np.exp(inner) * (inner[i] - inner)).sum(axis=2).T for i in mle]
    )  # of every policy on r_i, over beta, nats
    chosen = sorted({int(j) for row in returns for j in tied_maximisers(row, 1.0)})
    return violation(tree, log_p[chosen], log_p[mle])


def stopped(replay: Replay, log_ref: np.ndarray | None = None) -> float:
    """Both roads by gradient ascent from 0, stopped after numbers.steps steps of numbers.step.

    One step tree; with log_ref, RLHF with a reference and DPO. Where a maximiser exists they end
    at it; where none does, anywhere.
    """
    tree, data, beta = replay.tree, replay.data, replay.beta
    _need_one_step(replay)
    step = replay.number("step")
    r = np.zeros((tree.n_prompts, tree.n_leaves))
    logits, held = np.zeros_like(r), np.zeros_like(r) if log_ref is None else log_ref
    for _ in range(replay.integer("steps", MANY)):
        r = r + step * bt_gradient(r, data)
        logits = logits + step * beta * bt_gradient(beta * (logits - held), data)
    rlhf, offline_end = log_optimal(tree, r, beta, held), log_optimal(tree, logits)
    return violation(tree, rlhf[None], offline_end[None])


def _need_one_step(replay: Replay, *, completions: int | None = None) -> None:
    """Raises InputError unless the tree has horizon 1, no token forbidden, and so many tokens."""
    tree = replay.tree
    if tree.horizon > 1 or tree.forbidden or completions not in (None, tree.vocab):
        raise InputError(
            f"twin {replay.twin!r} of {replay.claim} needs horizon 1, no forbidden token"
            f"{'' if completions is None else f' and {completions} tokens'}"
        )


BROKEN = (
    Broken(
        "fewer-rewards",
        "R is not R(Pi): it lacks the local reward of one policy",
        "Two policies and one reward: with one policy both roads have no choice.",
        _other_rewards,
    ),
    Broken(
        "more-rewards",
        "R is not R(Pi): it holds one more reward, which fits better and projects elsewhere",
        "Two policies: with one both roads have no choice.",
        _other_rewards,
    ),
    Broken(
        "unscaled",
        "the local reward is left unscaled (numbers.local_beta = 1) while soft RL uses beta = 2",
        "Two completions, both beating the other: with one there is one policy.",
        _unscaled,
    ),
    Broken(
        "smaller-step",
        "soft RL chooses among fewer policies (numbers.kept) than maximum likelihood",
        "Two policies, one of which is kept.",
        _smaller_step,
    ),
    Broken(
        "drift",
        "the end of an ascent is taken for the optimum of the RL step: the gradient is 0 to "
        "rounding, the KL is not",
        "One prompt, two completions, one parameter: with less there is nothing to fit.",
        _drift,
    ),
    Broken(
        "not-fitted",
        "the reward is the local reward of some policy, but not the most likely one: soft RL "
        "reaches KL 0 all the same",
        "Two completions: with one there is one policy.",
        _not_fitted,
    ),
    Broken(
        "no-weight",
        "a prompt has weight 0 (numbers.weight ...): soft RL is free there, likelihood is not",
        "Two prompts, as the weights sum to 1, and two policies.",
        _no_weight,
    ),
    Broken(
        "no-maximiser",
        "no finite maximiser exists: two ascents stopped after numbers.steps steps are taken for "
        "the two sets, which are empty",
        "One comparison of two completions.",
        stopped,
    ),
)
