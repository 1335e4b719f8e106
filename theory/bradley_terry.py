"""Many small Bradley-Terry maximum-likelihood fits at once, by damped Newton steps in JAX.

Whether a maximiser exists is decided by the graph of wins in `fit_counts`. It is not decided in
`fit_many`: on separable features and without a ridge there is none, and a small gradient does not
say so. Decide it first by a linear program (`theory.fit.separating_direction`).
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

ITERATIONS = 200  # far from the maximiser a margin moves by about 1 a step
PART = 16  # replicates below which another core is not worth its start
SETTLED = 1e-8  # relative: Newton's last step moves no margin by more
SPAN = 1e10  # counts of one problem may differ by this factor: float64 resolves no more


def fit_many(
    d: Float[AnyArray, "R N D"], w: Float[AnyArray, "R N"], ridge: float = 0.0
) -> tuple[Float[jax.Array, "R D"], Float[jax.Array, " R"]]:
    """argmin over theta of sum_i w_i softplus(-d_i . theta) + 0.5 ridge |theta|^2 (Eq. 6).

    d: features of the winner less the loser's; w >= 0: how often the pair was seen (0 pads, and
    fractions give the population limit); every replicate on its own. Returns theta and the norm of
    the gradient there, in counts times features. With ridge 0 that a minimiser exists and is unique
    (no separating direction, d of full column rank) is the caller's business; where it is, a norm
    far above rounding, 1e-16 of sum_i w_i |d_i|, tells that it was not reached. On separable data
    theta is the end of a path to infinity, whatever the norm.
    Raises InputError for shapes that do not match, a negative or non-finite weight, a non-finite
    difference, a negative ridge, or with ridge 0 weights of one replicate more than SPAN apart.
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
    if ridge == 0.0:
        _check_span("weights", weights)
    solve = partial(_fit_many, ridge=jnp.float64(ridge))
    theta, norm = _on_all_cores(solve, differences, weights)
    return theta, norm


def fit_counts(
    wins: Float[AnyArray, "R K K"],
) -> tuple[Float[jax.Array, "R K"], Float[jax.Array, " R"]]:
    """Strengths with the greatest Bradley-Terry likelihood, of mean 0 (one shift is free), (R, K).

    wins[r, i, j]: how often i beat j; fractions are allowed, the diagonal must be 0. The cost
    depends on the number of items alone. Also returns the norm of the gradient there, in counts.
    A maximiser exists and is unique up to the shift if and only if the graph of wins is strongly
    connected (Ford 1957).
    Raises InputError for a wrong shape, a negative, non-finite or diagonal count (placed), counts
    of one replicate more than SPAN apart, or a graph that is not strongly connected.
    """
    counts = np.asarray(wins, dtype=np.float64)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2]:
        raise InputError(f"wins must be (replicates, items, items), got {counts.shape}")
    _check_counts("count", counts)
    diagonal = np.einsum("rkk->rk", counts)
    if diagonal.any():
        replicate, item = (int(i) for i in np.argwhere(diagonal)[0])
        raise InputError(f"item {item} of replicate {replicate} is compared with itself")
    _check_span("counts", counts.reshape(len(counts), -1))
    _check_connected(counts)
    theta, norm = _on_all_cores(_fit_counts, counts)
    return theta, norm


def _check_connected(counts: np.ndarray) -> None:
    """Raises InputError naming the first replicate whose graph is not strongly connected.

    It is if item 0 reaches every item, and every item reaches item 0.
    """
    wins = counts > 0.0
    linked = _reached_from_0(wins) & _reached_from_0(np.swapaxes(wins, 1, 2))
    if not linked.all():
        replicate, item = (int(i) for i in np.argwhere(~linked)[0])
        raise InputError(
            f"replicate {replicate}: items 0 and {item} are not linked by chains of wins both "
            "ways, so no unique finite maximiser exists"
        )


def _reached_from_0(edges: np.ndarray) -> np.ndarray:
    """(R, K): which items a path from item 0 along edges (R, K, K) reaches."""
    reached = np.zeros(edges.shape[:2], dtype=bool)
    reached[:, :1] = True
    while True:
        more = reached | (reached[:, :, None] & edges).any(axis=1)
        if (more == reached).all():
            return reached
        reached = more


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


def _check_span(name: str, counts: np.ndarray) -> None:
    """Raises InputError if the positive counts of one row (R, N) are more than SPAN apart."""
    least = counts.min(axis=1, where=counts > 0.0, initial=np.inf)
    most = counts.max(axis=1, initial=0.0)
    bad = most > SPAN * least
    if bad.any():
        r = int(np.argmax(bad))
        raise InputError(
            f"the {name} of replicate {r} span {float(least[r])!r} to {float(most[r])!r}; float64 "
            f"resolves a factor of {SPAN:g}"
        )


@jax.jit
def _fit_many(d: jax.Array, w: jax.Array, ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one(problem: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        features, weight = problem

        def slope_at(theta: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
            lost = jax.nn.sigmoid(-margin)
            return ridge * theta - features @ (weight * lost), lost

        def curvature(lost: jax.Array) -> jax.Array:
            scaled = features * (weight * lost * (1.0 - lost))[None, :]
            return scaled @ features.T + ridge * jnp.eye(features.shape[0])

        return _newton(lambda theta: theta @ features, slope_at, curvature, features.shape[0])

    return jax.lax.map(one, (jnp.swapaxes(d, 1, 2), w))


@jax.jit
def _fit_counts(wins: jax.Array) -> tuple[jax.Array, jax.Array]:
    items = wins.shape[1]

    def one(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        def margins(theta: jax.Array) -> jax.Array:
            return theta[:, None] - theta[None, :]

        def slope_at(theta: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
            chance = jax.nn.sigmoid(margin)
            flow = count * chance.T  # small where i wins often: nothing cancels
            return jnp.sum(flow, axis=0) - jnp.sum(flow, axis=1), flow * chance

        def curvature(bend: jax.Array) -> jax.Array:
            off = bend + bend.T
            # the term in 1 1^T fills the kernel (the shift), which the slope never meets
            return jnp.diag(jnp.sum(off, axis=1)) - off + jnp.sum(off) / items**2

        theta, norm = _newton(margins, slope_at, curvature, items)
        return theta - jnp.mean(theta), norm

    return jax.lax.map(one, wins)


def _newton(margins, slope_at, curvature, size: int) -> tuple[jax.Array, jax.Array]:
    """Newton's method from 0; a step is halved until the gradient's norm falls.

    margins(theta): linear in theta; slope_at(theta, margins) -> (gradient, what `curvature` needs).
    Stops when no length makes the gradient smaller (rounding is reached), or after a step that
    moved no margin by more than SETTLED of the largest: the next would move it by the square.
    Returns theta and the gradient's norm.
    """

    def at(theta: jax.Array, margin: jax.Array) -> tuple:
        slope, aux = slope_at(theta, margin)
        return theta, margin, slope, aux, jnp.sqrt(jnp.sum(slope * slope))

    def step(state: tuple) -> tuple:
        here, i, _ = state
        theta, margin, slope, aux, norm = here
        move = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(curvature(aux)), True), slope)
        turn = margins(move)
        far = jnp.max(jnp.abs(turn)) / (1.0 + jnp.max(jnp.abs(margin)))

        def shorter(search: tuple) -> tuple:
            length = 0.5 * search[0]
            return length, at(theta + length * move, margin + length * turn)

        def too_long(search: tuple) -> jax.Array:
            return ~(search[1][4] < norm) & (search[0] * far > SETTLED)

        first = (jnp.float64(1.0), at(theta + move, margin + turn))
        length, trial = jax.lax.while_loop(too_long, shorter, first)
        better = trial[4] < norm
        kept = jax.tree.map(partial(jnp.where, better), trial, here)
        return kept, i + 1, better & ((far > SETTLED) | (length < 1.0))

    start = at(jnp.zeros(size), margins(jnp.zeros(size)))
    state = (start, jnp.int32(0), start[4] > 0.0)
    here, _, _ = jax.lax.while_loop(lambda s: s[2] & (s[1] < ITERATIONS), step, state)
    return here[0], here[4]
