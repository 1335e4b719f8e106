"""Preference pairs: which two completions are shown, and how they are labelled.

Coverage of a prompt's pairs (the prompt itself is drawn by rho0):

- uniform: different completions, every pair equally likely.
- on_policy: two draws from the reference, P_ref proportional to exp(share r* / beta).
- narrow: two draws from the reference at temperature 0.3, token by token.

Pairs of equal draws are drawn again. Labels are Bradley-Terry draws by the true reward (Eq. 4),
then a share `noise` of them is flipped, each by its own coin. Everything is numpy.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from theory.errors import InputError
from theory.tree import TokenTree

COVERAGES = ("uniform", "on_policy", "narrow")
NARROW_TEMPERATURE = 0.3
PAIR_STREAM = 1  # last word of the seed of every generator of pairs


def draw_pairs(reward: Float[np.ndarray, " L"], n_pairs: int, seed: int) -> Int[np.ndarray, "N 2"]:
    """(N, 2) winner and loser: pairs of different completions of one prompt, uniform.

    Labels are Bradley-Terry draws by `reward`; without noise. The same bytes as `pairs_of` gives.
    """
    generator = np.random.default_rng([seed, len(reward), n_pairs, PAIR_STREAM])
    first, second = _different(generator, len(reward), n_pairs)
    return _labelled(generator, reward, first, second, 0.0)


def pairs_of(
    tree: TokenTree,
    reward: Float[np.ndarray, "P L"],
    n_pairs: int,
    seed: int,
    *,
    draws: Float[np.ndarray, "P L"] | None = None,
    noise: float = 0.0,
) -> Int[np.ndarray, "N 2"]:
    """(N, 2) winner and loser as leaf numbers x * L + leaf.

    draws: the distribution of each of the two completions of a prompt, rows that sum to 1; None for
    different completions, uniform. noise: the chance that a label is turned round, 0..1.
    Raises InputError for a prompt of which no two different completions can be drawn.
    """
    generator = np.random.default_rng([seed, reward.size, n_pairs, PAIR_STREAM])
    prompts = np.zeros(n_pairs, dtype=np.int64)
    if tree.n_prompts > 1:
        prompts = generator.choice(tree.n_prompts, size=n_pairs, p=tree.rho0 / tree.rho0.sum())
    if draws is None:
        if len(tree.leaves) < 2:
            raise InputError("a tree of one completion has no pairs")
        first, second = _different(generator, len(tree.leaves), n_pairs)
        first, second = tree.leaves[first], tree.leaves[second]
    else:
        first, second = _independent(generator, draws, prompts, tree)
    start = prompts * tree.n_leaves
    return _labelled(generator, reward.reshape(-1), start + first, start + second, noise)


def reference_of(
    tree: TokenTree, reward: Float[np.ndarray, "R P L"], share: float, beta: float
) -> Float[np.ndarray, "R P L"]:
    """log P_ref, P_ref proportional to exp(share r / beta); -inf where no completion is."""
    logits = np.where(tree.leaf_mask, reward * (share / beta), -np.inf)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def tempered(
    tree: TokenTree, log_p: Float[np.ndarray, "... L"], temperature: float
) -> Float[np.ndarray, "... L"]:
    """log-probabilities of completions sampled at this temperature, token by token.

    pi(a|s)^(1/temperature), normalised at each state; not P^(1/temperature) over completions.
    """
    masses, policy = log_p, []
    for _ in range(tree.horizon):
        table = masses.reshape(*masses.shape[:-1], -1, tree.vocab)
        masses = _log_sum(table)
        policy.append(table - _floored(masses)[..., None])
    total = np.zeros((*log_p.shape[:-1], 1))
    for level in reversed(policy):
        scaled = level / temperature
        scaled = scaled - _floored(_log_sum(scaled))[..., None]
        total = (total[..., None] + scaled).reshape(*log_p.shape[:-1], -1)
    return total


# --- helpers --------------------------------------------------------------------------------------


def _log_sum(table: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis; -inf where all are."""
    top = _floored(table.max(axis=-1))
    with np.errstate(divide="ignore"):
        return top + np.log(np.exp(table - top[..., None]).sum(axis=-1))


def _floored(values: np.ndarray) -> np.ndarray:
    """-inf replaced by 0, so that it can be taken away from -inf."""
    return np.where(np.isneginf(values), 0.0, values)


def _different(generator: np.random.Generator, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    first = generator.integers(n, size=size)
    return first, (first + 1 + generator.integers(n - 1, size=size)) % n


def _independent(
    generator: np.random.Generator,
    draws: Float[np.ndarray, "P L"],
    prompts: np.ndarray,
    tree: TokenTree,
) -> tuple[np.ndarray, np.ndarray]:
    """Two iid draws of each row's prompt, given that they differ, without rejection.

    The first has chance q (1 - q) up to a factor, the second q over what is not the first.
    """
    live = draws[:, tree.leaves]
    first, second = np.empty_like(prompts), np.empty_like(prompts)
    for x in range(tree.n_prompts):
        rows = np.flatnonzero(prompts == x)
        q = live[x] / live[x].sum()
        others = np.array([q[:i].sum() + q[i + 1 :].sum() for i in range(len(q))])
        either = q * others
        if not either.sum() > 0.0:
            raise InputError(f"prompt {tree.prompts[x]!r}: both completions of a pair are the same")
        one = _inverse(np.cumsum(either / either.sum()), generator.random(len(rows)))
        start = np.concatenate([[0.0], np.cumsum(q)])[one]
        point = generator.random(len(rows)) * others[one]
        two = _inverse(np.cumsum(q), np.where(point < start, point, point + q[one]))
        ranked = np.argsort(-q, kind="stable")[:2]
        likeliest = np.where(one == ranked[0], ranked[1], ranked[0])
        two = np.where(two == one, likeliest, two)  # rounding at a border of the cdf
        first[rows], second[rows] = tree.leaves[one], tree.leaves[two]
    return first, second


def _inverse(cdf: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The first place whose cdf passes each point."""
    last = np.searchsorted(cdf, cdf[-1])
    return np.minimum(np.searchsorted(cdf, points, side="right"), last)


def _labelled(
    generator: np.random.Generator,
    reward: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    noise: float,
) -> Int[np.ndarray, "N 2"]:
    margin = reward[first] - reward[second]
    with np.errstate(over="ignore"):
        wins = generator.random(len(first)) < 1.0 / (1.0 + np.exp(-margin))
    if noise:
        wins ^= generator.random(len(first)) < noise
    return np.stack([np.where(wins, first, second), np.where(wins, second, first)], axis=1)
