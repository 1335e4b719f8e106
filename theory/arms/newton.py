"""Newton's method for one convex Bradley-Terry fit, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

MAX_STEPS = 100
FACTORED = 64  # rows of a matrix that is factored
FORCING = 1e-4  # relative residual of a large linear system
SETTLED = 1e-8  # relative: after a full step this short the next one is shorter by its square
SHORTEST = 1e-12  # share of a Newton step
SCATTER = 400  # multiplications that cost as much as one pair added to a Laplacian

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
        move = -solve(curvature(aux), gradient)
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


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """matrix^-1 right for a positive definite matrix; to FORCING of the residual where it is large.

    Large matrices by conjugate gradients: a library's factorisation would use as many threads as
    there are cores, and its bits would tell.
    """
    if len(right) <= FACTORED:
        factor = jnp.linalg.cholesky(matrix)
        return jax.scipy.linalg.cho_solve((factor, True), right)
    enough = FORCING**2 * jnp.sum(right * right)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, left, way, size, count = state
        image = matrix @ way
        length = size / jnp.sum(way * image)
        left = left - length * image
        smaller = jnp.sum(left * left)
        return x + length * way, left, left + (smaller / size) * way, smaller, count + 1

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        return (state[3] > enough) & (state[4] < 2 * len(right))

    first = (jnp.zeros_like(right), right, right, jnp.sum(right * right), jnp.array(0))
    return jax.lax.while_loop(going, step, first)[0]


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


class Pairs(NamedTuple):
    """Pairs of rows of a table (S, D): derivatives by theta of sums over margins, (D,) and (D, D).

    x = table[first] - table[second] costs M D^2 a Hessian. With many pairs it is cheaper to sum
    them on the rows first: x^T diag(bend) x = table^T Laplacian table.
    """

    table: Float[jax.Array, "S D"]
    first: Int[jax.Array, " M"]
    second: Int[jax.Array, " M"]
    x: Float[jax.Array, "M D"] | None

    @staticmethod
    def of(table: jax.Array, pairs: jax.Array) -> Pairs:
        """The cheaper way for this shape."""
        (rows, d), m = table.shape, len(pairs)
        first, second = pairs[:, 0], pairs[:, 1]
        direct = m * d * d <= rows * d * (rows + d) + SCATTER * m
        return Pairs(table, first, second, table[first] - table[second] if direct else None)

    def margin(self, theta: jax.Array) -> jax.Array:
        if self.x is not None:
            return self.x @ theta
        score = self.table @ theta
        return score[self.first] - score[self.second]

    def gradient(self, slope: jax.Array) -> jax.Array:
        """sum over pairs of slope times the difference of rows."""
        if self.x is not None:
            return slope @ self.x
        on_rows = jnp.zeros(len(self.table)).at[self.first].add(slope).at[self.second].add(-slope)
        return on_rows @ self.table

    def hessian(self, bend: jax.Array) -> jax.Array:
        if self.x is not None:
            return (self.x * bend[:, None]).T @ self.x
        a = jnp.concatenate([self.first, self.second, self.first, self.second])
        b = jnp.concatenate([self.first, self.second, self.second, self.first])
        laplacian = jnp.zeros((len(self.table),) * 2)
        laplacian = laplacian.at[a, b].add(jnp.concatenate([bend, bend, -bend, -bend]))
        return self.table.T @ (laplacian @ self.table)


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
