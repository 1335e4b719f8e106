"""App. A.1: on-policy samples carry no information, if their labels are Bradley-Terry labels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from theory.certificate import Certificate
from theory.claims.base import Broken, Claim, Trial, attains, included, same, stationary, violation
from theory.claims.instances import (
    FIT_SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_policy,
    random_reward,
    random_tree,
    two_way_pairs,
)
from theory.claims.leafwise import close
from theory.claims.replay import Replay
from theory.claims.roads import offline
from theory.classes import FinitePolicies, TabularPolicies, chain
from theory.fit import fit_tabular
from theory.fit_policy import PolicyFit, maximise
from theory.preferences import PairData, bt_gradient
from theory.soft import kl, leaf_log_probs, log_optimal, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

NAME = "sampler-invariance"
STATEMENT = (
    "App. A.1 (H1), as a statement about populations: pairs come from any sampler that reaches "
    "every completion (the reference, the optimum itself, another policy), labels from "
    "Bradley-Terry at r. Then the fitted reward is r up to a shift a prompt, MLE fitted over all "
    "policies gives P*_r and DPO gives P*_r . P_ref, whatever the sampler; so does a list that "
    "holds this optimum. If the labels are imputed by the reward fitted to an offline set, DPO "
    "fitted to fresh pairs returns the policy of DPO fitted to the offline set itself. The fresh "
    "pairs are drawn half from that policy and half uniformly: drawn from it alone, pairs of "
    "completions that it nearly never generates are too rare for float64 to see their slope."
)
LEFT_OUT = (
    "The paper argues with the data-processing inequality and states no theorem. The invariance "
    "needs Bradley-Terry labels, a class that holds the optimum, and pairs that connect all "
    "completions of a prompt (less than full support). In a misspecified class, or with other "
    "labels, the sampler decides the optimum. Labels that are sure (best and worst of K by the "
    "fitted reward, as in the experiments) are not Bradley-Terry labels: their likelihood has no "
    "maximiser at all."
)
PAIRS = 1000.0  # comparisons that a population stands for: a scale of the likelihood alone


def trial(rng: np.random.Generator, index: int) -> Trial:
    """A reward, a reference and three samplers, one on-policy (the optimum); imputed labels."""
    tree = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 0.7 * min(beta, 1.0))  # r and r / beta both small: sharp fits
    log_ref = random_log_p(rng, tree, 0.7)
    optimum = log_optimal(tree, r, beta, log_ref)
    samplers = {
        "the reference": log_ref,
        "the optimum": optimum,
        "another policy": random_log_p(rng, tree, 0.7),
    }
    found = []
    for name, log_q in samplers.items():
        data, part = population(tree, r, log_q), f"pairs from {name}"
        found += _reward_side(tree, r, data, beta, part)
        found += _policy_side(rng, tree, data, (r, beta, log_ref), part)
    found.append(_listed(rng, tree, r, samplers, beta, log_ref))
    found += _imputed(rng, tree, beta, log_ref)
    return Trial(tuple(found), drawn=Drawn.of(tree, population(tree, r, optimum)))


def population(tree: TokenTree, r: np.ndarray, log_q: np.ndarray) -> PairData:
    """PAIRS comparisons: prompt from rho0, two draws of q kept if they differ, labels of Eq. 4."""
    rows = []
    for prompt, weight in enumerate(tree.weights):
        q = np.exp(log_q[prompt, tree.leaves])
        value = r[prompt, tree.leaves]
        share = 2.0 * PAIRS * weight * q[:, None] * q[None, :] * expit(value[:, None] - value)
        rows += [
            (prompt, int(tree.leaves[i]), int(tree.leaves[j]), float(share[i, j]))
            for i in range(len(q))
            for j in range(len(q))
            if i != j and share[i, j] > 0
        ]
    return PairData.of(tree, rows)


# --- certificates --------------------------------------------------------------------------------


def _reward_side(
    tree: TokenTree, r: np.ndarray, data: PairData, beta: float, part: str
) -> list[Certificate]:
    """r is stationary, with no optimiser; and the fit from this sampler gives P*_r."""
    slope = bt_gradient(r, data) / data.total
    optima = fit_tabular(tree, data)
    fitted = optima.member(np.zeros(optima.graph.n_components))
    solution = soft_value_iteration(tree, fitted, beta=beta)
    reached = np.asarray(leaf_log_probs(tree, solution.log_policy))
    return [
        close(NAME, f"{part}: gradient at r", slope, np.zeros_like(slope)),
        same(tree, NAME, f"{part}: RLHF's policy", reached, log_optimal(tree, r, beta)),
    ]


def _policy_side(
    rng: np.random.Generator,
    tree: TokenTree,
    data: PairData,
    population_of: tuple[np.ndarray, float, np.ndarray],
    part: str,
) -> list[Certificate]:
    """MLE and DPO in the logits of tokens, each from a random start, on the pairs of one sampler.

    population_of: the reward, beta and the reference.
    """
    r, beta, log_ref = population_of
    found = []
    for name, held in (("MLE", None), ("DPO", log_ref)):
        fit = fit_dense(tree, data, _start(rng, tree), beta, held)
        optimum = log_optimal(tree, r, beta, held)
        found.append(stationary(NAME, f"{part}: {name}", fit))
        found.append(same(tree, NAME, f"{part}: {name}'s policy", fit.log_p, optimum))
    return found


def _start(rng: np.random.Generator, tree: TokenTree) -> np.ndarray:
    """Logits of a random policy."""
    return TabularPolicies.of(tree).logits(policy_from_leaves(tree, random_log_p(rng, tree)))


def fit_dense(
    tree: TokenTree, data: PairData, start: np.ndarray, beta: float, log_ref: np.ndarray | None
) -> PolicyFit:
    """DPO over all policies (MLE without log_ref), from the logits of `TabularPolicies`.

    The wins are one (P, L, L) table, so that one program serves every data set on a tree.
    """
    wins = np.zeros((tree.n_prompts, tree.n_leaves, tree.n_leaves))
    np.add.at(wins, (data.prompt, data.winner, data.loser), data.count)
    mask = np.repeat(tree.leaf_mask[None], tree.n_prompts, axis=0)
    arguments = (
        TabularPolicies.of(tree),
        jnp.asarray(wins),
        jnp.asarray(mask),
        jnp.asarray(np.where(mask, 0.0 if log_ref is None else log_ref, 0.0)),
        jnp.float64(beta),
    )
    return maximise(_dense_likelihood, start, arguments, scale=data.total)


def _dense_likelihood(theta, policies, wins, mask, log_ref, beta):
    local = beta * (jnp.where(mask, chain(policies.log_policy(theta)), 0.0) - log_ref)
    return jnp.sum(wins * jax.nn.log_sigmoid(local[:, :, None] - local[:, None, :]))


def _listed(
    rng: np.random.Generator,
    tree: TokenTree,
    r: np.ndarray,
    samplers: dict[str, np.ndarray],
    beta: float,
    log_ref: np.ndarray,
) -> Certificate:
    """A list that holds the optimum: DPO's choice is that optimum under every sampler."""
    best = policy_from_leaves(tree, log_optimal(tree, r, beta, log_ref))
    policies = FinitePolicies((*(random_policy(rng, tree, 0.7) for _ in range(4)), best))
    log_probs = policies.log_probs(tree)
    chosen = [
        log_probs[offline(tree, policies, population(tree, r, q), beta=beta, log_ref=log_ref)]
        for q in samplers.values()
    ]
    part = "a list that holds the optimum: DPO's choice"
    return included(tree, NAME, part, np.concatenate(chosen), log_probs[-1:])


def _imputed(
    rng: np.random.Generator, tree: TokenTree, beta: float, log_ref: np.ndarray
) -> list[Certificate]:
    """DPO on offline pairs; DPO on fresh pairs that the fitted reward labels: nothing is new.

    The fresh pairs: half of the draws from the offline optimum, half uniform (see STATEMENT).
    """
    offline_data = two_way_pairs(rng, tree, connected=True)
    optima = fit_tabular(tree, offline_data)
    r = optima.member(rng.normal(size=optima.graph.n_components))
    first = fit_dense(tree, offline_data, _start(rng, tree), beta, log_ref)
    drawn = np.where(tree.leaf_mask, 0.5 * np.exp(first.log_p) + 0.5 / len(tree.leaves), 1.0)
    fresh = population(tree, r, np.log(drawn))
    again = fit_dense(tree, fresh, _start(rng, tree), beta, log_ref)
    best = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    part = "imputed labels, DPO on fresh pairs"
    return [
        stationary(NAME, "imputed labels, DPO on offline pairs", first),
        stationary(NAME, part, again),
        same(tree, NAME, f"{part} and on offline pairs", again.log_p, first.log_p),
        same(tree, NAME, f"{part} and RLHF", again.log_p, log_optimal(tree, r, beta, log_ref)),
        attains(NAME, part, again.log_p, offline_data, best, beta=beta, log_ref=log_ref),
    ]


# --- broken twins --------------------------------------------------------------------------------


def _misspecified(replay: Replay) -> float:
    """A list without the optimum: its MLE under two samplers (the last two policies), apart."""
    replay.need(policies=4)
    tree = replay.tree
    listed = FinitePolicies(tuple(policy_from_leaves(tree, p) for p in replay.policies[:-2]))
    log_probs = listed.log_probs(tree)
    first, second = (
        log_probs[offline(tree, listed, population(tree, replay.reward, q), beta=replay.beta)]
        for q in replay.policies[-2:]
    )
    return violation(tree, first, second)


def _no_support(replay: Replay) -> float:
    """policies[0] never draws one completion; policies[1] is another optimum on its pairs.

    The violation is KL(P*_r || policies[1]), NaN if policies[1] is no optimum.
    """
    replay.need(policies=2)
    tree, beta = replay.tree, replay.beta
    data = population(tree, replay.reward, replay.policies[0])
    best = fit_tabular(tree, data).log_likelihood
    other = replay.policies[1]
    if not attains(NAME, "", other, data, math.nan if best is None else best, beta=beta).holds:
        return math.nan
    return kl(tree, log_optimal(tree, replay.reward, beta), other)


def _other_labels(replay: Replay) -> float:
    """The completions beat each other in a ring, with frequency numbers.win; two samplers.

    The first beats the second, the second the third, the third the first. The violation is the KL
    between the two fits' soft-optimal policies.
    """
    replay.need(policies=2)
    tree, win, found = replay.tree, replay.number("win"), []
    ring = [int(leaf) for leaf in tree.leaves]
    for log_q in replay.policies[:2]:
        q = np.exp(log_q[0])
        rows = []
        for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
            rows += [
                (0, a, b, PAIRS * q[a] * q[b] * win),
                (0, b, a, PAIRS * q[a] * q[b] * (1 - win)),
            ]
        optima = fit_tabular(tree, PairData.of(tree, rows))
        r = optima.member(np.zeros(optima.graph.n_components))
        found.append(log_optimal(tree, r, replay.beta))
    return kl(tree, found[0], found[1])


BROKEN = (
    Broken(
        "misspecified",
        "the class does not hold the optimum: two policies, each right about one pair",
        "Three completions: two make one pair, which every sampler draws alone.",
        _misspecified,
    ),
    Broken(
        "no-support",
        "the sampler never draws one completion: its mass is free",
        "Three completions: two that are compared, and one that is not.",
        _no_support,
    ),
    Broken(
        "other-labels",
        "the labels are not Bradley-Terry labels: three completions beat each other in a ring",
        "Three completions: with two, every frequency is a Bradley-Terry label.",
        _other_labels,
    ),
)

CLAIM = Claim(NAME, "App. A.1 (H1)", STATEMENT, LEFT_OUT, trial, BROKEN, trials=14)
