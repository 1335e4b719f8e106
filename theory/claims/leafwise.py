"""Oracles of the identities: completions one by one, on no common path with the backups."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory.certificate import SLACK, Certificate
from theory.soft import Policy
from theory.tree import TokenTree


def below(tree: TokenTree, score: np.ndarray, level: int) -> Float[np.ndarray, "P S"]:
    """log sum of exp(score) over the completions below each state of a level; -inf if none.

    score: (P, L), read at completions only.
    """
    masked = np.where(tree.leaf_mask, score, -np.inf)
    return np.asarray(logsumexp(masked.reshape(tree.n_prompts, tree.vocab**level, -1), axis=2))


def leaves_below(tree: TokenTree, level: int) -> Float[np.ndarray, " S"]:
    """How many completions lie below each state of a level (of any prompt)."""
    return tree.leaf_mask.reshape(tree.vocab**level, -1).sum(axis=1).astype(float)


def path_sums(tree: TokenTree, levels: list[np.ndarray]) -> Float[np.ndarray, "P L"]:
    """The sum along each completion of one (P, V**h) number a state, h = 0..H-1."""
    total = np.zeros((tree.n_prompts, tree.n_leaves))
    for h, level in enumerate(levels):
        total += np.repeat(level, tree.vocab ** (tree.horizon - h), axis=1)
    return total


def cumulative(log_policy: Policy) -> list[np.ndarray]:
    """log-probability of reaching each state, (P, V**h) for h = 0..H, nats."""
    reached = [np.zeros((log_policy[0].shape[0], 1))]
    for level in log_policy:
        step = np.asarray(level)
        reached.append((reached[-1][:, :, None] + step).reshape(step.shape[0], -1))
    return reached


def conditionals(tree: TokenTree, log_mass: list[np.ndarray]) -> list[np.ndarray]:
    """log pi(a|s) = log mass(s.a) - log mass(s), (P, V**h, V) a level; -inf where no mass is."""
    levels = []
    for h in range(tree.horizon):
        parent, child = log_mass[h], log_mass[h + 1]
        held = np.where(np.isneginf(parent), 0.0, parent)
        levels.append(child.reshape(*parent.shape, tree.vocab) - held[:, :, None])
    return levels


def close(claim: str, part: str, left: np.ndarray, right: np.ndarray) -> Certificate:
    """Certificate that two arrays of one size agree; places where both are -inf are left out.

    Its two sides are the numbers that differ most.
    """
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (left, right))
    held = ~(np.isneginf(a) & np.isneginf(b))
    if not held.any():
        return Certificate(claim, math.nan, math.nan, SLACK, part)
    a, b = a[held], b[held]
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    place = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    return Certificate(claim, float(a[place]), float(b[place]), SLACK, part)


def at_most(claim: str, part: str, value: np.ndarray, bound: np.ndarray) -> Certificate:
    """Certificate that value <= bound everywhere: the largest excess, or 0, against 0.

    NaN never holds. The two are broadcast against each other.
    """
    excess = np.max(np.asarray(value) - np.asarray(bound))
    return Certificate(claim, 0.0 if excess <= 0 else float(excess), 0.0, SLACK, part)
