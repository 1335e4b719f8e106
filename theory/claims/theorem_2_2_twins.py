"""Theorem 2.2 with one assumption broken at a time. Every number comes from the twin's file."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from theory.certificate import SLACK
from theory.claims.base import Broken, violation
from theory.claims.replay import Replay
from theory.claims.roads import listed, offline, policy_log_likelihoods, roads_apart
from theory.classes import LogLinearPolicies, TabularPolicies
from theory.errors import InputError
from theory.fit import fit_tabular, tied_maximisers
from theory.fit_policy import fit_policy
from theory.preferences import PairData, bt_log_likelihood
from theory.projection import soft_rl, soft_rl_finite
from theory.soft import kl, leaf_log_probs, log_optimal, soft_value_iteration
from theory.tree import TokenTree

MANY = 100_000  # most policies kept, most steps: a file cannot ask for hours
LIVE = 1e-3  # nats: a start with a smaller slope is on a plateau already
TIMES = (0.0, 1.0, 5.0, 25.0, 125.0, 500.0)  # how far the two sequences are followed
NO_MAXIMISER = (
    "no finite maximiser exists: both sets are empty, and two sequences of policies that drive the "
    "likelihood to its supremum, one on each road, stay apart by 0.01 nats or more for ever"
)
NO_MAXIMISER_SMALLEST = (
    "Three completions: a pair that is won one way, and one completion whose mass is free. With "
    "two completions such a sequence can only end at the sure winner."
)


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
    """pi(second|x) = sigmoid(theta f_x), f_x = numbers["f x"]; plain ascent of the soft return.

    It starts at numbers.start and takes numbers.steps steps of numbers.step. The reward is the
    local reward of the maximum-likelihood policy, log odds l_x; the slope of the return over beta
    is -sum_x rho0(x) f_x (theta f_x - l_x) sigmoid'(theta f_x). NaN unless the start has a slope
    (above LIVE) and the end has none (SLACK): the end is then taken for the RLHF policy.
    """
    tree, data, beta = replay.tree, replay.data, replay.beta
    _need_one_step(replay, completions=2)
    f = np.asarray([replay.number(f"f {prompt}") for prompt in tree.prompts])
    policies = LogLinearPolicies(
        (jnp.asarray(np.stack([np.zeros_like(f), f], axis=1)[:, None, :, None]),),
        (jnp.ones((1, 2), dtype=bool),),
    )
    mle = fit_policy(policies, data, np.zeros(1), beta=beta).log_p

    def slope(theta: float) -> float:
        odds = theta * f
        bend = expit(odds) * expit(-odds)
        return -float(np.dot(tree.rho0, f * (odds - mle[:, 1] + mle[:, 0]) * bend))

    theta = replay.number("start")
    if not abs(slope(theta)) > LIVE:
        return math.nan
    for _ in range(replay.integer("steps", MANY)):
        theta += replay.number("step") * slope(theta)
    if not abs(slope(theta)) <= SLACK:
        return math.nan
    return kl(tree, np.stack([log_expit(-theta * f), log_expit(theta * f)], axis=1), mle)


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


def ends_apart(replay: Replay, log_ref: np.ndarray | None = None) -> float:
    """How far two sequences, one on each road, stay apart while both likelihoods rise to the top.

    P_t is proportional to P exp(t rewards[0]), P = policies[0] on the road through rewards and
    policies[1] on the other, t in TIMES. The violation is the least KL between the two over all t.
    NaN if a maximiser exists, or if a likelihood does not reach its supremum (SLACK a comparison).
    """
    replay.need(rewards=1, policies=2)
    tree, data, beta = replay.tree, replay.data, replay.beta
    held = np.where(tree.leaf_mask, 0.0 if log_ref is None else log_ref, 0.0)
    if not fit_tabular(tree, data).empty:
        return math.nan
    apart, reached = [], []
    for t in TIMES:
        first, second = (
            log_optimal(tree, t * replay.rewards[0], 1.0, p) for p in replay.policies[:2]
        )
        r, local = (beta * (np.where(tree.leaf_mask, p, 0.0) - held) for p in (first, second))
        apart.append(kl(tree, log_optimal(tree, r, beta, log_ref), second))
        reached = [bt_log_likelihood(table, data) for table in (r, local)]
    best = _supremum(tree, data)
    if not all(abs(best - value) <= SLACK * data.total for value in reached):
        return math.nan
    return min(apart)


def _supremum(tree: TokenTree, data: PairData) -> float:
    """Of the likelihood, nats: comparisons between strong components can be won for sure."""
    node = tree.n_leaves * data.prompt
    edges = coo_array(
        (np.ones(data.size), (node + data.winner, node + data.loser)),
        shape=(tree.n_prompts * tree.n_leaves,) * 2,
    )
    _, label = connected_components(edges, directed=True, connection="strong")
    within = label[node + data.winner] == label[node + data.loser]
    if not within.any():
        return 0.0
    columns = (data.prompt, data.winner, data.loser, data.count)
    rows = zip(*(column[within].tolist() for column in columns), strict=True)
    value = fit_tabular(tree, PairData.of(tree, list(rows))).log_likelihood
    return math.nan if value is None else value


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
        "the end of an ascent is taken for the optimum of the RL step: it starts on a slope, its "
        "first step leads past the optimum, and where it ends the gradient is 0 to rounding but "
        "the KL is not",
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
        NO_MAXIMISER,
        NO_MAXIMISER_SMALLEST,
        ends_apart,
    ),
)
