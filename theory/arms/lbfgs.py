"""L-BFGS for B problems of one shape at a time, one evaluation of all of them a step.

The problems are the last axis. Each has its own step length, history and end; one that has ended
stays where it is. Nocedal and Wright, Numerical Optimization, algorithm 7.4; steps are shortened
until the value falls enough (Armijo), and a pair of differences whose curvature is not positive is
not remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

MEMORY = 20  # pairs of differences kept
ENOUGH = 1e-4  # share of the fall that the slope promises
SHORTEST = 1e-12  # of a direction; below, no length helps
ROUNDING = 1e-14  # relative: values closer than this are equal

Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # (T, B) -> (B,), (T, B)


class _State(NamedTuple):
    theta: Float[jax.Array, "T B"]
    value: Float[jax.Array, " B"]
    gradient: Float[jax.Array, "T B"]
    direction: Float[jax.Array, "T B"]
    length: Float[jax.Array, " B"]
    moves: Float[jax.Array, "M T B"]
    turns: Float[jax.Array, "M T B"]
    scale: Float[jax.Array, "M B"]  # 1 / (move . turn); 0: empty
    unit: Float[jax.Array, " B"]  # move . turn / turn . turn of the newest pair
    going: Bool[jax.Array, " B"]
    steps: Float[jax.Array, " B"]
    count: jax.Array


def lbfgs(
    objective: Objective, start: Float[jax.Array, "T B"], tolerance: float, max_steps: int
) -> tuple[Float[jax.Array, "T B"], Float[jax.Array, "T B"], Float[jax.Array, " B"]]:
    """(theta, gradient there, evaluations) of each problem.

    A problem ends where no entry of its gradient exceeds `tolerance`, where no step length lowers
    its value, or after max_steps evaluations; the gradient tells which.
    """
    value, gradient = objective(start)
    history = jnp.zeros((MEMORY, *start.shape))
    norm = jnp.sqrt(jnp.sum(gradient * gradient, axis=0))
    first = _State(
        theta=start,
        value=value,
        gradient=gradient,
        direction=-gradient,
        length=1.0 / jnp.maximum(norm, 1.0),
        moves=history,
        turns=history,
        scale=jnp.zeros((MEMORY, start.shape[1])),
        unit=jnp.ones(start.shape[1]),
        going=_largest(gradient) > tolerance,
        steps=jnp.zeros(start.shape[1]),
        count=jnp.array(0),
    )
    last = jax.lax.while_loop(
        lambda s: jnp.any(s.going) & (s.count < max_steps),
        lambda s: _step(objective, s, tolerance),
        first,
    )
    return last.theta, last.gradient, last.steps


def _largest(gradient: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(gradient), axis=0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, axis=0)


def _step(objective: Objective, s: _State, tolerance: float) -> _State:
    trial = s.theta + s.length[None, :] * s.direction
    value, gradient = objective(trial)
    slope = _dot(s.gradient, s.direction)
    same = jnp.abs(value - s.value) <= ROUNDING * jnp.abs(s.value)  # then the gradient decides
    flatter = same & (_largest(gradient) < _largest(s.gradient))
    fell = (value <= s.value + ENOUGH * s.length * slope) | flatter
    taken = s.going & fell
    move = jnp.where(taken[None, :], trial - s.theta, 0.0)
    turn = jnp.where(taken[None, :], gradient - s.gradient, 0.0)
    curvature = _dot(move, turn)
    known = curvature > 1e-12 * _dot(turn, turn)
    slot = s.count % MEMORY
    moves = s.moves.at[slot].set(move)
    turns = s.turns.at[slot].set(turn)
    scale = s.scale.at[slot].set(jnp.where(known, 1.0 / jnp.where(known, curvature, 1.0), 0.0))
    bent = jnp.where(known, curvature, 1.0) / jnp.where(known, _dot(turn, turn), 1.0)
    unit = jnp.where(known, bent, s.unit)
    here = jnp.where(taken[None, :], gradient, s.gradient)
    newton = -_inverse_times(here, (moves, turns, scale), unit, s.count)
    direction = jnp.where(taken[None, :], newton, s.direction)
    ascending = _dot(here, direction) >= 0.0
    direction = jnp.where(ascending[None, :], -here, direction)
    # too long: the length at which a parabola through both values has its least
    bend = value - s.value - s.length * slope
    parabola = -0.5 * slope * s.length**2 / jnp.where(bend > 0.0, bend, 1.0)
    fits = (bend > 0.0) & (bend < jnp.inf)
    shorter = jnp.where(fits, jnp.clip(parabola, 0.1 * s.length, 0.5 * s.length), 0.1 * s.length)
    length = jnp.where(taken, 1.0, shorter)
    going = s.going & (_largest(here) > tolerance) & (length > SHORTEST)
    return _State(
        theta=jnp.where(taken[None, :], trial, s.theta),
        value=jnp.where(taken, value, s.value),
        gradient=here,
        direction=direction,
        length=length,
        moves=moves,
        turns=turns,
        scale=scale,
        unit=unit,
        going=going,
        steps=s.steps + s.going.astype(s.steps.dtype),
        count=s.count + 1,
    )


def _inverse_times(
    gradient: jax.Array,
    history: tuple[jax.Array, jax.Array, jax.Array],
    unit: jax.Array,
    count: jax.Array,
) -> jax.Array:
    """The two loops over the history, newest first and back; empty entries change nothing.

    unit (B,): the first guess of the inverse Hessian, as a multiple of the identity.
    """
    moves, turns, scale = history
    empty = jnp.zeros_like(scale)

    def down(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, shares = state
        slot = (count - i) % MEMORY
        share = scale[slot] * _dot(moves[slot], q)
        return q - share[None, :] * turns[slot], shares.at[slot].set(share)

    def up(i: jax.Array, q: jax.Array) -> jax.Array:
        slot = (count + 1 + i) % MEMORY
        back = scale[slot] * _dot(turns[slot], q)
        return q + (shares[slot] - back)[None, :] * moves[slot]

    q, shares = jax.lax.fori_loop(0, MEMORY, down, (gradient, empty))
    return jax.lax.fori_loop(0, MEMORY, up, q * unit[None, :])
