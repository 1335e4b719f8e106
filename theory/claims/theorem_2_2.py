"""Theorem 2.2: RLHF is maximum likelihood when the classes are isomorphic."""

from __future__ import annotations

import itertools
import math

import numpy as np

from theory.certificate import SLACK, Certificate
from theory.claims.base import Claim, Trial, attains, included, refused, same, stationary
from theory.claims.instances import (
    FIT_SHAPES,
    KINDS,
    Drawn,
    random_beta,
    random_log_p,
    random_pairs,
    random_reward,
    random_tree,
    two_way_pairs,
)
from theory.claims.restricted import restricted
from theory.claims.roads import matching_member, offline, online, policy_log_likelihoods
from theory.claims.theorem_2_2_twins import BROKEN
from theory.classes import FinitePolicies, FiniteRewards, TabularPolicies
from theory.fit import TabularOptima, fit_tabular, separating_direction
from theory.fit_policy import fit_policy
from theory.preferences import PairData, Witness, bt_log_likelihood
from theory.projection import soft_return
from theory.soft import leaf_log_probs, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

NAME = "theorem-2.2"
STATEMENT = (
    "Theorem 2.2: if R = R(Pi), up to one shift a prompt, then RLHF (fit a reward, then soft RL) "
    "and maximum likelihood over Pi give the same SET of policies. Checked (a) for lists of "
    "policies with planted ties, (b) for all policies, both inclusions and the dimension of the "
    "set, (c) for log-linear policies, from many starts."
)
LEFT_OUT = (
    "For beta != 1 the local reward must be beta sum log pi. argmax is a set, and it can be empty: "
    "if the comparisons admit no finite maximiser the theorem says nothing, and such trials are "
    "counted as vacuous. Every policy has KL(P_pi || P*_{r_pi}) = 0, so soft RL at KL 0 certifies "
    "the RL step and not the fit of the reward: in (c) the reward is fitted apart, and only runs "
    "that reach KL 0 count."
)
CLEAR = 1e3  # the Hessian's flat directions must be this much flatter than the others


def trial(rng: np.random.Generator, index: int) -> Trial:
    """(a) and (b) on one random tree, (c) on every fourth; half of (b)'s data is not planted."""
    tree = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    beta = random_beta(rng)
    found = _finite(rng, tree, beta)
    data = random_pairs(rng, tree, KINDS[index % len(KINDS)])
    optima = fit_tabular(tree, data)
    found.append(existence(tree, data, optima))
    if optima.graph.witness is not None:
        found += _unbounded(tree, data, optima.graph.witness)
    else:
        found += _tabular(rng, tree, data, optima, beta)
    if index % 4 == 0:
        found += restricted(rng, beta, NAME)
    return Trial(tuple(found), optima.empty, Drawn.of(tree, data))


# --- (a) lists of policies -----------------------------------------------------------------------


def _finite(rng: np.random.Generator, tree: TokenTree, beta: float) -> list[Certificate]:
    """Both roads over a list with planted ties; R holds the same rewards, shifted and shuffled."""
    data = two_way_pairs(rng, tree, connected=False)
    tables = [random_log_p(rng, tree) for _ in range(6)]
    listed = FinitePolicies(tuple(policy_from_leaves(tree, table) for table in tables))
    best = int(np.argmax(policy_log_likelihoods(tree, listed, data, beta=beta)))
    seen = np.concatenate([data.winner[data.prompt == 0], data.loser[data.prompt == 0]])
    free = np.setdiff1d(tree.leaves, seen)
    tied = tables[best].copy()
    tied[0, free] = tied[0, np.roll(free, 1)]  # the masses of uncompared completions change places
    policies = FinitePolicies((*listed.policies, policy_from_leaves(tree, tied)))
    order = rng.permutation(7)
    shifts = random_reward(rng, tree, 1.0)[:, :1]
    rewards = FiniteRewards(policies.rewards(tree, beta).tables[order] + shifts)
    log_probs = policies.log_probs(tree)
    rlhf = log_probs[online(tree, rewards, policies, data, beta=beta)]
    mle = log_probs[offline(tree, policies, data, beta=beta)]
    return [
        included(tree, NAME, "(a) every RLHF policy is an MLE policy", rlhf, mle),
        included(tree, NAME, "(a) every MLE policy is an RLHF policy", mle, rlhf),
    ]


# --- (b) all policies ----------------------------------------------------------------------------


def existence(tree: TokenTree, data: PairData, optima: TabularOptima) -> Certificate:
    """Existence by strong components against existence by a linear program."""
    d = np.zeros((data.size, tree.n_prompts * tree.n_leaves))
    d[np.arange(data.size), data.prompt * tree.n_leaves + data.winner] = 1.0
    d[np.arange(data.size), data.prompt * tree.n_leaves + data.loser] = -1.0
    program = separating_direction(d) is None
    return Certificate(NAME, float(not optima.empty), float(program), SLACK, "(b) existence")


def _unbounded(tree: TokenTree, data: PairData, witness: Witness) -> list[Certificate]:
    """Along the witness the likelihood rises at every step (1.0); the policies' road stops too."""
    step = np.zeros((tree.n_prompts, tree.n_leaves))
    step[witness.prompt, list(witness.leaves)] = 1.0
    values = [bt_log_likelihood(t * step, data) for t in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)]
    rises = all(b > a for a, b in itertools.pairwise(values))
    return [
        Certificate(NAME, float(rises), 1.0, SLACK, "(b) the witness of an empty set"),
        refused(NAME, "(b) no policy is returned either", TabularPolicies.of(tree), data),
    ]


def _tabular(
    rng: np.random.Generator, tree: TokenTree, data: PairData, optima: TabularOptima, beta: float
) -> list[Certificate]:
    """Both inclusions over the component shifts, the likelihoods, the dimension."""
    policies = TabularPolicies.of(tree)
    fit = fit_policy(policies, data, rng.normal(size=policies.dimension), beta=beta)
    counterpart = soft_value_iteration(
        tree, matching_member(tree, optima, beta * fit.log_p), beta=beta
    )
    reached = np.asarray(leaf_log_probs(tree, counterpart.log_policy))
    r = optima.member(rng.normal(size=optima.graph.n_components))
    rlhf = soft_value_iteration(tree, r, beta=beta)
    rlhf_log_p = np.asarray(leaf_log_probs(tree, rlhf.log_policy))
    kept = fit_policy(policies, data, policies.logits(rlhf.log_policy), beta=beta)
    nullity = float(fit.nullity - policies.flat_directions) if fit.gap > CLEAR else math.nan
    optimum = float(np.dot(tree.rho0, np.asarray(rlhf.log_z)))
    gained = soft_return(tree, rlhf.log_policy, r, beta=beta) / beta
    likelihood = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    dimension = float(optima.graph.dimension)
    kept_part = "(b) every RLHF policy is an MLE policy"
    return [
        stationary(NAME, "(b) the MLE policy", fit),
        stationary(NAME, kept_part, kept),
        attains(NAME, kept_part, rlhf_log_p, data, fit.value, beta=beta),
        same(tree, NAME, "(b) every MLE policy is an RLHF policy", fit.log_p, reached),
        same(tree, NAME, kept_part, rlhf_log_p, kept.log_p),
        Certificate(NAME, gained, optimum, SLACK, "(b) the RL step reaches its optimum"),
        Certificate(NAME, fit.value, likelihood, SLACK, "(b) equal likelihood"),
        Certificate(NAME, nullity, dimension, SLACK, "(b) dimension of the set"),
    ]


CLAIM = Claim(NAME, "Theorem 2.2, proof in App. B.2", STATEMENT, LEFT_OUT, trial, BROKEN, trials=14)
