"""Theorem 2.3: RLHF with a reference is DPO when the classes are isomorphic."""

from __future__ import annotations

import math

import numpy as np

from theory.certificate import SLACK, Certificate
from theory.claims.base import Claim, Trial, attains, included, refused, same, stationary
from theory.claims.instances import (
    FIT_SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_pairs,
    random_tree,
    two_way_pairs,
)
from theory.claims.roads import matching_member, mixture, offline, online, prompt_term, unmix
from theory.claims.theorem_2_3_twins import BROKEN
from theory.classes import FinitePolicies, TabularPolicies
from theory.fit import TabularOptima, fit_tabular
from theory.fit_policy import fit_policy
from theory.preferences import PairData
from theory.soft import leaf_log_probs, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

NAME = "theorem-2.3"
STATEMENT = (
    "Theorem 2.3: with a reference policy and R = R(Pi), RLHF and DPO give the same SET of "
    "policies, if T(pi_mle) and T^-1(pi_dpo) lie in Pi, where T(P) = P . P_ref is normalised for "
    "each prompt. Every beta; both inclusions; over all policies and over lists with planted ties."
)
LEFT_OUT = (
    "The paper asks that the optima over ALL policies lie in Pi; that set is one point or "
    "infinite, so a list with ties cannot meet it, and the condition above suffices. Eqs. 14-16 "
    "drop a term that depends on the prompt alone, -log sum P_mle P_ref; it cancels, so the "
    "theorem stands, but Eq. 14 as printed never holds. P_ref must be positive on every completion "
    "that Pi can generate, not on compared ones alone. The proof shows one of the two inclusions."
)
DRAWS = 12  # of a list, until it meets the hypothesis
DATA = ("connected", "disconnected", "disconnected", "separable")


def trial(rng: np.random.Generator, index: int) -> Trial:
    """All policies on planted pairs, then a list; vacuous if either says nothing."""
    tree = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    beta = random_beta(rng)
    log_ref = random_log_p(rng, tree)
    data = random_pairs(rng, tree, DATA[index % len(DATA)])
    optima = fit_tabular(tree, data)
    if optima.empty:
        found = [refused(NAME, "no policy is returned either", TabularPolicies.of(tree), data)]
    else:
        found = _tabular(rng, tree, data, optima, beta, log_ref)
    listed = _finite(rng, tree, beta, log_ref)
    vacuous = optima.empty or not listed
    return Trial((*found, *listed), vacuous, Drawn.of(tree, data))


def _tabular(
    rng: np.random.Generator,
    tree: TokenTree,
    data: PairData,
    optima: TabularOptima,
    beta: float,
    log_ref: np.ndarray,
) -> list[Certificate]:
    """DPO and MLE policies on their own logits, rewards on their tables; both inclusions."""
    policies = TabularPolicies.of(tree)
    start = rng.normal(size=(2, policies.dimension))
    dpo = fit_policy(policies, data, start[0], beta=beta, log_ref=log_ref)
    mle = fit_policy(policies, data, start[1], beta=beta)

    def rlhf(r: np.ndarray):
        return soft_value_iteration(
            tree, r + beta * np.where(tree.leaf_mask, log_ref, 0.0), beta=beta
        ).log_policy

    implied = beta * (dpo.log_p - np.where(tree.leaf_mask, log_ref, 0.0))
    reached = leaf_log_probs(tree, rlhf(matching_member(tree, optima, implied)))
    chosen = rlhf(optima.member(rng.normal(size=optima.graph.n_components)))
    chosen_kept = fit_policy(policies, data, policies.logits(chosen), beta=beta, log_ref=log_ref)
    into = policy_from_leaves(tree, mixture(tree, mle.log_p, log_ref))
    back = policy_from_leaves(tree, unmix(tree, dpo.log_p, log_ref))
    into_kept = fit_policy(policies, data, policies.logits(into), beta=beta, log_ref=log_ref)
    back_kept = fit_policy(policies, data, policies.logits(back), beta=beta)
    pairs = [("every DPO policy is an RLHF policy", dpo.log_p, np.asarray(reached))]
    found = [stationary(NAME, "the DPO policy", dpo), stationary(NAME, "the MLE policy", mle)]
    for part, policy, kept, best, reference in (
        ("every RLHF policy is a DPO policy", chosen, chosen_kept, dpo.value, log_ref),
        ("T(pi_mle) is a DPO policy", into, into_kept, dpo.value, log_ref),
        ("T^-1(pi_dpo) is an MLE policy", back, back_kept, mle.value, None),
    ):
        log_p = np.asarray(leaf_log_probs(tree, policy))
        pairs.append((part, log_p, kept.log_p))
        found.append(stationary(NAME, part, kept))
        found.append(attains(NAME, part, log_p, data, best, beta=beta, log_ref=reference))
    if optima.graph.dimension == 0:
        pairs.append(("Eq. 14 with its prompt term", dpo.log_p, mixture(tree, mle.log_p, log_ref)))
        found += _printed(tree, dpo.log_p, mle.log_p, log_ref)
    found += [same(tree, NAME, part, a, b) for part, a, b in pairs]
    return [*found, *_likelihoods(optima, dpo.value, mle.value)]


def _printed(
    tree: TokenTree, dpo: np.ndarray, mle: np.ndarray, log_ref: np.ndarray
) -> list[Certificate]:
    """Eq. 14 as printed is off by its prompt term at every completion, and that is never 0."""
    term = prompt_term(tree, mle, log_ref)
    inner = np.where(tree.leaf_mask, log_ref, 0.0)
    off = np.where(tree.leaf_mask, dpo, 0.0) - np.where(tree.leaf_mask, mle, 0.0) - inner
    part = "Eq. 14 as printed is off by the prompt term"
    return [
        same(tree, NAME, part, off, np.broadcast_to(term, off.shape)),
        Certificate(NAME, float((term > 0).all()), 1.0, SLACK, f"{part}, which is never 0"),
    ]


def _likelihoods(optima: TabularOptima, dpo: float, mle: float) -> list[Certificate]:
    best = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    return [
        Certificate(NAME, dpo, best, SLACK, "equal likelihood, DPO and reward"),
        Certificate(NAME, mle, best, SLACK, "equal likelihood, MLE and reward"),
    ]


def _finite(
    rng: np.random.Generator, tree: TokenTree, beta: float, log_ref: np.ndarray
) -> list[Certificate]:
    """The two roads over a list that meets the sufficient condition, with planted ties.

    About half of the lists drawn meet it; the others are drawn again, DRAWS times at most
    (then the result is empty).
    """
    for _ in range(DRAWS):
        data = two_way_pairs(rng, tree, connected=False)
        found = _listed(tree, data, _tables(rng, tree, data, log_ref), beta, log_ref)
        if found:
            return found
    return []


def _tables(
    rng: np.random.Generator, tree: TokenTree, data: PairData, log_ref: np.ndarray
) -> list[np.ndarray]:
    """Three distributions, a tie of each on the pairs, and the image of all under T."""
    seen = np.concatenate([data.winner[data.prompt == 0], data.loser[data.prompt == 0]])
    free = np.setdiff1d(tree.leaves, seen)
    base = [random_log_p(rng, tree) for _ in range(3)]
    for table in list(base):
        tied = table.copy()
        tied[0, free] = tied[0, np.roll(free, 1)]  # uncompared completions change places
        base.append(tied)
    return [*base, *(mixture(tree, table, log_ref) for table in base)]


def _listed(
    tree: TokenTree, data: PairData, tables: list[np.ndarray], beta: float, log_ref: np.ndarray
) -> list[Certificate]:
    """Both inclusions over one list; empty if T(pi_mle) or T^-1(pi_dpo) is not in it."""
    policies = FinitePolicies(tuple(policy_from_leaves(tree, table) for table in tables))
    log_probs = policies.log_probs(tree)
    rewards = policies.rewards(tree, beta)
    mle = offline(tree, policies, data, beta=beta)
    dpo = log_probs[offline(tree, policies, data, beta=beta, log_ref=log_ref)]
    images = np.stack([mixture(tree, log_probs[i], log_ref) for i in mle])
    sources = np.stack([unmix(tree, table, log_ref) for table in dpo])
    met = all(included(tree, NAME, "", part, log_probs).holds for part in (images, sources))
    if not met:
        return []
    rlhf = log_probs[online(tree, rewards, policies, data, beta=beta, log_ref=log_ref)]
    return [
        included(tree, NAME, "a list: every RLHF policy is a DPO policy", rlhf, dpo),
        included(tree, NAME, "a list: every DPO policy is an RLHF policy", dpo, rlhf),
    ]


CLAIM = Claim(NAME, "Theorem 2.3, proof in App. B.3", STATEMENT, LEFT_OUT, trial, BROKEN, trials=14)
