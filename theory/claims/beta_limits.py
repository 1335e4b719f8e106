"""The soft optimum for large and for small beta, each with an explicit rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from theory.certificate import Certificate
from theory.claims.base import Broken, Claim, Trial
from theory.claims.instances import SHAPES, Drawn, random_log_p, random_reward, random_tree
from theory.claims.leafwise import at_most, close, conditionals, leaves_below
from theory.claims.replay import Replay
from theory.soft import (
    hard_policy,
    kl,
    leaf_log_probs,
    soft_value_iteration,
    uniform_over_completions,
)
from theory.tree import TokenTree

NAME = "beta-limits"
STATEMENT = (
    "beta -> infinity: the soft optimum becomes uniform over COMPLETIONS, pi(a|s) = leaves(s.a) / "
    "leaves(s); with a reference it becomes the reference. Rates, with w = max r - min r of the "
    "prompt: no log-probability of a completion or of a token is further than w / beta from its "
    "limit, and log P is (r - mean r) / beta from it up to w^2 / (8 beta^2). beta -> 0: hard "
    "value iteration; the k best of n completions share in proportion to 1 (to P_ref), so a token "
    "gets its share of the best completions below its state. Rates, with g the gap below the best "
    "reward: the others have mass at most (n - k) / k exp(-g / beta), and at every state beta log "
    "(best leaves) <= V_beta(s) - max r <= beta log leaves(s)."
)
LEFT_OUT = (
    "The paper sets beta = 1 and names no limit. Uniform over completions is not uniform over "
    "tokens where there is EOS or a forbidden token, and best completions that tie do not share "
    "equally among tokens. The rates need r to stay as it is while beta moves, and beta -> 0 "
    "needs beta below the gap."
)
REWARDS = 3  # rewards of the small-beta part are 0, 1, ..: ties are exact


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Both limits at a beta of every size; vacuous if all rewards of the small part are equal."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    log_ref = random_log_p(rng, tree)
    flat = np.where(tree.leaf_mask, -np.log(len(tree.leaves)), -np.inf)
    flat = np.repeat(flat[None], tree.n_prompts, axis=0)
    r = random_reward(rng, tree, 1.0)
    tied = rng.integers(0, REWARDS, size=r.shape).astype(float)
    small = float(1.0 / 10.0 ** rng.uniform(-0.3, 2.5))
    large = float(10.0 ** rng.uniform(-0.3, 6.0))
    found = [
        *_tokens_at_large(tree, r, large),
        *_tokens_at_small(tree, tied),
        *_hard_iteration(tree, tied, log_ref),
    ]
    for part, base in (("", flat), (" with a reference", log_ref)):
        found += _large(tree, r, large, base, part)
        found += _small(tree, tied, small, base, part)
    spread = np.ptp(tied[:, tree.leaves], axis=1)
    return Trial(tuple(found), vacuous=not spread.any(), drawn=Drawn.of(tree))


def _solved(tree: TokenTree, r: np.ndarray, beta: float, log_base: np.ndarray) -> np.ndarray:
    """log-probabilities of the soft optimum of r with a reference (the flat one: without)."""
    base = np.where(tree.leaf_mask, log_base, 0.0)
    solution = soft_value_iteration(tree, r + beta * base, beta=beta)
    return np.asarray(leaf_log_probs(tree, solution.log_policy))


# --- beta -> infinity ----------------------------------------------------------------------------


def _large(
    tree: TokenTree, r: np.ndarray, beta: float, log_base: np.ndarray, part: str
) -> list[Certificate]:
    """Completions: first and second order. log_base: the limit."""
    leaves = tree.leaves
    moved = _solved(tree, r, beta, log_base)[:, leaves] - log_base[:, leaves]
    reward = r[:, leaves]
    width = np.ptp(reward, axis=1)[:, None]
    mean = (np.exp(log_base[:, leaves]) * reward).sum(axis=1, keepdims=True)
    rest = (reward - mean) / beta - moved  # in [0, w^2 / (8 beta^2)]: Hoeffding's lemma
    bound = width**2 / (8.0 * beta**2)
    return [
        at_most(NAME, f"large beta{part}: w / beta", np.abs(moved), width / beta),
        at_most(NAME, f"large beta{part}: second order, above", rest, bound),
        at_most(NAME, f"large beta{part}: second order, below", -rest, np.zeros(1)),
    ]


def count_policy(tree: TokenTree) -> list[np.ndarray]:
    """log of leaves(s.a) / leaves(s), (P, V**h, V) a level."""
    with np.errstate(divide="ignore"):
        counts = [np.log(leaves_below(tree, h)) for h in range(tree.horizon + 1)]
    return conditionals(tree, [np.repeat(c[None], tree.n_prompts, axis=0) for c in counts])


def _tokens_at_large(tree: TokenTree, r: np.ndarray, beta: float) -> list[Certificate]:
    """Tokens: within w / beta of leaves(s.a) / leaves(s), and equal to it where r is 0."""
    limit = np.concatenate([level.reshape(tree.n_prompts, -1) for level in count_policy(tree)], 1)
    width = np.ptp(r[:, tree.leaves], axis=1)[:, None]
    read = [_tokens(tree, table, beta) for table in (r, np.zeros_like(r))]
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.where(np.isneginf(limit) & np.isneginf(read[0]), 0.0, read[0] - limit))
    return [
        at_most(NAME, "large beta: tokens, w / beta", gap, width / beta),
        close(NAME, "no reward: tokens in proportion to their completions", read[1], limit),
    ]


def _tokens(tree: TokenTree, r: np.ndarray, beta: float) -> Float[np.ndarray, "P T"]:
    """The soft-optimal log pi(a|s) of all levels, one row a prompt."""
    policy = soft_value_iteration(tree, r, beta=beta).log_policy
    return np.concatenate([np.asarray(level).reshape(tree.n_prompts, -1) for level in policy], 1)


# --- beta -> 0 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hard:
    """Hard value iteration by enumeration, at the states of one level."""

    best: Float[np.ndarray, "P S"]  # largest reward below, reward units; -inf if none
    count: Float[np.ndarray, "P S"]  # how many completions below reach it


def hard_values(tree: TokenTree, r: np.ndarray, level: int) -> Hard:
    """The best reward below every state of a level, and its multiplicity."""
    split = np.where(tree.leaf_mask, r, -np.inf).reshape(tree.n_prompts, tree.vocab**level, -1)
    best = split.max(axis=2)
    reached = (split == best[:, :, None]) & np.isfinite(split)
    return Hard(best, reached.sum(axis=2).astype(float))


def optimal(tree: TokenTree, r: np.ndarray) -> Bool[np.ndarray, "P L"]:
    """Which completions have the largest reward of their prompt."""
    masked = np.where(tree.leaf_mask, r, -np.inf)
    return masked == masked.max(axis=1, keepdims=True)


def _small(
    tree: TokenTree, r: np.ndarray, beta: float, log_base: np.ndarray, part: str
) -> list[Certificate]:
    """The best completions share in proportion to the base; the others' mass decays."""
    best = optimal(tree, r)
    log_p = _solved(tree, r, beta, log_base)
    held = np.asarray(logsumexp(np.where(best, log_base, -np.inf), axis=1, keepdims=True))
    others = np.where(tree.leaf_mask & ~best, r, -np.inf).max(axis=1, keepdims=True)
    gap = np.where(best, r, -np.inf).max(axis=1, keepdims=True) - others  # inf if all are best
    bound = -np.expm1(held) * np.exp(-held) * np.exp(-gap / beta)
    off = np.where(best, 0.0, np.exp(log_p)).sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        short = np.where(best, log_base - held - log_p, 0.0)  # in [0, bound]
    return [
        at_most(NAME, f"small beta{part}: mass off the best", off, bound),
        at_most(NAME, f"small beta{part}: shares of the best, above", -short, np.zeros(1)),
        at_most(NAME, f"small beta{part}: shares of the best, below", short, bound),
    ]


def _tokens_at_small(tree: TokenTree, r: np.ndarray) -> list[Certificate]:
    """Every state: V between its bounds, and tokens in proportion to their best completions."""
    beta = 1.0 / 200.0  # the gap is 1 or more: the limit to rounding, n exp(-200) < 1e-80
    solution = soft_value_iteration(tree, r, beta=beta)
    above, below, shares, limits = [], [], [], []
    for h in range(tree.horizon + 1):
        hard, leaves = hard_values(tree, r, h), leaves_below(tree, h)
        live = leaves > 0
        over = (np.asarray(solution.values[h])[:, live] - hard.best[:, live]) / beta
        above.append((over - np.log(leaves[live])).ravel())
        below.append((np.log(hard.count[:, live]) - over).ravel())
    for h, level in enumerate(solution.log_policy):
        limits.append(hard_shares(tree, r, h).ravel())
        shares.append(np.exp(np.asarray(level)).ravel())
    return [
        at_most(NAME, "small beta: V, above", np.concatenate(above), np.zeros(1)),
        at_most(NAME, "small beta: V, below", np.concatenate(below), np.zeros(1)),
        close(
            NAME,
            "small beta: tokens in proportion to their best completions",
            np.concatenate(shares),
            np.concatenate(limits),
        ),
    ]


def _hard_iteration(tree: TokenTree, r: np.ndarray, log_ref: np.ndarray) -> list[Certificate]:
    """Hard value iteration with its ties, token by token, against counting completions."""
    best = optimal(tree, r)
    kept = np.where(best, np.exp(log_ref), 0.0)
    with_ref = np.asarray(leaf_log_probs(tree, hard_policy(tree, r, log_ref)))
    counted = [hard_shares(tree, r, h).ravel() for h in range(tree.horizon)]
    shares = [np.exp(np.asarray(level)).ravel() for level in hard_policy(tree, r)]
    uniform = [np.asarray(level).ravel() for level in uniform_over_completions(tree)]
    limit = [level.ravel() for level in count_policy(tree)]
    return [
        close(NAME, "hard value iteration", np.concatenate(shares), np.concatenate(counted)),
        close(
            NAME,
            "hard value iteration with a reference",
            np.exp(with_ref),
            kept / kept.sum(axis=1, keepdims=True),
        ),
        close(NAME, "uniform over completions", np.concatenate(uniform), np.concatenate(limit)),
    ]


def hard_shares(tree: TokenTree, r: np.ndarray, level: int) -> Float[np.ndarray, "P S V"]:
    """best completions(s.a) / best completions(s); 0 for a token that is not hard-optimal."""
    here, after = hard_values(tree, r, level), hard_values(tree, r, level + 1)
    shape = (tree.n_prompts, tree.vocab**level, tree.vocab)
    kept = (after.best.reshape(shape) == here.best[:, :, None]) & tree.allowed(level)
    count = np.where(kept, after.count.reshape(shape), 0.0)
    return count / np.maximum(here.count, 1.0)[:, :, None]


# --- broken twins --------------------------------------------------------------------------------


def _by_token(replay: Replay, weight: list[np.ndarray]) -> float:
    """KL(soft optimum || each state's tokens in proportion to `weight`), nats."""
    tree = replay.tree
    log_q = np.zeros((tree.n_prompts, 1))
    for h, level in enumerate(weight):
        with np.errstate(divide="ignore"):
            step = np.log(level / np.maximum(level.sum(axis=2, keepdims=True), 1.0))
        log_q = (log_q[:, :, None] + step).reshape(-1, tree.vocab ** (h + 1))
    solution = soft_value_iteration(tree, replay.reward, beta=replay.beta)
    return kl(tree, leaf_log_probs(tree, solution.log_policy), log_q)


def _uniform_tokens(replay: Replay) -> float:
    shape = (replay.tree.n_prompts, 1, 1)
    return _by_token(
        replay, [np.tile(mask, shape).astype(float) for mask in replay.tree.allowed_levels]
    )


def _ties_by_token(replay: Replay) -> float:
    tree = replay.tree
    weight = [hard_shares(tree, replay.reward, h) > 0 for h in range(tree.horizon)]
    return _by_token(replay, [level.astype(float) for level in weight])


def _one_of_the_best(replay: Replay) -> float:
    """KL(the first of the best completions, alone || soft optimum)."""
    tree = replay.tree
    first = np.full((tree.n_prompts, tree.n_leaves), -np.inf)
    best = np.argmax(optimal(tree, replay.reward), axis=1)
    first[np.arange(tree.n_prompts), best] = 0.0
    solution = soft_value_iteration(tree, replay.reward, beta=replay.beta)
    return kl(tree, first, leaf_log_probs(tree, solution.log_policy))


def _uniform(replay: Replay) -> float:
    """KL(soft optimum, with the reference if the file has one || uniform over completions)."""
    tree = replay.tree
    flat = np.full((tree.n_prompts, tree.n_leaves), -np.log(len(tree.leaves)))
    base = flat if replay.instance.log_ref is None else replay.instance.log_ref
    return kl(tree, _solved(tree, replay.reward, replay.beta, base), flat)


BROKEN = (
    Broken(
        "uniform-tokens",
        "large beta: uniform over tokens, state by state, is taken for the limit under EOS",
        "Three completions: with two, one state has a choice, and its two tokens are the two "
        "completions.",
        _uniform_tokens,
    ),
    Broken(
        "reference-forgotten",
        "large beta with a reference: uniform is taken for the limit, not the reference",
        "Two completions: with one, both are 1.",
        _uniform,
    ),
    Broken(
        "reward-grows",
        "large beta, but the reward grows with it (r / beta stays 1)",
        "Two completions: with one, every policy is 1.",
        _uniform,
    ),
    Broken(
        "ties-by-token",
        "small beta: tied tokens share equally, not by their numbers of best completions",
        "Three completions that tie: with two, each tied token has one.",
        _ties_by_token,
    ),
    Broken(
        "one-of-the-best",
        "small beta: one of the tied completions is taken, as hard value iteration's argmax does",
        "Two completions: the least that can tie.",
        _one_of_the_best,
    ),
    Broken(
        "gap-below-beta",
        "beta is not small against the gap: the best completion is taken for the optimum",
        "Two completions: the least with a gap.",
        _one_of_the_best,
    ),
)

CLAIM = Claim(
    NAME,
    "Eq. 11 at the two ends of beta (Eqs. 2, 10)",
    STATEMENT,
    LEFT_OUT,
    trial,
    BROKEN,
    trials=16,
)
