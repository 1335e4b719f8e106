"""Solve an instance: the soft optimum of its reward, and both roads from its preferences.

The roads are computed apart. Online: the reward that maximises Eq. 6 (`theory.fit`), then exact
soft RL. Offline: the policy that maximises Eq. 9, or the DPO likelihood, in its own logits
(`theory.compared`). Where no finite maximiser exists neither road returns a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory._x64 import AnyArray
from theory.compared import MAX_WORK, fit_offline, offline_work
from theory.errors import InputError
from theory.fit import ConvergenceError, TabularOptima, fit_tabular
from theory.instance import Instance, leaf_names, named, shown, state_names
from theory.preferences import ComparisonGraph, PairData, bt_log_likelihood
from theory.soft import (
    check_beta,
    kl,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.tree import TokenTree

MAX_SCALE = 1e6  # nats: of |r| / beta; rounding is then about 1e-10 nats
MAX_BETA = 1e6  # reward units a nat; beta log P then rounds to some 1e-9 reward units
AGREEMENT = 1e-9  # relative: log-likelihoods of the two roads may differ by this and no more
LEAST_KL = -1e-12  # nats: a KL that rounds below 0 by more is an error

Track = Callable[[list[np.ndarray]], Iterable[np.ndarray]]  # passes the parts of a fit on


@dataclass(frozen=True)
class SoftOptimum:
    """P*_r (Eq. 11), or P*_r . P_ref normalised for each prompt (Lemma B.1)."""

    log_z: Float[np.ndarray, " P"]  # log sum exp(r / beta) (P_ref), nats
    values: list[np.ndarray]  # V(s), (P, V**h) for h = 0..H, reward units; -inf where none is
    log_policy: list[np.ndarray]  # (P, V**h, V) a level, nats; -inf all over where P(s) = 0
    log_p: Float[np.ndarray, "P L"]  # of every completion, nats


@dataclass(frozen=True)
class Roads:
    """The policies of both roads, and how far apart they are."""

    online: SoftOptimum  # "rlhf": soft RL on `reward`
    offline: Float[np.ndarray, "P L"]  # "mle", or "dpo" with a reference: log P, nats
    offline_policy: list[np.ndarray]  # its conditionals
    offline_name: str
    reward: Float[np.ndarray, "P L"]  # the member of the set of maximisers that has `masses`
    masses: Float[np.ndarray, " C"]  # of each component under its prompt, of either road
    kl: float  # E_x KL(online || offline), nats
    log_likelihood: float  # of the offline policy, nats; the reward's own is in `optima`
    step: float  # what is left of the offline fit's steps and net flows, relative


@dataclass(frozen=True)
class Preferences:
    """The set of Bradley-Terry maximisers, and both roads if it is not empty."""

    optima: TabularOptima
    roads: Roads | None
    left_out: str | None  # why there are no roads, if there are none
    failed: bool = False  # whether that is because they were not reached to rounding


@dataclass(frozen=True)
class Solution:
    """What `solve` finds; a part is None where the instance lacks what it needs."""

    instance: Instance
    beta: float
    optimum: SoftOptimum | None  # of the instance's reward
    preferences: Preferences | None

    def to_json(self) -> dict[str, Any]:
        """The record of --json; null stands for log 0 and for what does not exist."""
        return Record(self.instance.tree).solution(self)


def solve(instance: Instance, beta: float = 1.0, *, track: Track = iter) -> Solution:
    """Everything exact about one instance. beta > 0: KL weight, reward units a nat.

    track: see `theory.compared.fit_offline`. Roads that are not reached to rounding are left out
    (`Preferences.failed`). Raises InputError for beta > MAX_BETA or |r| > MAX_SCALE beta,
    ConvergenceError where the reward's maximiser exists and is not reached to rounding.
    """
    check_beta(beta)
    if beta > MAX_BETA:
        raise InputError(
            f"beta must be at most {MAX_BETA:g}, got {beta!r}: float64 resolves no more"
        )
    tree, optimum, preferences = instance.tree, None, None
    if instance.reward is not None:
        _check_scale(tree, instance.reward, beta, "the reward")
        optimum = soft_optimum(tree, instance.reward, beta, instance.log_ref)
    if instance.data is not None:
        preferences = _preferences(instance, instance.data, beta, track)
    return Solution(instance, beta, optimum, preferences)


def soft_optimum(
    tree: TokenTree,
    r: Float[AnyArray, "P L"],
    beta: float,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> SoftOptimum:
    """Soft RL on a given reward, with a reference (that may be 0 somewhere) or without."""
    if log_ref is None:
        found = soft_value_iteration(tree, r, beta=beta)
        values = [np.asarray(level) for level in found.values]
        levels = [np.asarray(level) for level in found.log_policy]
        log_p = _normalised(np.asarray(leaf_log_probs(tree, found.log_policy)))
        return SoftOptimum(np.asarray(found.log_z), values, levels, log_p)
    log_p = _normalised(log_optimal(tree, r, beta, log_ref))
    score = np.where(tree.leaf_mask, np.asarray(r) / beta + np.asarray(log_ref), -np.inf)
    values = _backups(tree, score, beta)
    return SoftOptimum(values[0][:, 0] / beta, values, _policy(tree, log_p), log_p)


def _backups(tree: TokenTree, score: np.ndarray, beta: float) -> list[np.ndarray]:
    """V(s) = beta logsumexp of the scores below s, (P, V**h) for h = 0..H; scores may be -inf."""
    levels = [score]
    for _ in range(tree.horizon):
        below = levels[0].reshape(tree.n_prompts, -1, tree.vocab)
        levels.insert(0, np.logaddexp.reduce(below, axis=2))
    return [beta * level for level in levels]


def _policy(tree: TokenTree, log_p: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(level) for level in policy_from_leaves(tree, log_p)]


# --- preferences ---------------------------------------------------------------------------------


def _preferences(instance: Instance, data: PairData, beta: float, track: Track) -> Preferences:
    tree = instance.tree
    optima = fit_tabular(tree, data)
    if optima.r is None:
        return Preferences(optima, None, "no finite maximiser exists: the sets are empty")
    _check_scale(tree, optima.r, beta, "the fitted reward")
    work = offline_work(tree, data)
    if work > MAX_WORK:
        reason = (
            f"too large: the policy fit takes some {work:.1e} operations over all prompts, the "
            f"limit is {MAX_WORK:.0e}"
        )
        return Preferences(optima, None, reason)
    try:
        return Preferences(optima, _roads(instance, data, optima, beta, track), None)
    except ConvergenceError as error:
        return Preferences(optima, None, str(error), failed=True)


def _roads(
    instance: Instance, data: PairData, optima: TabularOptima, beta: float, track: Track
) -> Roads:
    """Both roads at the masses of least reverse KL to the reference."""
    tree, log_ref, graph = instance.tree, instance.log_ref, optima.graph
    fit = fit_offline(tree, data, graph, beta=beta, log_ref=log_ref, track=track)
    offline, _ = at_least_kl(graph, fit.log_p, log_ref)
    base = optima.member(np.zeros(graph.n_components))
    start = log_optimal(tree, base, beta, log_ref)
    target, log_mass = at_least_kl(graph, start, log_ref)
    reward = optima.member(_shifts(graph, start, target, beta))
    _check_scale(tree, reward, beta, "the fitted reward")
    online = soft_optimum(tree, reward, beta, log_ref)
    own = offline if log_ref is None else offline - np.where(np.isinf(log_ref), 0.0, log_ref)
    log_likelihood = bt_log_likelihood(beta * own, data)
    _check_agreement(log_likelihood, optima)
    return Roads(
        online=online,
        offline=offline,
        offline_policy=_policy(tree, offline),
        offline_name="mle" if log_ref is None else "dpo",
        reward=reward,
        masses=np.exp(log_mass),
        kl=_kl(tree, online.log_p, offline),
        log_likelihood=log_likelihood,
        step=fit.step,
    )


def _check_agreement(log_likelihood: float, optima: TabularOptima) -> None:
    """A policy over all policies attains the likelihood of the rewards (Theorem 2.2)."""
    best = optima.log_likelihood
    if best is None or not abs(log_likelihood - best) <= AGREEMENT * (1.0 + abs(best)):
        raise ConvergenceError(
            f"the policy fit ends at log-likelihood {log_likelihood!r}, the reward's is {best!r}"
        )


def _kl(tree: TokenTree, log_p: np.ndarray, log_q: np.ndarray) -> float:
    """KL(P || Q), nats, of normalised policies; one below LEAST_KL, or NaN, is refused."""
    found = kl(tree, log_p, log_q)
    if not found >= LEAST_KL:
        raise ConvergenceError(f"rounding has left a KL of {found!r} nats between the roads")
    return max(found, 0.0)


def at_least_kl(
    graph: ComparisonGraph, log_p: Float[np.ndarray, "P L"], log_ref: AnyArray | None
) -> tuple[Float[np.ndarray, "P L"], Float[np.ndarray, " C"]]:
    """The policy with log_p's conditionals P_C on components and the masses m_C nearest P_ref.

    m_C proportional to exp(-sum_C P_C log(P_C / P_ref)) within each prompt minimises the reverse KL
    (App. A.2). Without a reference P_ref is uniform over completions: the largest entropy. Returns
    log P and log m_C, nats; a completion never compared where P_ref is 0 gets mass 0.
    """
    label = graph.component
    held = label >= 0
    flat = label[held]
    total = _log_sum(flat, log_p[held], graph.n_components)
    inside = log_p[held] - np.where(np.isneginf(total), 0.0, total)[flat]
    inside = np.where(np.isneginf(total)[flat], 0.0, inside)  # then one completion, of P_ref 0
    against = inside if log_ref is None else inside - np.asarray(log_ref)[held]
    tilt = -np.bincount(flat, np.exp(inside) * against, graph.n_components)
    prompt = np.asarray([x for x, _ in graph.members])
    log_mass = tilt - _log_sum(prompt, tilt, label.shape[0])[prompt]
    out = np.full(label.shape, -np.inf)
    out[held] = inside + log_mass[flat]
    rounding = np.asarray(logsumexp(out, axis=1))  # of sums over many components, above
    return out - rounding[:, None], log_mass - rounding[prompt]


def _shifts(
    graph: ComparisonGraph, start: np.ndarray, target: np.ndarray, beta: float
) -> Float[np.ndarray, " C"]:
    """Steps (C,) that turn the soft optimum `start` into `target`; 0 where the mass is 0."""
    first = [(x, leaves[0]) for x, leaves in graph.members]
    place = tuple(np.asarray(first).T)
    dead = np.isneginf(start[place])
    gap = np.where(dead, 0.0, target[place]) - np.where(dead, 0.0, start[place])
    return beta * gap


def _log_sum(label: np.ndarray, x: np.ndarray, n: int) -> Float[np.ndarray, " n"]:
    """log sum exp of x over each label."""
    top = np.full(n, -np.inf)
    np.maximum.at(top, label, x)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.bincount(label, np.exp(x - shift[label]), n))


def _check_scale(tree: TokenTree, r: np.ndarray, beta: float, what: str) -> None:
    inside = np.abs(r[:, tree.leaves])
    x, place = np.unravel_index(int(inside.argmax()), inside.shape)
    leaf = int(tree.leaves[place])
    if inside[x, place] > MAX_SCALE * beta:
        raise InputError(
            f"{what} reaches {float(r[x, leaf]):g} at prompt {shown(tree.prompts[x])}, completion "
            f"{shown(' '.join(tree.leaf_tokens(leaf)))}: more than {MAX_SCALE:g} beta (beta = "
            f"{beta!r}), float64 leaves too little of its differences"
        )


def _normalised(log_p: Float[np.ndarray, "P L"]) -> Float[np.ndarray, "P L"]:
    """log P with the rounding of large scores taken out of its sum."""
    return log_p - np.asarray(logsumexp(log_p, axis=1, keepdims=True))


# --- JSON ----------------------------------------------------------------------------------------


class Record:
    """Writes parts of a solution as JSON objects; holds the names of the tree's states."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree
        self.names = leaf_names(tree)
        self.states = [
            (name, h, state, np.flatnonzero(tree.allowed(h)[state]))
            for name, h, state in state_names(tree)
        ]

    def solution(self, found: Solution) -> dict[str, Any]:
        """Every prompt with its weight and the optimum of the reward; the preferences."""
        tree, prompts = self.tree, {}
        for x, (prompt, weight) in enumerate(zip(tree.prompts, tree.weights, strict=True)):
            part = {} if found.optimum is None else self.optimum(found.optimum, x)
            prompts[prompt] = {"weight": weight, **part}
        data, part = found.instance.data, None
        if found.preferences is not None and data is not None:
            part = {"pairs": data.size, "comparisons": data.total}
            part |= self.preferences(found.preferences)
        return {"beta": found.beta, "prompts": prompts, "preferences": part}

    def optimum(self, optimum: SoftOptimum, x: int) -> dict[str, Any]:
        """One prompt's log Z, soft values, policy and completion log-probabilities."""
        values = {name: _finite(optimum.values[h][x, s]) for name, h, s, _ in self.states}
        return {
            "log_z": float(optimum.log_z[x]),
            "values": values,
            **self.policy(optimum.log_policy, optimum.log_p, x),
        }

    def policy(self, levels: list[np.ndarray], log_p: np.ndarray, x: int) -> dict[str, Any]:
        """{prefix: {token: probability}}, null at a prefix of probability 0; log P in nats."""
        body: dict[str, Any] = {}
        for name, h, state, allowed in self.states:
            row = levels[h][x, state]
            live = not np.isneginf(row).all()
            body[name] = (
                {self.tree.tokens[a]: float(np.exp(row[a])) for a in allowed} if live else None
            )
        logs = {self.names[leaf]: _finite(log_p[x, leaf]) for leaf in self.tree.leaves}
        return {"policy": body, "log_probabilities": logs}

    def preferences(self, found: Preferences) -> dict[str, Any]:
        """The set of maximisers (its witness if it is empty) and both roads."""
        optima, witness = found.optima, found.optima.witness
        groups = [self.group(x, leaves) for x, leaves in optima.graph.members]
        return {
            "finite_maximiser": not optima.empty,
            "components": groups,
            "dimension": optima.dimension,
            "reward": None if optima.r is None else named(self.tree, optima.r),
            "log_likelihood": optima.log_likelihood,
            "witness": None if witness is None else self.group(witness.prompt, witness.leaves),
            "witnesses": [self.group(one.prompt, one.leaves) for one in optima.graph.witnesses],
            "roads": None if found.roads is None else self.roads(found.roads),
            "left_out": found.left_out,
        }

    def group(self, x: int, leaves: tuple[int, ...]) -> dict[str, Any]:
        """Some completions of one prompt."""
        return {
            "prompt": self.tree.prompts[x],
            "completions": [self.names[leaf] for leaf in leaves],
        }

    def roads(self, roads: Roads) -> dict[str, Any]:
        """Both policies, at equal component masses, and the KL between them."""
        online, offline = roads.online, roads.offline
        return {
            "rlhf": {prompt: self.optimum(online, x) for x, prompt in enumerate(self.tree.prompts)},
            roads.offline_name: {
                prompt: self.policy(roads.offline_policy, offline, x)
                for x, prompt in enumerate(self.tree.prompts)
            },
            "masses": [float(mass) for mass in roads.masses],
            "reward": named(self.tree, roads.reward),
            "kl": roads.kl,
            "log_likelihood": roads.log_likelihood,
            "last_step": roads.step,
        }


def _finite(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None
