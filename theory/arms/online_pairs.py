"""Best and worst of K completions of many generators at once: drawn, or their exact distribution.

Rows are independent problems (a candidate of a replicate), each with prompts P and leaf slots L.
Scores rank completions; scores within TIE are a tie. Draws that all tie make no pair: the fitted
reward does not say which of them is better, and it is counted how often that happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from theory.arms.policies import soft_policies
from theory.arms.replicates import on_all_cores, program
from theory.classes import chain
from theory.errors import InputError
from theory.operators import TIE, temper_level
from theory.tree import TokenTree


@dataclass(frozen=True, eq=False)
class Drawn:
    """One pair for each row of data, where the draws do not all tie."""

    pairs: Int[np.ndarray, "B N 2"]  # best and worst as leaf numbers x L + leaf
    kept: Bool[np.ndarray, "B N"]  # False: all K draws tied, there is no pair

    @property
    def dropped(self) -> Int[np.ndarray, " B"]:
        """How many rows of data have no pair."""
        return np.sum(~self.kept, axis=1)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Completions in tie groups, and the mass on either side of each: all that pairs depend on."""

    group: Int[np.ndarray, "B P L"]  # ascending in the score
    share: Float[np.ndarray, "B P L"]  # P(xi) within its group
    before: Float[np.ndarray, "B P L"]  # mass of the groups below
    through: Float[np.ndarray, "B P L"]  # mass of these and its own group


# --- the generator at a temperature ---------------------------------------------------------------


def tempered_leaves(
    tree: TokenTree, log_p: Float[np.ndarray, "B P L"], tau: float
) -> Float[np.ndarray, "B P L"]:
    """log-probabilities of completions drawn token by token at temperature tau, nats.

    log_p: of the generator, > -inf on every completion. Raises InputError for a bad tau.
    """
    if not (np.isfinite(tau) and tau > 0):
        raise InputError(f"temperature must be > 0, got {tau!r}")
    shared = (np.float64(tau), tree.leaf_mask)
    return on_all_cores(_tempered_leaves, shared, log_p, tree.vocab)[0]


@program
def _tempered_leaves(shared: Any, mapped: Any, static: Any) -> jax.Array:
    tau, leaf_mask = shared
    return tempered_chain(conditionals(mapped, leaf_mask, static), tau)


def conditionals(
    log_p: Float[jax.Array, "P L"], leaf_mask: Bool[jax.Array, " L"], vocab: int
) -> tuple[Float[jax.Array, "P S V"], ...]:
    """log pi(a | s) of a distribution over completions, root first; -inf where none is below."""
    levels = soft_policies(log_p[:, :, None], vocab, leaf_mask)
    return tuple(level[:, :, :, 0] for level in levels)


def tempered_chain(
    log_policy: tuple[Float[jax.Array, "P S V"], ...], tau: jax.Array
) -> Float[jax.Array, "P L"]:
    """log P_tau(xi | x) = sum_h log pi_tau(a_h | s_h), pi_tau ~ pi^(1 / tau) at each state."""
    return chain(tuple(temper_level(level, tau) for level in log_policy))


# --- ranks ----------------------------------------------------------------------------------------


def tie_groups(tree: TokenTree, score: Float[np.ndarray, "B P L"]) -> Int[np.ndarray, "B P L"]:
    """Groups of completions of one score, numbered upwards; slots that are none come last."""
    top = score.max(axis=2, keepdims=True) + 1.0
    values = np.where(tree.leaf_mask, score, top)
    order = np.argsort(values, axis=2, kind="stable")
    gaps = np.diff(np.take_along_axis(values, order, axis=2), axis=2) > TIE
    ranks = np.concatenate([np.zeros_like(order[:, :, :1]), np.cumsum(gaps, axis=2)], axis=2)
    group = np.empty_like(order)
    np.put_along_axis(group, order, ranks, axis=2)
    return group


def ranked(
    tree: TokenTree, log_p: Float[np.ndarray, "B P L"], score: Float[np.ndarray, "B P L"]
) -> Ranked:
    """Tie groups of the score under P, with their masses."""
    group = tie_groups(tree, score)
    p = np.where(tree.leaf_mask, np.exp(log_p), 0.0)
    p = p / p.sum(axis=2, keepdims=True)
    cells = group.shape[0] * group.shape[1]
    keys = np.arange(cells)[:, None] * tree.n_leaves + group.reshape(cells, -1)
    mass = np.bincount(keys.reshape(-1), p.reshape(-1), cells * tree.n_leaves).reshape(group.shape)
    through = np.cumsum(mass, axis=2)
    before = np.concatenate([np.zeros_like(through[:, :, :1]), through[:, :, :-1]], axis=2)
    own = np.take_along_axis(mass, group, axis=2)
    return Ranked(
        group=group,
        share=np.divide(p, own, out=np.zeros_like(p), where=own > 0.0),
        before=np.take_along_axis(before, group, axis=2),
        through=np.take_along_axis(through, group, axis=2),
    )


# --- pairs ----------------------------------------------------------------------------------------


def draw_best_worst(
    tree: TokenTree,
    log_p: Float[np.ndarray, "B P L"],
    score: Float[np.ndarray, "B P L"],
    prompts: Int[np.ndarray, "B N"],
    uniforms: Float[np.ndarray, "B N K"],
) -> Drawn:
    """Best and worst of K completions drawn from P for each row of data.

    prompts: of each row; uniforms in [0, 1): one a draw. Ties are broken by the order of the draws,
    so in proportion to P.
    """
    group, (rows, n, k) = tie_groups(tree, score), uniforms.shape
    p = np.where(tree.leaf_mask, np.exp(log_p), 0.0)
    cdf = np.cumsum(p, axis=2)
    cdf = cdf / cdf[:, :, -1:]
    drawn = np.empty((rows, n, k), dtype=np.int64)
    for row in range(rows):
        for x in range(tree.n_prompts):
            here = prompts[row] == x
            drawn[row, here] = np.searchsorted(cdf[row, x], uniforms[row, here], side="right")
    cells = np.arange(rows)[:, None, None]
    ranks = group[cells, prompts[:, :, None], drawn]
    best, worst = ranks.argmax(axis=2), ranks.argmin(axis=2)
    ends = np.take_along_axis(drawn, np.stack([best, worst], axis=2), axis=2)
    return Drawn(
        pairs=prompts[:, :, None] * tree.n_leaves + ends,
        kept=ranks.max(axis=2) > ranks.min(axis=2),
    )


def pair_chances(
    group: Int[jax.Array, "P L"],
    share: Float[jax.Array, "P L"],
    before: Float[jax.Array, "P L"],
    through: Float[jax.Array, "P L"],
    k: int,
) -> Float[jax.Array, "P L L"]:
    """Chance that (best, worst) of k draws is (i, j), score_i > score_j; the rest has no pair.

    M[j,i]^k - M(j,i]^k - M[j,i)^k + M(j,i)^k with M the mass between the two groups, ends included
    or not; a group's chance is split in proportion to P. Traceable. Rounding errs by some 1e-16, so
    chances below that are noise (`theory.operators.best_worst_of_k` has each to its own accuracy).
    """

    def mass(upper: jax.Array, lower: jax.Array) -> jax.Array:
        return jnp.maximum(upper[:, :, None] - lower[:, None, :], 0.0) ** k

    both = mass(through, before) - mass(through, through) - mass(before, before)
    both = jnp.maximum(both + mass(before, through), 0.0)
    above = group[:, :, None] > group[:, None, :]
    return jnp.where(above, both * share[:, :, None] * share[:, None, :], 0.0)
