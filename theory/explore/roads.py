"""One data set, both roads: reward then soft RL, and maximum likelihood over policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.sparse import csr_array, diags_array

from theory.draws import pairs_of
from theory.errors import InputError, require_positive
from theory.explore.fitting import (
    FINE,
    Fitted,
    Levels,
    Pairs,
    PolicyClass,
    chain,
    fit_linear_reward,
    fit_policy_class,
    node_sums,
    pair_loss,
    soft_policy,
)
from theory.families import GroundTruth
from theory.families.bits import polynomials
from theory.tree import TokenTree
from theory.walsh import all_bits, features, subsets

RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0)
ROADS = ("two_stage", "offline_all", "offline_all_one_hot", "offline_matched", "offline_proper")


@dataclass(frozen=True)
class Question:
    """What data there are, and how they are fitted. Raises InputError naming the bad value."""

    n_pairs: int = 256
    ridge: float = 1.0  # 0.5 ridge |theta|^2 on the summed loss
    noise: float = 0.0  # share of labels that are flipped
    beta: float = 1.0  # reward units a nat
    reward_class: str = "true"  # R_sim of the family, "full" (all rewards) or "degree-k"
    seed: int = 0  # of the pairs
    polish: bool = True  # policy fits end with Newton steps; without, near enough for a picture

    def __post_init__(self) -> None:
        if isinstance(self.n_pairs, bool) or not isinstance(self.n_pairs, int) or self.n_pairs < 1:
            raise InputError(f"n_pairs must be a whole number >= 1, got {self.n_pairs!r}")
        if not 0 <= self.noise <= 1:
            raise InputError(f"noise must lie in 0..1, got {self.noise!r}")
        require_positive(self, "ridge", "beta")


@dataclass(frozen=True, eq=False)
class Road:
    """One fitted policy, measured exactly against the soft optimum of the true reward."""

    name: str
    log_p: Float[np.ndarray, "P L"]  # nats; -inf at slots that are no completion
    score: Float[np.ndarray, "P L"]  # the reward it implies, reward units; 0 at those slots
    kl: float  # KL(P_pi || P*), mean over prompts by rho0, nats
    regret: float  # E_{P*} r - E_{P_pi} r, reward units; < 0 where sharper than the optimum
    n_parameters: int
    gradient: float  # the objective's largest entry at the end, nats a unit of theta
    ridge: float


@dataclass(frozen=True, eq=False)
class Exploration:
    """Both roads on one data set."""

    truth: GroundTruth
    question: Question
    pairs: Pairs
    log_optimum: Float[np.ndarray, "P L"]  # log P*(xi | x), nats
    roads: dict[str, Road]

    @property
    def gap(self) -> float:
        """KL of offline_all less KL of two_stage, nats: what the simple reward class buys."""
        return self.roads["offline_all"].kl - self.roads["two_stage"].kl


def explore(
    truth: GroundTruth,
    question: Question,
    *,
    roads: Iterable[str] = ("two_stage", "offline_all"),
    pairs: Pairs | None = None,
) -> Exploration:
    """Draw pairs (unless given), walk the roads, measure. Raises InputError for an unknown road."""
    if pairs is None:
        pairs = draw_pairs(truth, question)
    found = {name: walk(truth, question, name, pairs) for name in roads}
    return Exploration(truth, question, pairs, log_optimum(truth, question.beta), found)


def walk(truth: GroundTruth, question: Question, name: str, pairs: Pairs) -> Road:
    """Fit and measure one road (of ROADS)."""
    if name not in ROADS:
        raise InputError(f"road {name!r} is none of {', '.join(ROADS)}")
    if name == "two_stage":
        return _two_stage(truth, question, pairs)
    if name == "offline_proper":
        return _offline_proper(truth, question, pairs)
    policies = PolicyClass(truth.tree, question.beta, policy_basis(truth, question, name))
    fitted = fit_policy_class(policies, pairs, question.ridge, polish=question.polish)
    log_p = chain(policies.levels(fitted.theta))
    score = question.beta * np.where(truth.tree.leaf_mask, log_p, 0.0)
    used = np.count_nonzero(abs(policies.basis).sum(axis=0))
    return _measured(truth, question, name, log_p, score, fitted, int(used))


def best_in_hindsight(
    truth: GroundTruth,
    question: Question,
    name: str,
    pairs: Pairs,
    ridges: tuple[float, ...] = RIDGES,
) -> Road:
    """The walk of least KL over the ridges: a strength that nobody knows beforehand."""
    walks = [walk(truth, replace(question, ridge=ridge), name, pairs) for ridge in ridges]
    return min(walks, key=lambda road: road.kl)


def curve(
    spec: Any,
    question: Question,
    numbers: tuple[int, ...],
    seeds: Iterable[int],
    *,
    roads: tuple[str, ...] = ("two_stage", "offline_all"),
    ridges: tuple[float, ...] | None = None,
    report: Callable[[], object] = lambda: None,
) -> dict[str, Float[np.ndarray, "N R"]]:
    """KL to the optimum of each road, nats, at every N for every seed (of reward and pairs).

    spec: the settings of a family. ridges: for each N and road the one of least mean KL over the
    seeds, in hindsight; None: the question's. report() is called after every (N, seed).
    """
    tried = (question.ridge,) if ridges is None else ridges
    seeds = tuple(seeds)
    every = {name: np.zeros((len(tried), len(numbers), len(seeds))) for name in roads}
    for j, seed in enumerate(seeds):
        truth = replace(spec, seed=seed).draw()
        for i, n_pairs in enumerate(numbers):
            asked = replace(question, n_pairs=n_pairs, seed=seed)
            pairs = draw_pairs(truth, asked)
            for k, ridge in enumerate(tried):
                for name in roads:
                    asked = replace(asked, ridge=ridge)
                    every[name][k, i, j] = walk(truth, asked, name, pairs).kl
            report()
    best = {name: kl.mean(axis=2).argmin(axis=0) for name, kl in every.items()}
    return {name: kl[best[name], np.arange(len(numbers))] for name, kl in every.items()}


# --- data -----------------------------------------------------------------------------------------


def draw_pairs(truth: GroundTruth, question: Question) -> Pairs:
    """(N, 2) winner and loser, x L + leaf: prompts by rho0, two different completions, uniform.

    The pairs that a sweep draws from this seed: Bradley-Terry labels by the true reward (Eq. 4),
    each then flipped with probability `noise`.
    """
    return pairs_of(truth.tree, truth.reward, question.n_pairs, question.seed, noise=question.noise)


def log_optimum(truth: GroundTruth, beta: float) -> Float[np.ndarray, "P L"]:
    """log P*(xi | x) = r / beta - log Z (Eq. 11), nats, over the leaves at once."""
    score = np.where(truth.tree.leaf_mask, truth.reward / beta, -np.inf)
    top = score.max(axis=1, keepdims=True)
    return score - top - np.log(np.exp(score - top).sum(axis=1, keepdims=True))


def conditionals(tree: TokenTree, log_p: Float[np.ndarray, "P L"]) -> Levels:
    """log pi(a|s), one (P, V**h, V) array a level, of a distribution over completions."""
    return soft_policy(tree, log_p, 1.0)


def node_probabilities(tree: TokenTree, log_p: Float[np.ndarray, "P L"]) -> Levels:
    """P(a completion passes s.a | x), one (P, V**h, V) array a level."""
    return node_sums(tree, np.exp(log_p))


# --- roads ----------------------------------------------------------------------------------------


def reward_features(truth: GroundTruth, reward_class: str) -> Float[np.ndarray, "M D"] | None:
    """The simple reward class on all leaf slots of all prompts; None: all rewards.

    Raises InputError for a class that this family has not.
    """
    tree = truth.tree
    slots = tree.n_prompts * tree.n_leaves
    if reward_class == "true":
        return truth.features.reshape(slots, -1)
    if reward_class == "full":
        return None
    kind, _, degree = reward_class.partition("-")
    bits = round(math.log2(tree.n_leaves))
    if kind == "degree" and degree.isdigit() and truth.degree is not None:
        if not 1 <= int(degree) <= bits:
            raise InputError(f"reward class {reward_class!r}: the degree lies outside 1..{bits}")
        return polynomials(bits, int(degree))
    raise InputError(
        f"reward class {reward_class!r} is none of true, full"
        + (", degree-1 .." if truth.degree is not None else f" (family {truth.family})")
    )


def _two_stage(truth: GroundTruth, question: Question, pairs: Pairs) -> Road:
    """A reward by maximum likelihood, then exact soft RL against it."""
    tree, phi = truth.tree, reward_features(truth, question.reward_class)
    if phi is None:
        score, fitted, used = _every_reward(tree, pairs, question.ridge)
    else:
        fitted = fit_linear_reward(phi, pairs, question.ridge)
        score, used = (phi @ fitted.theta).reshape(tree.n_prompts, -1), phi.shape[1]
    log_p = chain(soft_policy(tree, score, question.beta))
    return _measured(truth, question, "two_stage", log_p, score, fitted, used)


def _every_reward(
    tree: TokenTree, pairs: Pairs, ridge: float
) -> tuple[Float[np.ndarray, "P L"], Fitted, int]:
    """R = R(Pi) in orthonormal coordinates: ridge on the mean square of the centred reward.

    A prompt at a time, on the completions that were compared; the reward of all others is 0, the
    mean of those that were. The optimum is centred by itself.
    """
    scale = math.sqrt(tree.n_prompts * len(tree.leaves))
    score, worst = np.zeros(tree.n_prompts * tree.n_leaves), 0.0
    for x in range(tree.n_prompts):
        own = pairs[pairs[:, 0] // tree.n_leaves == x]
        compared, places = np.unique(own, return_inverse=True)
        if len(compared):
            phi = scale * np.eye(len(compared))
            fitted = fit_linear_reward(phi, places.reshape(-1, 2), ridge)
            score[compared] = scale * fitted.theta
            worst = max(worst, fitted.gradient)
    used = tree.n_prompts * (len(tree.leaves) - 1)
    return score.reshape(tree.n_prompts, -1), Fitted(score / scale, worst), used


def _offline_proper(truth: GroundTruth, question: Question, pairs: Pairs) -> Road:
    """Inside Pi(R_sim): theta is scored by the log-probabilities of its soft-optimal policy alone.

    Raises InputError for the reward class "full", whose Pi(R) is offline_all's class.
    """
    tree, beta = truth.tree, question.beta
    phi = reward_features(truth, question.reward_class)
    if phi is None:
        raise InputError("offline_proper needs a simple reward class, got 'full'")

    def log_p(theta: np.ndarray) -> np.ndarray:
        return chain(soft_policy(tree, (phi @ theta).reshape(tree.n_prompts, -1), beta))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        policy = log_p(theta)
        score = beta * np.where(tree.leaf_mask, policy, 0.0)
        loss, at_leaf = pair_loss(score.reshape(-1), pairs)
        at_leaf = at_leaf.reshape(policy.shape)
        at_leaf = at_leaf - np.exp(policy) * at_leaf.sum(axis=1, keepdims=True)
        slope = at_leaf.reshape(-1) @ phi + question.ridge * theta
        return loss + 0.5 * question.ridge * float(theta @ theta), slope

    options = {"maxiter": 2000, "maxcor": 20, "ftol": 0.0, "gtol": FINE}
    start = np.zeros(phi.shape[1])
    theta = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    fitted = Fitted(theta, float(np.abs(objective(theta)[1]).max()))
    policy = log_p(theta)
    score = beta * np.where(tree.leaf_mask, policy, 0.0)
    return _measured(truth, question, "offline_proper", policy, score, fitted, phi.shape[1])


def policy_basis(truth: GroundTruth, question: Question, name: str) -> Any:
    """(E, d): the logits of offline_all, offline_all_one_hot or offline_matched in theta.

    offline_all: logits in units of the root of the level's size (entries where the state leaves a
    choice), so that the ridge is on their mean square: Walsh coordinates, rotated.
    offline_matched: polynomials of the degree of R_sim in the bits of prefix and token, or else
    theta . mean of the features below s.a.
    """
    tree = truth.tree
    free = [mask & (mask.sum(axis=1, keepdims=True) > 1) for mask in tree.allowed_levels]
    live = [np.tile(mask.reshape(-1), tree.n_prompts) for mask in free]
    if name == "offline_all":
        return csr_array(diags_array(np.concatenate([m * math.sqrt(m.sum()) for m in live])))
    if name == "offline_all_one_hot":
        return csr_array(diags_array(np.concatenate(live).astype(np.float64)))
    if question.reward_class == "full":
        raise InputError("offline_matched needs a simple reward class, got 'full'")
    phi = reward_features(truth, question.reward_class)
    assert phi is not None
    if truth.degree is not None:
        kind, _, degree = question.reward_class.partition("-")
        return _bit_logits(tree, truth.degree if kind == "true" else int(degree))
    below = np.tile(tree.leaf_mask, tree.n_prompts).reshape(tree.n_prompts, -1)
    counts = node_sums(tree, below.astype(np.float64))
    columns = [node_sums(tree, column.reshape(tree.n_prompts, -1)) for column in phi.T]
    return np.concatenate(
        [
            np.stack([c[h] / np.maximum(counts[h], 1.0) for c in columns], -1).reshape(
                -1, len(columns)
            )
            for h in range(tree.horizon)
        ]
    )


def _bit_logits(tree: TokenTree, degree: int) -> np.ndarray:
    """Block diagonal: polynomials of level h in the bits of its prefix and token."""
    width = round(math.log2(tree.vocab))
    tables = []
    for h in range(tree.horizon):
        bits = width * (h + 1)
        tables.append(features(all_bits(bits), subsets(bits, min(degree, bits))))
    shape = np.sum([table.shape for table in tables], axis=0)
    out, row, column = np.zeros(shape), 0, 0
    for table in tables:
        out[row : row + table.shape[0], column : column + table.shape[1]] = table
        row, column = row + table.shape[0], column + table.shape[1]
    return out


def policy_rank(truth: GroundTruth, question: Question, name: str) -> int:
    """Rank of d log P / d theta at a random theta: the capacity that a count does not show."""
    policies = PolicyClass(truth.tree, question.beta, policy_basis(truth, question, name))
    theta = np.random.default_rng(0).standard_normal(policies.n_parameters)
    if isinstance(policies.basis, csr_array):  # logits of any size are fine, exp of 100 is not
        theta = theta / abs(policies.basis).max()
    live = np.flatnonzero(np.tile(truth.tree.leaf_mask, truth.tree.n_prompts))
    return int(np.linalg.matrix_rank(policies.jacobian(theta, live) @ policies.basis))


def _measured(
    truth: GroundTruth,
    question: Question,
    name: str,
    log_p: np.ndarray,
    score: np.ndarray,
    fitted: Fitted,
    n_parameters: int,
) -> Road:
    """KL and regret by enumeration over completions, mean over prompts by rho0."""
    mask, best = truth.tree.leaf_mask, log_optimum(truth, question.beta)
    p = np.exp(log_p)
    ratio = np.where(mask, log_p, 0.0) - np.where(mask, best, 0.0)
    kl = float(truth.tree.rho0 @ (p * ratio).sum(axis=1))
    regret = float(truth.tree.rho0 @ ((np.exp(best) - p) * truth.reward).sum(axis=1))
    if not (np.isfinite(kl) and np.isfinite(regret)):
        raise InputError(f"road {name}: KL is {kl}, ridge {question.ridge:g}")
    score = np.where(mask, score, 0.0)
    return Road(name, log_p, score, kl, regret, n_parameters, fitted.gradient, question.ridge)
