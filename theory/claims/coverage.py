"""App. A.2: what comparisons on a part of the tree leave free, and how a reference settles it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import logsumexp

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial, attains, same, stationary
from theory.claims.instances import (
    FIT_SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_tree,
    two_way_pairs,
)
from theory.claims.leafwise import at_most, close
from theory.claims.replay import Replay
from theory.classes import TabularPolicies
from theory.fit import TabularOptima, fit_tabular
from theory.fit_policy import PolicyFit, fit_policy
from theory.preferences import PairData, bt_log_likelihood
from theory.soft import kl, leaf_log_probs, soft_value_iteration
from theory.tree import TokenTree

NAME = "coverage"
STATEMENT = (
    "App. A.2 (H2): if the comparisons of a prompt fall into components C, every optimum of MLE "
    "(and of DPO) has the same distribution P_C inside each of them (proportional to exp(r / "
    "beta), for DPO times P_ref), and any masses m_C at all: #components - #prompts numbers are "
    "free. Of these optima the one nearest to the reference in KL(P || P_ref) has m_C "
    "proportional to exp(-sum_C P_C log(P_C / P_ref)); every other is further by exactly KL(m || "
    "m*). Soft RL on a fitted reward (with the reference, for DPO) has the same free masses, one "
    "for each shift of the reward by a component. It gives the nearest optimum for the shift that "
    "makes E_{P_C}[r] equal in all components (E_{P_C}[r - beta log P_ref], if soft RL has no "
    "reference)."
)
LEFT_OUT = (
    "The paper says (after Song et al. 2024) that offline methods need coverage to control the "
    "reverse KL, as they cannot regularise elsewhere. On the exact level neither road does: the "
    "rewards that fit best are as free off the data as the policies, and KL regularisation in the "
    "second stage picks no member of the set. What it picks in practice is the shift that the "
    "reward model happens to have. P_ref must be positive wherever masses are free."
)
COMPETITORS = 20
CLEAR = 1e3  # the Hessian's flat directions must be this much flatter than the others


def trial(rng: np.random.Generator, index: int) -> Trial:
    """MLE and DPO in turn, on pairs in several components; vacuous if every prompt has one."""
    tree = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    beta = random_beta(rng)
    log_ref = random_log_p(rng, tree)
    data = two_way_pairs(rng, tree, connected=index % 8 == 7)
    dpo = bool((index // len(FIT_SHAPES) + index) % 2)
    optima = fit_tabular(tree, data)
    inside = Inside.of(tree, optima, beta, log_ref if dpo else None)
    masses = nearest_masses(inside, log_ref)
    found = [
        *_free(rng, inside, data, optima, beta, log_ref if dpo else None),
        *_nearest(rng, inside, masses, log_ref),
        _by_reward(inside, optima, beta, log_ref, dpo=dpo),
    ]
    return Trial(tuple(found), vacuous=optima.graph.dimension == 0, drawn=Drawn.of(tree, data))


# --- the set of optima ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Inside:
    """The distributions P_C that all optima share, and their components."""

    tree: TokenTree
    log_inside: Float[np.ndarray, "P L"]  # log P_C(xi) of the own component; -inf at masked slots
    label: np.ndarray  # (P, L) component of each completion; -1 at masked slots
    n_components: int

    @classmethod
    def of(
        cls, tree: TokenTree, optima: TabularOptima, beta: float, log_ref: np.ndarray | None
    ) -> Inside:
        """From one fitted reward; with a reference: of DPO's optima."""
        score = optima.member(np.zeros(optima.graph.n_components)) / beta
        if log_ref is not None:
            score = score + log_ref
        score = np.where(tree.leaf_mask, score, -np.inf)
        return cls.normalised(tree, score, optima.graph.component, optima.graph.n_components)

    @classmethod
    def normalised(
        cls, tree: TokenTree, score: np.ndarray, label: np.ndarray, n_components: int
    ) -> Inside:
        """Scores (P, L) normalised within each component."""
        log_inside = np.where(tree.leaf_mask, score, -np.inf)
        for c in range(n_components):
            own = label == c
            log_inside[own] -= float(np.logaddexp.reduce(log_inside[own]))
        return cls(tree, log_inside, label, n_components)

    def member(self, log_masses: np.ndarray) -> Float[np.ndarray, "P L"]:
        """log P = log m_C + log P_C, of masses (C,) that are normalised here for each prompt."""
        lifted = np.where(self.label >= 0, np.asarray(log_masses)[self.label], 0.0)
        score = self.log_inside + lifted
        return score - np.asarray(logsumexp(score, axis=1, keepdims=True))

    def totals(self, table: np.ndarray) -> Float[np.ndarray, " C"]:
        """Sum of a (P, L) table over each component."""
        held = self.label >= 0
        return np.bincount(self.label[held], table[held], minlength=self.n_components)

    def per_prompt(self, log_masses: np.ndarray) -> Float[np.ndarray, " C"]:
        """log masses normalised for each prompt."""
        return np.log(self.totals(np.exp(self.member(log_masses))))


def nearest_masses(inside: Inside, log_ref: np.ndarray) -> Float[np.ndarray, " C"]:
    """log m_C of the optimum nearest to the reference: -sum_C P_C log(P_C / P_ref), normalised."""
    held = inside.tree.leaf_mask
    p = np.where(held, np.exp(inside.log_inside), 0.0)
    ratio = np.where(held, inside.log_inside, 0.0) - np.where(held, log_ref, 0.0)
    return inside.per_prompt(-inside.totals(p * ratio))


# --- certificates --------------------------------------------------------------------------------


def _free(
    rng: np.random.Generator,
    inside: Inside,
    data: PairData,
    optima: TabularOptima,
    beta: float,
    log_ref: np.ndarray | None,
) -> list[Certificate]:
    """Random masses are optimal; a policy fit has the P_C; the dimension by the Hessian."""
    tree, policies = inside.tree, TabularPolicies.of(inside.tree)
    best = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    other = inside.member(rng.normal(size=inside.n_components))
    start = rng.normal(size=policies.dimension)
    fit = fit_policy(policies, data, start, beta=beta, log_ref=log_ref)
    fitted = Inside.normalised(tree, fit.log_p, inside.label, inside.n_components)
    return [
        attains(NAME, "random masses", other, data, best, beta=beta, log_ref=log_ref),
        stationary(NAME, "a fitted policy", fit),
        same(tree, NAME, "P_C of a fitted policy", fitted.log_inside, inside.log_inside),
        _dimension(inside, policies, fit),
    ]


def _dimension(inside: Inside, policies: TabularPolicies, fit: PolicyFit) -> Certificate:
    """Flat directions of the likelihood in logits, less those that move no policy."""
    nullity = float(fit.nullity - policies.flat_directions) if fit.gap > CLEAR else math.nan
    free = float(inside.n_components - inside.tree.n_prompts)
    return Certificate(NAME, nullity, free, SLACK, "free masses")


def _nearest(
    rng: np.random.Generator, inside: Inside, log_masses: np.ndarray, log_ref: np.ndarray
) -> list[Certificate]:
    """The formula against descent over the masses; every competitor is further by KL(m || m*)."""
    tree = inside.tree
    closest = inside.member(log_masses)
    descended = inside.member(descend_masses(inside, log_ref, rng.normal(size=len(log_masses))))
    least = kl(tree, closest, log_ref)
    others = [
        inside.per_prompt(10.0 ** rng.uniform(-2, 0.5) * rng.normal(size=len(log_masses)) + base)
        for base in (log_masses, np.zeros_like(log_masses))
        for _ in range(COMPETITORS // 2)
    ]
    weights = tree.rho0[_prompts(inside)]
    further = np.asarray([kl(tree, inside.member(m), log_ref) - least for m in others])
    between = np.asarray([float(np.sum(weights * np.exp(m) * (m - log_masses))) for m in others])
    return [
        same(tree, NAME, "nearest masses: formula and descent", closest, descended),
        close(NAME, "competitors are further by KL(m || m*)", further, between),
        at_most(NAME, "no competitor is nearer", -further, np.zeros(1)),
    ]


def descend_masses(
    inside: Inside, log_ref: np.ndarray, start: np.ndarray
) -> Float[np.ndarray, " C"]:
    """The log masses of least KL(P || P_ref), by descent on sums over completions alone.

    L-BFGS, then Newton steps on the scores t, m_C proportional to exp(t_C).
    """
    tree, place = inside.tree, _prompts(inside)
    weights = tree.rho0[place]

    def down(t: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = inside.member(t)
        held = tree.leaf_mask
        p = np.where(held, np.exp(log_p), 0.0)
        ratio = np.where(held, log_p, 0.0) - np.where(held, log_ref, 0.0)
        surplus = ratio - (p * ratio).sum(axis=1, keepdims=True)
        return kl(tree, log_p, log_ref), weights * inside.totals(p * surplus)

    def curvature(t: np.ndarray) -> np.ndarray:
        mass = np.exp(inside.per_prompt(t))
        s = down(t)[1] / (weights * mass)
        pairs = mass[:, None] * mass[None, :] * (s[:, None] + s[None, :] + 1.0)
        block = np.diag(mass * (s + 1.0)) - np.where(place[:, None] == place, pairs, 0.0)
        return weights[:, None] * block

    options = {"maxiter": 1000, "ftol": 0.0, "gtol": 1e-9}
    t = minimize(down, start, jac=True, method="L-BFGS-B", options=options).x
    slope = down(t)[1]
    for _ in range(20):
        trial_t = t - np.linalg.lstsq(curvature(t), slope, rcond=1e-11)[0]
        new = down(trial_t)[1]
        if not np.linalg.norm(new) < np.linalg.norm(slope):
            break
        t, slope = trial_t, new
    return inside.per_prompt(t)


def _prompts(inside: Inside) -> np.ndarray:
    """The prompt of each component, (C,)."""
    out = np.zeros(inside.n_components, dtype=np.int64)
    held = inside.label >= 0
    out[inside.label[held]] = np.nonzero(held)[0]
    return out


def _by_reward(
    inside: Inside, optima: TabularOptima, beta: float, log_ref: np.ndarray, *, dpo: bool
) -> Certificate:
    """Soft RL on the fitted reward with the stated shift gives the nearest optimum."""
    tree, held = inside.tree, inside.tree.leaf_mask
    base = np.where(held, log_ref, 0.0)
    r = optima.member(np.zeros(optima.graph.n_components))
    paid = r if dpo else r - beta * base
    p = np.where(held, np.exp(inside.log_inside), 0.0)
    level = inside.totals(p * paid)
    shifted = r - optima.graph.shift(level)
    target = shifted + beta * base if dpo else shifted
    solution = soft_value_iteration(tree, np.where(held, target, 0.0), beta=beta)
    reached = np.asarray(leaf_log_probs(tree, solution.log_policy))
    closest = inside.member(nearest_masses(inside, log_ref))
    return same(tree, NAME, "soft RL on the shifted reward", reached, closest)


# --- broken twins --------------------------------------------------------------------------------


def _of(replay: Replay) -> tuple[Inside, TabularOptima]:
    """DPO's optima on the instance of a file."""
    optima = fit_tabular(replay.tree, replay.data)
    return Inside.of(replay.tree, optima, replay.beta, replay.log_ref), optima


def _apart(replay: Replay, inside: Inside, log_masses: np.ndarray) -> float:
    """How much further from the reference these masses are than the nearest, nats."""
    least = inside.member(nearest_masses(inside, replay.log_ref))
    other = inside.member(log_masses)
    return kl(replay.tree, other, replay.log_ref) - kl(replay.tree, least, replay.log_ref)


def _reference_masses(replay: Replay) -> float:
    """m_C = P_ref(C), the masses of least KL(P_ref || P)."""
    inside, _ = _of(replay)
    held = replay.tree.leaf_mask
    return _apart(
        replay, inside, np.log(inside.totals(np.where(held, np.exp(replay.log_ref), 0.0)))
    )


def _least_norm(replay: Replay) -> float:
    """The masses of RLHF with the reference on the fitted reward of least norm."""
    inside, optima = _of(replay)
    tree, beta = replay.tree, replay.beta
    r = optima.member(np.zeros(optima.graph.n_components))
    solution = soft_value_iteration(tree, r + beta * replay.log_ref, beta=beta)
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    held = tree.leaf_mask
    return _apart(replay, inside, np.log(inside.totals(np.where(held, np.exp(log_p), 0.0))))


def _connected(replay: Replay) -> float:
    """Likelihood lost, a comparison, if a compared completion is given its reference mass.

    That is: each completion is taken for a component, as if no comparison tied it to another.
    """
    optima, data = fit_tabular(replay.tree, replay.data), replay.data
    best = math.nan if optima.log_likelihood is None else optima.log_likelihood
    local = np.zeros_like(replay.log_ref)  # beta (log P_ref - log P_ref): DPO's local reward
    return (best - bt_log_likelihood(local, data)) / data.total


BROKEN = (
    Broken(
        "reference-masses",
        "the exponent is dropped: m_C = P_ref(C), which is nearest in KL(P_ref || P) instead",
        "Three completions: a pair, whose P_C is not P_ref inside it, and one outside.",
        _reference_masses,
    ),
    Broken(
        "least-norm",
        "RLHF's reward has the least norm, not the shift that the tie-break asks for",
        "Three completions: a pair and one outside it; with two, nothing is free.",
        _least_norm,
    ),
    Broken(
        "connected",
        "the completions are connected, and their masses are taken for free all the same",
        "Two completions: one pair.",
        _connected,
    ),
)

CLAIM = Claim(NAME, "App. A.2 (H2)", STATEMENT, LEFT_OUT, trial, BROKEN, trials=14)
