"""Exact numbers for the trained policies of a study: regret, win rate, Theorem 2.2's violation.

A trained transformer that says the log-probability of every completion is a point on the task's
tree, so nothing here is sampled. What the study computed itself is computed a second time, by other
code, and compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from theory.bt_floor import least_log_loss
from theory.operators import temper, win_rate
from theory.preferences import PairData, bt_gradient, bt_log_likelihood, comparison_graph
from theory.projection import soft_return
from theory.soft import (
    expected_reward,
    kl,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.study_files import Evaluated, Place, Study, read_pairs
from theory.tasks import Task

AGREES = 1e-6  # between the study's own float64 numbers and these
EVALUATIONS = ("eval_global_rm", "eval_global_rm_matched", "eval_local_rm", "eval_dpo_rm")
RECORDED = ("kl_to_optimum", "kl_to_reference", "win_rate", "expected_reward", "mass_on_task")


@dataclass(frozen=True)
class Measured:
    """One policy, exactly. Everything but `mass_off_task` is given that a completion is written."""

    policy: str
    branch: str
    size: str
    seed: int | None
    kl_to_optimum: float  # KL(P || P*), P* proportional to exp(r* / beta), nats
    soft_regret: float  # best soft return less the policy's, reward units; beta times the KL
    lemma_gap: float  # |soft regret - beta KL|: Lemma 2.1, zero up to rounding
    kl_to_reference: float | None  # nats; None: it writes what the reference never does
    expected_reward: float  # reward units
    win_rate: float  # decoded at the evaluation's temperature, against one reference draw, 0-1
    mass_off_task: float  # probability of writing no completion of the task
    recorded_gap: float  # largest difference to what the study recorded

    @property
    def agrees(self) -> bool:
        """Whether the study's own numbers are these, and Lemma 2.1 holds."""
        return self.recorded_gap <= AGREES and self.lemma_gap <= AGREES


def measure(one: Evaluated) -> Measured:
    """All exact numbers of one policy."""
    task, tree = one.task, one.task.tree
    levels = policy_from_leaves(tree, one.log_p)
    best = soft_value_iteration(tree, task.reward, beta=task.beta)
    value = task.beta * float(tree.rho0 @ np.asarray(best.log_z))
    regret = value - soft_return(tree, levels, task.reward, beta=task.beta)
    distance = kl(tree, one.log_p, log_optimal(tree, task.reward, task.beta))
    decoded = np.asarray(leaf_log_probs(tree, temper(tree, levels, one.temperature)))
    to_reference = kl(tree, one.log_p, task.log_reference)
    made = Measured(
        policy=one.policy,
        branch=one.place.branch,
        size=one.place.size,
        seed=one.place.seed,
        kl_to_optimum=distance,
        soft_regret=regret,
        lemma_gap=abs(regret - task.beta * distance),
        kl_to_reference=to_reference if np.isfinite(to_reference) else None,
        expected_reward=expected_reward(tree, one.log_p, task.reward),
        win_rate=win_rate(tree, decoded, task.log_reference, task.reward),
        mass_off_task=1.0 - float(tree.rho0 @ np.exp(one.log_mass)),
        recorded_gap=0.0,
    )
    return replace(made, recorded_gap=_recorded_gap(made, one))


def _recorded_gap(made: Measured, one: Evaluated) -> float:
    """inf where only one side has a number, or the record is no number."""
    found = {name: getattr(made, name, None) for name in RECORDED}
    found["mass_on_task"] = 1.0 - made.mass_off_task
    worst = 0.0
    for name in RECORDED:
        recorded, mine = one.metrics.get(name), found[name]
        if recorded is None or mine is None:
            gap = 0.0 if recorded is mine else float("inf")
        else:
            gap = abs(float(recorded) - mine)
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


# --- Theorem 2.2 ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Violation:
    """Two roads to one policy, and how far apart they end; Theorem 2.2 says: nowhere.

    kind: "same fit": the RL step alone, zero up to rounding. "other seed": one road's reward model
    and the other's policy are two fits of one likelihood over one class. "other class": the reward
    model is beta log pi without a reference (Table 4), the policy DPO's (Table 3).
    """

    kind: str
    branch: str
    size: str
    reward_model: str  # "local_rm[0]": its reward is soft-RL'd exactly, over all policies
    policy: str  # "dpo[1]": maximum likelihood over policies
    beta: float  # of the soft RL, reward units a nat
    anchored: bool  # whether it has a KL penalty to the SFT policy (Eq. 13) or entropy (Eq. 10)
    kl: float  # KL(soft-RL'd || policy), nats
    kl_back: float  # KL(policy || soft-RL'd), nats
    moved: float | None  # KL(policy || the SFT policy), nats: how far training went at all


@dataclass(frozen=True)
class Likelihood:
    """How far a seed's reward models are from the maximum that Theorem 2.2 speaks of."""

    branch: str
    size: str
    seed: int | None
    pairs: int  # of two completions of the task
    prompts: int
    prompts_with_maximiser: int  # whose comparison graph has a finite maximiser over all rewards
    least_loss: float  # infimum over all rewards of the mean training loss, nats a pair
    dpo_loss: float | None  # training loss of DPO's own reward
    local_rm_loss: float | None
    dpo_gradient: float | None  # largest |d loss / d reward of a completion|; 0 at a maximiser
    local_rm_gradient: float | None


@dataclass(frozen=True, eq=False)
class Road:
    """One reward model that is also a policy: its reward, and what soft RL of it needs."""

    name: str  # "dpo[0]"
    one: Evaluated
    reward: Float[np.ndarray, "P L"]  # reward units
    beta: float
    log_ref: Float[np.ndarray, "P L"] | None  # None: soft RL with entropy alone
    sft: Evaluated | None

    def soft_rl(self, beta: float, log_ref: Float[np.ndarray, "P L"] | None) -> np.ndarray:
        """log P (P, L) of the exact soft optimum of this reward, by soft value iteration."""
        tree = self.one.task.tree
        total = self.reward if log_ref is None else self.reward + beta * log_ref
        total = np.where(tree.leaf_mask, total, 0.0)
        solved = soft_value_iteration(tree, total, beta=beta)
        return np.asarray(leaf_log_probs(tree, solved.log_policy))


def violations(study: Study) -> list[Violation]:
    """Every comparison of the two roads that the study's models allow, by branch and size."""
    found = []
    for group in _places(study).values():
        dpo = [road for road in (_dpo(study, place) for place in group) if road]
        local = [road for road in (_local(study, place) for place in group) if road]
        for roads in (dpo, local):
            found += [_compare("same fit", a, a) for a in roads]
            found += [_compare("other seed", a, b) for a, b in itertools.permutations(roads, 2)]
        found += [
            _compare("other class", a, b)
            for a in local
            for b in dpo
            if a.one.place.seed == b.one.place.seed
        ]
    return found


def _places(study: Study) -> dict[tuple[str, str], list[Place]]:
    """(branch, size) -> the places of its seeds."""
    groups: dict[tuple[str, str], list[Place]] = {}
    for one in study.evaluated:
        place = one.place
        if place.seed is not None and place not in groups.get((place.branch, place.size), []):
            groups.setdefault((place.branch, place.size), []).append(place)
    return groups


def _compare(kind: str, rewards: Road, policy: Road) -> Violation:
    """Soft RL of one road's reward by the other's rule, against the other's policy."""
    tree, place = policy.one.task.tree, policy.one.place
    made = rewards.soft_rl(policy.beta, policy.log_ref)
    return Violation(
        kind=kind,
        branch=place.branch,
        size=place.size,
        reward_model=rewards.name,
        policy=policy.name,
        beta=policy.beta,
        anchored=policy.log_ref is not None,
        kl=kl(tree, made, policy.one.log_p),
        kl_back=kl(tree, policy.one.log_p, made),
        moved=None if policy.sft is None else kl(tree, policy.one.log_p, policy.sft.log_p),
    )


def _dpo(study: Study, place: Place) -> Road | None:
    """DPO: r = beta log(pi / pi_sft), soft RL with a KL penalty to the SFT policy (Eq. 13)."""
    one, sft = study.find("dpo", place), _sft(study, place)
    if one is None or sft is None:
        return None
    beta = _beta(study, "dpo", place)
    live = one.task.tree.leaf_mask
    log_ref = np.where(live, sft.log_p, 0.0)
    reward = beta * (np.where(live, one.log_p, 0.0) - log_ref)
    return Road(_id("dpo", place), one, reward, beta, log_ref, sft)


def _sft(study: Study, place: Place) -> Evaluated | None:
    """The SFT policy of a place; branches on the main task share the main one."""
    return study.find("sft", place) or study.find("sft", replace(place, branch=""))


def _local(study: Study, place: Place) -> Road | None:
    """The local reward model r = beta log pi, soft RL with entropy (Eq. 10)."""
    one = study.find("local_rm_policy", place)
    if one is None:
        return None
    beta = _beta(study, "local_rm", place)
    reward = beta * np.where(one.task.tree.leaf_mask, one.log_p, 0.0)
    return Road(_id("local_rm", place), one, reward, beta, None, _sft(study, place))


def _id(name: str, place: Place) -> str:
    return name if place.seed is None else f"{name}[{place.seed}]"


def _beta(study: Study, name: str, place: Place) -> float:
    """The constant that the stage's own settings give."""
    stage = name + (f".{place.branch}" if place.branch else "")
    stage += f"@{place.size}" if place.size else ""
    return float(study.records[_id(stage, place)]["config"]["beta"])


def likelihoods(study: Study) -> list[Likelihood]:
    """For every branch, size and seed with a DPO or a local reward model."""
    found = []
    for place in itertools.chain.from_iterable(_places(study).values()):
        dpo, local = _dpo(study, place), _local(study, place)
        road = dpo or local
        if road is not None:
            found.append(_likelihood(place, road.one, dpo, local))
    return found


def _likelihood(place: Place, one: Evaluated, dpo: Road | None, local: Road | None) -> Likelihood:
    task, pairs = one.task, read_pairs(one.pairs, one.task)
    graph = comparison_graph(task.tree, pairs)
    return Likelihood(
        branch=place.branch,
        size=place.size,
        seed=place.seed,
        pairs=round(pairs.total),
        prompts=len(set(pairs.prompt.tolist())),
        prompts_with_maximiser=len(set(pairs.prompt.tolist()))
        - len({witness.prompt for witness in graph.witnesses}),
        least_loss=_least_loss(task, pairs),
        dpo_loss=None if dpo is None else _loss(dpo.reward, pairs),
        local_rm_loss=None if local is None else _loss(local.reward, pairs),
        dpo_gradient=None if dpo is None else _gradient(dpo.reward, pairs),
        local_rm_gradient=None if local is None else _gradient(local.reward, pairs),
    )


def _loss(reward: Float[np.ndarray, "P L"], pairs: PairData) -> float:
    """Mean of -log sigmoid(margin), nats a pair."""
    return -bt_log_likelihood(reward, pairs) / pairs.total


def _gradient(reward: Float[np.ndarray, "P L"], pairs: PairData) -> float:
    """Largest entry of the gradient of the mean loss by the reward of one completion."""
    return float(np.abs(bt_gradient(reward, pairs)).max()) / pairs.total


def _least_loss(task: Task, pairs: PairData) -> float:
    """The infimum of the mean loss over all rewards, finite or not."""
    leaves = task.tree.n_leaves
    winner = pairs.prompt * leaves + pairs.winner
    loser = pairs.prompt * leaves + pairs.loser
    ends = np.sort(np.stack([winner, loser]), axis=0)
    distinct, row = np.unique(ends, axis=1, return_inverse=True)
    low_won = (winner == ends[0]).astype(np.float64) * pairs.count
    wins = np.bincount(row.reshape(-1), weights=low_won, minlength=distinct.shape[1])
    total = np.bincount(row.reshape(-1), weights=pairs.count, minlength=distinct.shape[1])
    whole = [np.rint(column).astype(np.int64) for column in (wins, total - wins)]
    return least_log_loss(distinct[0], distinct[1], *whole)


# --- reward models -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifier:
    """A reward model on validation pairs, as the study recorded it, and what is the best there."""

    reward_model: str  # "global_rm"
    branch: str
    size: str
    seed: int | None
    val_loss: float  # nats a pair
    val_accuracy: float  # 0-1, ties half
    best_accuracy: float  # of the gold reward, in expectation; labels are noisy


def verifiers(study: Study) -> list[Verifier]:
    """Every reward model that was validated on a branch whose pairs are draws of the reference."""
    found = []
    for record in study.records.values():
        if record["name"] not in EVALUATIONS or record["branch"]:
            continue
        place = Place(record["branch"], record["size"], record["seed"])
        sft = _sft(study, place)
        if sft is not None:
            numbers = {key: float(record["metrics"][key]) for key in ("val_loss", "val_accuracy")}
            best = best_accuracy(sft.task)
            name = record["name"].removeprefix("eval_")
            found.append(Verifier(name, *astuple(place), **numbers, best_accuracy=best))
    return found


def best_accuracy(task: Task) -> float:
    """How often the better completion of two different reference draws wins its comparison."""
    total = 0.0
    for weight, log_p, reward in zip(
        task.tree.weights, task.log_reference, task.reward, strict=True
    ):
        p = np.exp(log_p)
        second = p[None, :] / (1.0 - p[:, None]) * (1.0 - np.eye(len(p)))
        gap = np.abs(reward[:, None] - reward[None, :])
        total += weight * float((p[:, None] * second * expit(gap)).sum())
    return total


def measured(study: Study) -> Iterator[Measured]:
    """Every policy in the order of the study."""
    return map(measure, study.evaluated)
