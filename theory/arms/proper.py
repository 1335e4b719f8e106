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
from theory.arms.newton import Pairs, Solved, damped_newton, down_the_path, slope_and_bend
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

    def known(theta: jax.Array) -> jax.Array:
        levels = soft_policies((features @ theta / beta)[:, :, None], vocab, leaf_mask)
        log_p = chained(levels).reshape(-1)
        return log_p if leaf_mask is None else jnp.where(log_p > -jnp.inf, log_p, 0.0)

    def fit(start: jax.Array, ridge: jax.Array) -> Solved:
        def at(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            log_p, pull = jax.vjp(known, theta)
            margin = beta * (log_p[pairs[:, 0]] - log_p[pairs[:, 1]])
            slope, bend = slope_and_bend(margin, wins)
            by_leaf = jnp.zeros_like(log_p).at[pairs[:, 0]].add(slope).at[pairs[:, 1]].add(-slope)
            return ridge * theta + pull(beta * by_leaf)[0], (theta, bend)

        def curvature(aux: tuple[jax.Array, jax.Array]) -> jax.Array:
            # The score differences are linear in theta (log Z cancels): no second derivative.
            slopes = policy_and_slope(aux[0], features, beta, vocab, leaf_mask)[1]
            table = beta * slopes.reshape(-1, len(aux[0]))
            return Pairs.of(table, pairs).hessian(aux[1]) + ridge * eye

        return damped_newton(at, curvature, start)

    theta, gradient, steps = down_the_path(fit, jnp.zeros(flat.shape[1]), ridges)
    scaled = (flat @ theta.T / beta).reshape(prompts, -1, len(ridges))
    log_p = chained(soft_policies(scaled, vocab, leaf_mask))
    return log_p, beta * log_p, gradient, steps
