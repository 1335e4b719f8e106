"""Offline maximum likelihood inside Pi(R_sim): the policies that are soft-optimal for R_sim.

theta enters through the policy alone: soft value iteration gives per-token log-probabilities, their
sum beta log P_pi is the score, and its derivative is carried down the tokens beside it. No
difference of features is formed, so that agreement with `two_stage` (Theorem 3.1) is a fact about
policies and not the same sum taken twice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory.arms.base import Outcome
from theory.arms.linear import feature_rank, fit_by_ridge
from theory.arms.newton import Solved, damped_newton, down_the_path, slope_and_bend
from theory.arms.policies import chained, soft_policies
from theory.arms.replicates import program
from theory.batch import Batch


def offline_proper(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """Newton's method through the policy's own log-probabilities."""
    rank = feature_rank(batch)
    return fit_by_ridge(_offline_proper, batch, weights, batch.features.shape[3], rank)


def policy_and_slope(
    theta: Float[jax.Array, " D"],
    features: Float[jax.Array, "P L D"],
    beta: jax.Array,
    vocab: int,
    leaf_mask: jax.Array | None,
) -> tuple[Float[jax.Array, "P L"], Float[jax.Array, "P L D"]]:
    """log P_pi of every completion and its derivative by theta, both as sums over its tokens.

    pi is soft-optimal for features @ theta. d log pi(a|s) = dV(s.a) - dV(s) and dV(s) = sum_a
    pi(a|s) dV(s.a), in units of beta. Slots that are no completion: -inf and numbers that mean
    nothing.
    """
    prompts, _, d = features.shape
    levels = soft_policies((features @ theta / beta)[:, :, None], vocab, leaf_mask)
    below, slopes = features / beta, []
    for level in reversed(levels):
        q = below.reshape(prompts, -1, vocab, d)
        p = jnp.exp(jnp.where(level > -jnp.inf, level, -jnp.inf))
        value = jnp.sum(p * q, axis=2)
        slopes.insert(0, q - value[:, :, None, :])
        below = value
    return chained(levels)[:, :, 0], chained(slopes)


@program
def _offline_proper(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, ...]:
    ridges, beta, common, leaf_mask, _ = shared
    pairs, wins, own = mapped
    (prompts, vocab, _), _ = static
    flat = common if own is None else own
    features = flat.reshape(prompts, -1, flat.shape[1])
    eye = jnp.eye(flat.shape[1])

    def policy(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p, slopes = policy_and_slope(theta, features, beta, vocab, leaf_mask)
        return log_p.reshape(-1), slopes.reshape(-1, theta.shape[0])

    def fit(start: jax.Array, ridge: jax.Array) -> Solved:
        def at(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            log_p, slopes = policy(theta)
            known = jnp.where(log_p > -jnp.inf, log_p, 0.0)
            margin = beta * (known[pairs[:, 0]] - known[pairs[:, 1]])
            turn = beta * (slopes[pairs[:, 0]] - slopes[pairs[:, 1]])
            slope, bend = slope_and_bend(margin, wins)
            return ridge * theta + slope @ turn, (turn, bend)

        def curvature(aux: tuple[jax.Array, ...]) -> jax.Array:
            # The score differences are linear in theta (log Z cancels): no second derivative.
            turn, bend = aux
            return (turn * bend[:, None]).T @ turn + ridge * eye

        return damped_newton(at, curvature, start)

    theta, gradient, steps = down_the_path(fit, jnp.zeros(flat.shape[1]), ridges)
    log_p = jax.lax.map(lambda t: policy(t)[0], theta).T.reshape(prompts, -1, len(ridges))
    return log_p, beta * log_p, gradient, steps
