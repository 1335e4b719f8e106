"""Bradley-Terry, its fit and the soft-optimal policy see a reward up to one shift a prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit, log_expit

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import (
    FIT_SHAPES,
    SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_reward,
    random_tree,
)
from theory.claims.leafwise import close
from theory.claims.replay import Replay
from theory.fit import fit_tabular
from theory.preferences import (
    PairData,
    bt_gradient,
    bt_log_likelihood,
    bt_probability,
    comparison_graph,
    sample_pairs,
)
from theory.soft import kl, leaf_log_probs, log_optimal, soft_value_iteration
from theory.tree import TokenTree

NAME = "bt-shift"
STATEMENT = (
    "r and r + c(x), one number a prompt, give the same Bradley-Terry probabilities, the same "
    "likelihood and gradient on any data, and the same soft-optimal policy, with or without a "
    "reference; every V(x) moves by c(x) and nothing else does. Conversely nothing more is lost "
    "where the comparisons of each prompt are connected: a fit to exact Bradley-Terry labels of r "
    "gives r back up to one shift a prompt, so its soft-optimal policy is that of r."
)
LEFT_OUT = (
    "The paper uses the invariance in passing (App. D: a prompt-dependent shift cancels) and "
    "states no converse. Two completions must share their prompt. Comparisons that leave a prompt "
    "in several components see one shift a COMPONENT less, and policies do see that shift."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """The invariance at a random reward, shift and data; then a reward got back from labels."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 0.5))
    c = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 1.0))[:, :1]
    data = sample_pairs(tree, r, 64, seed=int(rng.integers(2**32)))
    smaller = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    target = random_reward(rng, smaller, 0.7 * min(beta, 1.0))  # small margins: a sharp fit
    labels = connected_labels(rng, smaller, target)
    return Trial(
        (
            *_blind(tree, r, c, data),
            *_policies(tree, r, c, beta, random_log_p(rng, tree)),
            *_got_back(smaller, target, labels, beta, rng),
        ),
        # what was drawn for the converse: to the invariance it does not matter which data it is
        drawn=replace(Drawn.of(tree), data=Drawn.of(smaller, labels).data),
    )


def _blind(tree: TokenTree, r: np.ndarray, c: np.ndarray, data: PairData) -> list[Certificate]:
    """Bradley-Terry at r and at r + c, per comparison; the gradient has no part along a prompt."""
    shifted, n = r + c, data.total
    along = bt_gradient(r, data).sum(axis=1) / n
    return [
        close(NAME, "probabilities", bt_probability(r, data), bt_probability(shifted, data)),
        close(NAME, "gradient", bt_gradient(r, data) / n, bt_gradient(shifted, data) / n),
        close(NAME, "gradient along a prompt", along, np.zeros(tree.n_prompts)),
        Certificate(
            NAME,
            bt_log_likelihood(r, data) / n,
            bt_log_likelihood(shifted, data) / n,
            SLACK,
            "likelihood",
        ),
    ]


def _policies(
    tree: TokenTree, r: np.ndarray, c: np.ndarray, beta: float, log_ref: np.ndarray
) -> list[Certificate]:
    """Soft-optimal policies, and the values of the root."""
    plain, moved = (soft_value_iteration(tree, table, beta=beta) for table in (r, r + c))
    left, right = (np.asarray(leaf_log_probs(tree, s.log_policy)) for s in (plain, moved))
    values = [np.asarray(s.log_z) for s in (plain, moved)]
    with_ref = [log_optimal(tree, table, beta, log_ref) for table in (r, r + c)]
    return [
        same(tree, NAME, "soft-optimal policy", left, right),
        same(tree, NAME, "soft-optimal policy with a reference", *with_ref),
        close(NAME, "V(x) / beta moves by c(x)", values[1], values[0] + c[:, 0] / beta),
    ]


def _got_back(
    tree: TokenTree, r: np.ndarray, data: PairData, beta: float, rng: np.random.Generator
) -> list[Certificate]:
    """A reward from its exact labels on a random connected graph of pairs."""
    optima = fit_tabular(tree, data)
    fitted = optima.member(rng.normal(size=optima.graph.n_components))
    gap = ((fitted - r) / beta)[:, tree.leaves]
    return [
        close(NAME, "labels give r back up to a shift a prompt", gap, gap[:, :1] + 0.0 * gap),
        same(
            tree,
            NAME,
            "and its policy",
            log_optimal(tree, fitted, beta),
            log_optimal(tree, r, beta),
        ),
    ]


def connected_labels(rng: np.random.Generator, tree: TokenTree, r: np.ndarray) -> PairData:
    """Exact Bradley-Terry labels of r on one star and one ring a prompt, random weights."""
    rows = []
    for prompt in range(tree.n_prompts):
        order = [int(leaf) for leaf in rng.permutation(tree.leaves)]
        pairs = [(order[0], leaf) for leaf in order[1:]]
        pairs += [(order[k - 1], order[k]) for k in range(2, len(order))]
        for a, b in pairs:
            weight, p = float(rng.uniform(1.0, 5.0)), float(expit(r[prompt, a] - r[prompt, b]))
            rows += [(prompt, a, b, weight * p), (prompt, b, a, weight * (1.0 - p))]
    return PairData.of(tree, rows)


# --- broken twins --------------------------------------------------------------------------------


def _across_prompts(replay: Replay) -> float:
    """One comparison of a completion of the first prompt with one of the second, r and r + c."""
    replay.need(rewards=2)
    leaf = int(replay.tree.leaves[0])
    values = [log_expit(table[0, leaf] - table[1, leaf]) for table in replay.rewards[:2]]
    return float(abs(values[0] - values[1]))


def _policies_apart(replay: Replay) -> float:
    """KL between the soft-optimal policies of the two rewards of a file."""
    replay.need(rewards=2)
    first, second = (
        soft_value_iteration(replay.tree, table, beta=replay.beta) for table in replay.rewards[:2]
    )
    log_p, log_q = (leaf_log_probs(replay.tree, s.log_policy) for s in (first, second))
    return kl(replay.tree, log_p, log_q)


def _by_length(replay: Replay) -> float:
    """KL between the soft-optimal policies of r and of r + numbers.bonus times the length."""
    tree = replay.tree
    longer = replay.reward.copy()
    for leaf in tree.leaves:
        longer[:, leaf] += replay.number("bonus") * len(tree.leaf_tokens(int(leaf)))
    log_p, log_q = (log_optimal(tree, table, replay.beta) for table in (replay.reward, longer))
    return kl(tree, log_p, log_q)


def _by_component(replay: Replay) -> float:
    """`_policies_apart` of two rewards that the data cannot tell apart (NaN if it can)."""
    replay.need(rewards=2)
    if not comparison_graph(replay.tree, replay.data).exists:
        return math.nan
    first, second = (bt_log_likelihood(table, replay.data) for table in replay.rewards[:2])
    return _policies_apart(replay) if abs(first - second) <= SLACK else math.nan


BROKEN = (
    Broken(
        "across-prompts",
        "the two completions of a comparison belong to different prompts",
        "Two prompts of one completion each: one prompt has one shift.",
        _across_prompts,
    ),
    Broken(
        "by-completion",
        "the shift depends on the completion (rewards[1] - rewards[0])",
        "Two completions: with one, a shift of the completion is a shift of the prompt.",
        _policies_apart,
    ),
    Broken(
        "by-length",
        "the shift depends on the length of the completion (a bonus a token)",
        "Two completions, of one and of two tokens: two lengths are the least with a difference.",
        _by_length,
    ),
    Broken(
        "by-component",
        "the comparisons are not connected: r and rewards[1] have the same likelihood",
        "Three completions: a pair, and one outside it.",
        _by_component,
    ),
)

CLAIM = Claim(NAME, "Eqs. 4 and 6; App. D before Eq. 22", STATEMENT, LEFT_OUT, trial, BROKEN, 16)
