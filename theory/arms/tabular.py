"""Offline arms: maximum likelihood of a policy's own log-probabilities (Eq. 1), no reward model.

The objective is that of `theory.arms.linear` with score = beta log P_pi; pi is a softmax of logits
of every (prompt, state, token), and theta is

- offline_all: every policy. The logits of a level divided by the root of their number, so that
  theta has the length of the coefficients of the level's logits in an orthonormal basis: the ridge
  of R_sim's features. (Walsh polynomials of full degree are such a basis, and L-BFGS from 0 does
  not see which one is used.)
- offline_all_one_hot: every policy, theta = the logits.
- offline_matched: a class with about the Jacobian rank of R_sim. Bits, where R_sim has a degree:
  each level's logits are Walsh polynomials of that degree in the bits of prefix and token. Else one
  theta for all levels: logits = theta . (mean features of the completions below s.a).

Not convex; the fit starts at the uniform policy, theta = 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory.arms.base import Outcome
from theory.arms.lbfgs import lbfgs
from theory.arms.linear import TOLERANCE as TIGHT
from theory.arms.linear import fit_by_ridge, pair_loss
from theory.arms.policies import (
    chained,
    live_entries,
    masks,
    normalised,
    tabular_rank,
)
from theory.arms.replicates import program
from theory.batch import Batch
from theory.tree import TokenTree
from theory.walsh import all_bits, features, subsets

TOLERANCE = 1e-4  # nats a unit of theta, on the largest entry of the summed gradient
MAX_STEPS = 3000  # evaluations


def offline_all(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """Every policy, in coordinates scaled by level."""
    entries = live_entries(batch.tree)
    units = np.sqrt(np.maximum(np.asarray(entries, dtype=np.float64), 1.0))
    return _tabular(batch, weights, units, sum(max(n - 1, 0) for n in entries))


def offline_all_one_hot(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """Every policy, theta = its logits."""
    return _tabular(batch, weights, np.ones(batch.tree.horizon), sum(live_entries(batch.tree)))


def _tabular(batch: Batch, weights: np.ndarray, units: np.ndarray, n_parameters: int) -> Outcome:
    tree = batch.tree
    extra = (masks(tree), units)
    rank = tabular_rank(tree)
    return fit_by_ridge(
        _offline, batch, weights, n_parameters, rank, featured=False, extra=extra, static="units"
    )


def offline_matched(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """A policy class with about the Jacobian rank of R_sim."""
    tree = batch.tree
    if is_bits(tree) and batch.degree is not None:
        tables = walsh_tables(tree, batch.degree)
        count = sum(table.shape[1] for table in tables)
        rank = log_linear_rank(tree, [_by_level(t, h, tree) for h, t in enumerate(tables)], False)
        return fit_by_ridge(
            _offline,
            *(batch, weights, count, rank),
            featured=False,
            extra=(masks(tree), tables),
            static="tables",
        )
    rank = max(log_linear_rank(tree, mean_features(tree, phi), True) for phi in batch.features)
    return fit_by_ridge(
        _offline,
        *(batch, weights, batch.features.shape[3], rank),
        extra=(masks(tree), tree.leaf_mask.astype(np.float64)),
        static="means",
    )


def is_bits(tree: TokenTree) -> bool:
    """Whether completions are bits under one prompt: nothing masked, 2**w tokens."""
    power = tree.vocab & (tree.vocab - 1) == 0 and tree.vocab > 1
    return power and tree.n_prompts == 1 and tree.eos is None and not tree.forbidden


def walsh_tables(tree: TokenTree, degree: int) -> list[Float[np.ndarray, "S d"]]:
    """For each level, the Walsh polynomials of at most this degree in bits of prefix and token."""
    width = tree.vocab.bit_length() - 1
    seen = [width * (h + 1) for h in range(tree.horizon)]
    return [features(all_bits(n), subsets(n, min(degree, n))) for n in seen]


def _by_level(table: np.ndarray, h: int, tree: TokenTree) -> np.ndarray:
    return table.reshape(1, tree.vocab**h, tree.vocab, -1)


def mean_features(
    tree: TokenTree, phi: Float[np.ndarray, "P L D"]
) -> list[Float[np.ndarray, "P S V D"]]:
    """The mean features of the completions below each (prompt, state, token); 0 where none is."""
    live = jnp.asarray(tree.leaf_mask.astype(np.float64))
    return [np.asarray(level) for level in _means(jnp.asarray(phi), live, tree.vocab)]


def _means(phi: jax.Array, live: jax.Array, vocab: int) -> list[jax.Array]:
    """Root first, (P, S, V, D); phi is 0 where `live` (L,) is."""
    total, count, levels = phi, live, []
    prompts, _, d = phi.shape
    while total.shape[1] > 1:
        mean = total / jnp.maximum(count, 1.0)[None, :, None]
        levels.insert(0, mean.reshape(prompts, -1, vocab, d))
        total, count = levels_sum(total, vocab), count.reshape(-1, vocab).sum(axis=1)
    return levels


def levels_sum(total: jax.Array, vocab: int) -> jax.Array:
    """(P, S V, D) summed over tokens: (P, S, D)."""
    return total.reshape(total.shape[0], -1, vocab, total.shape[2]).sum(axis=2)


def log_linear_rank(
    tree: TokenTree, basis: list[Float[np.ndarray, "P S V d"]], shared: bool
) -> int:
    """Rank of d log P / d theta at a random theta, logits of level h = basis[h] @ theta.

    shared: one theta for all levels; else each has its own.
    """
    generator = np.random.default_rng(0)
    theta = generator.standard_normal(basis[0].shape[3]) if shared else None
    total = np.zeros((tree.n_prompts, 1, 0 if theta is None else len(theta)))
    for table, allowed in zip(basis, masks(tree) or [None] * tree.horizon, strict=True):
        own = generator.standard_normal(table.shape[3]) if theta is None else theta
        logits = table @ own
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        p = np.exp(logits - logits.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        slope = table - (p[..., None] * table).sum(axis=2, keepdims=True)
        slope = slope.reshape(tree.n_prompts, -1, table.shape[3])
        total = np.repeat(total, tree.vocab, axis=1)
        total = total + slope if shared else np.concatenate([total, slope], axis=2)
    live = total[:, tree.leaf_mask].reshape(-1, total.shape[2])
    return int(np.linalg.matrix_rank(live))


# --- the program ----------------------------------------------------------------------------------


@program
def _offline(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, ...]:
    ridges, beta, common, leaf_mask, (allowed, coordinates) = shared
    pairs, wins, own = mapped
    (prompts, vocab, horizon), kind = static
    sizes = [prompts * vocab ** (h + 1) for h in range(horizon)]
    shapes = [(prompts, vocab**h, vocab, len(ridges)) for h in range(horizon)]
    if kind == "means":
        phi = (common if own is None else own).reshape(prompts, vocab**horizon, -1)
        coordinates = _means(phi, coordinates, vocab)
        size = phi.shape[2]
    else:
        parts = sizes if kind == "units" else [table.shape[1] for table in coordinates]
        size = sum(parts)
        cuts = np.cumsum(parts)[:-1]

    def log_p(theta: jax.Array) -> jax.Array:
        if kind == "means":
            flat = [c.reshape(-1, size) @ theta for c in coordinates]
        elif kind == "tables":
            flat = [t @ p for t, p in zip(coordinates, jnp.split(theta, cuts), strict=True)]
        else:
            flat = [coordinates[h] * p for h, p in enumerate(jnp.split(theta, cuts))]
        levels = [z.reshape(shape) for z, shape in zip(flat, shapes, strict=True)]
        total = chained(normalised(levels, allowed)).reshape(-1, len(ridges))
        return total if leaf_mask is None else jnp.where(total > -jnp.inf, total, 0.0)

    def objective(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        score, pull = jax.vjp(log_p, theta)
        value, slope = pair_loss(beta * score, pairs, wins)
        penalty = 0.5 * ridges * jnp.sum(theta * theta, axis=0)
        return value + penalty, pull(beta * slope)[0] + ridges[None, :] * theta

    start = jnp.zeros((size, len(ridges)))
    tolerance = TIGHT if horizon == 1 else TOLERANCE  # score differences are linear: convex, cheap
    theta, gradient, steps = lbfgs(objective, start, tolerance, MAX_STEPS)
    found = log_p(theta).reshape(prompts, -1, len(ridges))
    return found, beta * found, jnp.max(jnp.abs(gradient), axis=0), steps
