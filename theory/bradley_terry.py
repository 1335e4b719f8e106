"""Many small Bradley-Terry maximum-likelihood fits at once, by damped Newton steps in JAX.

Whether a maximiser exists is not decided here: on separable data and without a ridge there is none,
and a small gradient does not say so. Decide it first, from the comparison graph or by a linear
program (`theory.preferences.comparison_graph`, `theory.fit.separating_direction`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.errors import InputError

ITERATIONS = 50
PART = 16  # replicates below which another core is not worth its start
STOP = 1e-11  # converged: the gradient's norm, relative to that at theta = 0
HALVINGS = 10  # the shortest step tried is 2**-10 of Newton's


def fit_many(
    d: Float[AnyArray, "R N D"], w: Float[AnyArray, "R N"], ridge: float = 0.0
) -> tuple[Float[jax.Array, "R D"], Float[jax.Array, " R"]]:
    """argmin over theta of sum_i w_i softplus(-d_i . theta) + 0.5 ridge |theta|^2 (Eq. 6).

    d: features of the winner less the loser's; w >= 0: how often the pair was seen (0 pads, and
    fractions give the population limit); every replicate on its own. Returns theta and the norm of
    the gradient there. With ridge 0 a maximiser must exist and be unique (d of full column rank).
    Raises InputError for shapes that do not match, a negative or non-finite weight, a non-finite
    difference or a negative ridge.
    """
    differences, weights = np.asarray(d, dtype=np.float64), np.asarray(w, dtype=np.float64)
    if differences.ndim != 3 or weights.shape != differences.shape[:2]:
        raise InputError(f"differences {differences.shape} with weights {weights.shape}")
    if not np.isfinite(differences).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(differences))[0])
        raise InputError(f"the difference at {place} is not finite")
    _check_counts("weight", weights)
    if not (math.isfinite(ridge) and ridge >= 0.0):
        raise InputError(f"ridge must be >= 0, got {ridge!r}")
    solve = partial(_fit_many, ridge=jnp.float64(ridge))
    theta, norm = _on_all_cores(solve, differences, weights)
    return theta, norm


def fit_counts(wins: Float[AnyArray, "R K K"]) -> Float[jax.Array, "R K"]:
    """Strengths with the greatest Bradley-Terry likelihood, of mean 0 (one shift is free), (R, K).

    wins[r, i, j]: how often i beat j; fractions are allowed, the diagonal must be 0. The cost
    depends on the number of items alone. A maximiser exists and is unique up to the shift if and
    only if the graph of wins is strongly connected (Ford 1957): decide that first.
    Raises InputError for a wrong shape, or a negative, non-finite or diagonal count (placed).
    """
    counts = np.asarray(wins, dtype=np.float64)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2]:
        raise InputError(f"wins must be (replicates, items, items), got {counts.shape}")
    _check_counts("count", counts)
    diagonal = np.einsum("rkk->rk", counts)
    if diagonal.any():
        replicate, item = (int(i) for i in np.argwhere(diagonal)[0])
        raise InputError(f"item {item} of replicate {replicate} is compared with itself")
    return _on_all_cores(_fit_counts, counts)[0]


def _on_all_cores(
    solve: Callable[..., tuple[jax.Array, ...]], *arrays: np.ndarray
) -> list[jax.Array]:
    """solve(*arrays) with the replicates cut into one part a core, each in a thread of its own."""
    parts = max(1, min(os.cpu_count() or 1, len(arrays[0]) // PART))
    size = -(-len(arrays[0]) // parts) if len(arrays[0]) else 1
    starts = range(0, max(len(arrays[0]), 1), size)

    def run(start: int) -> tuple[jax.Array, ...]:
        return solve(*(jnp.asarray(array[start : start + size]) for array in arrays))

    with ThreadPoolExecutor(parts) as pool:
        solved = list(pool.map(run, starts))
    return [jnp.concatenate(column) for column in zip(*solved, strict=True)]


def _check_counts(name: str, counts: np.ndarray) -> None:
    bad = ~(np.isfinite(counts) & (counts >= 0.0))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"the {name} at {place} must be finite and >= 0, got {counts[place]!r}")


@jax.jit
def _fit_many(d: jax.Array, w: jax.Array, ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one(problem: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        features, weight = problem

        def slope_at(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
            lost = jax.nn.sigmoid(-(theta @ features))
            return ridge * theta - features @ (weight * lost), lost

        def curvature(lost: jax.Array) -> jax.Array:
            scaled = features * (weight * lost * (1.0 - lost))[None, :]
            return scaled @ features.T + ridge * jnp.eye(features.shape[0])

        return _newton(slope_at, curvature, features.shape[0])

    return jax.lax.map(one, (jnp.swapaxes(d, 1, 2), w))


@jax.jit
def _fit_counts(wins: jax.Array) -> tuple[jax.Array]:
    items = wins.shape[1]

    def one(count: jax.Array) -> jax.Array:
        pairs = count + count.T

        def slope_at(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
            chance = jax.nn.sigmoid(theta[:, None] - theta[None, :])
            return jnp.sum(pairs * chance - count, axis=1), chance

        def curvature(chance: jax.Array) -> jax.Array:
            off = pairs * chance * (1.0 - chance)
            # the term in 1 1^T fills the kernel (the shift), which the slope never meets
            return jnp.diag(jnp.sum(off, axis=1)) - off + jnp.sum(off) / items**2

        theta, _ = _newton(slope_at, curvature, items)
        return theta - jnp.mean(theta)

    return (jax.lax.map(one, wins),)


def _newton(slope_at, curvature, size: int) -> tuple[jax.Array, jax.Array]:
    """Newton's method from 0; a step is halved until the gradient's norm falls.

    slope_at(theta) -> (gradient, what `curvature` needs). Stops when no length makes the gradient
    smaller (rounding is reached) or it is STOP of what it was at 0. Returns theta and the
    gradient's norm.
    """

    def try_step(length: jax.Array, theta: jax.Array, move: jax.Array) -> tuple:
        trial = theta + length * move
        slope, aux = slope_at(trial)
        return trial, slope, aux, jnp.sqrt(jnp.sum(slope * slope))

    def step(state: tuple) -> tuple:
        theta, slope, aux, norm, i, _ = state
        move = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(curvature(aux)), True), slope)

        def shorter(search: tuple) -> tuple:
            k = search[0] + 1
            return k, try_step(0.5 ** k.astype(jnp.float64), theta, move)

        def too_long(search: tuple) -> jax.Array:
            return ~(search[1][3] < norm) & (search[0] < HALVINGS)

        first = (jnp.int32(0), try_step(jnp.float64(1.0), theta, move))
        _, trial = jax.lax.while_loop(too_long, shorter, first)
        better = trial[3] < norm
        old = (theta, slope, aux, norm)
        kept = jax.tree.map(partial(jnp.where, better), trial, old)
        return (*kept, i + 1, better & (kept[3] > stop))

    theta = jnp.zeros(size)
    slope, aux = slope_at(theta)
    norm = jnp.sqrt(jnp.sum(slope * slope))
    stop = STOP * norm
    start = (theta, slope, aux, norm, jnp.int32(0), norm > 0.0)
    state = jax.lax.while_loop(lambda s: s[5] & (s[4] < ITERATIONS), step, start)
    return state[0], state[3]
