"""Newton's method for one convex Bradley-Terry fit, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

MAX_STEPS = 100
SETTLED = 1e-10  # relative: after a full step this short the next one is shorter by its square
SHORTEST = 1e-12  # share of a Newton step

Solved = tuple[jax.Array, jax.Array, jax.Array]  # theta, largest gradient entry, steps
At = Callable[[jax.Array], tuple[jax.Array, Any]]  # theta -> (gradient, what curvature needs)


def damped_newton(at: At, curvature: Callable[[Any], jax.Array], start: jax.Array) -> Solved:
    """(theta (D,), largest entry of the gradient there, steps) of a strictly convex function.

    curvature: the Hessian (D, D), positive definite. A step is halved until the norm of the
    gradient falls. Ends where no length makes it fall (rounding is reached) or after a full step
    that moved theta by no more than SETTLED.
    """

    def seen(theta: jax.Array) -> tuple:
        gradient, aux = at(theta)
        return theta, gradient, aux, jnp.sum(gradient * gradient)

    def step(state: tuple) -> tuple:
        here, _, count = state
        theta, gradient, aux, size = here
        factor = jnp.linalg.cholesky(curvature(aux))
        move = -jax.scipy.linalg.cho_solve((factor, True), gradient)
        far = jnp.max(jnp.abs(move)) / (1.0 + jnp.max(jnp.abs(theta)))

        def shorter(search: tuple) -> tuple:
            length = 0.5 * search[0]
            return length, seen(theta + length * move)

        def too_long(search: tuple) -> jax.Array:
            return ~(search[1][3] < size) & (search[0] * far > SHORTEST)

        length, trial = jax.lax.while_loop(
            too_long, shorter, (jnp.float64(1.0), seen(theta + move))
        )
        better = trial[3] < size
        kept = jax.tree.map(partial(jnp.where, better), trial, here)
        return kept, better & ((far > SETTLED) | (length < 1.0)), count + 1

    first = seen(start)
    state = (first, first[3] > 0.0, jnp.array(0))
    here, _, count = jax.lax.while_loop(lambda s: s[1] & (s[2] < MAX_STEPS), step, state)
    return here[0], jnp.max(jnp.abs(here[1])), count.astype(jnp.float64)


def down_the_path(
    fit: Callable[[jax.Array, jax.Array], Solved],
    start: jax.Array,
    ridges: jax.Array,
) -> Solved:
    """fit(theta, ridge) for every ridge in turn, each from where the one before ended: (K, ..)."""

    def one(theta: jax.Array, ridge: jax.Array) -> tuple[jax.Array, tuple]:
        solved = fit(theta, ridge)
        return solved[0], solved

    return jax.lax.scan(one, start, ridges)[1]


def slope_and_bend(margin: jax.Array, wins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and second derivative of -sum_w log sigmoid(+-margin) by the margin, for each pair.

    margin (M,): score of the first completion less that of the second; wins (M, 2): of either.
    """
    lost = jax.nn.sigmoid(-margin)
    won = jax.nn.sigmoid(margin)
    return wins[:, 1] * won - wins[:, 0] * lost, (wins[:, 0] + wins[:, 1]) * won * lost


def newton_linear(
    differences: jax.Array, weights: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Ridge maximum likelihood of a reward linear in features: (theta, steps), to rounding.

    differences (N, D): features of the winner less those of the loser; weights (N,); ridge > 0.
    """
    eye = jnp.eye(differences.shape[1])
    wins = jnp.stack([weights, jnp.zeros_like(weights)], axis=1)

    def at(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        slope, bend = slope_and_bend(differences @ theta, wins)
        return ridge * theta + differences.T @ slope, bend

    def curvature(bend: jax.Array) -> jax.Array:
        return (differences * bend[:, None]).T @ differences + ridge * eye

    theta, _, steps = damped_newton(at, curvature, jnp.zeros(differences.shape[1]))
    return theta, steps
