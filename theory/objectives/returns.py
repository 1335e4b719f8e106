"""Losses of a reward or of target completions: expectations over rho0, to be minimised.

rho0: (P,) prompt weights. reward: (P, L), reward units, read at completions only. A slot where
log_p is -inf is no completion and adds nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.operators import best_of_n
from theory.tree import TokenTree


def sft_loss(
    log_p: Float[AnyArray, "P L"],
    log_target: Float[AnyArray, "P L"],
    rho0: Float[AnyArray, " P"],
) -> jax.Array:
    """-E_x sum_xi P_target(xi|x) log P(xi|x), nats: supervised fine-tuning, population.

    Minimised by P = P_target, where that is > 0 everywhere; else only approached.
    """
    return -jnp.dot(jnp.asarray(rho0), jnp.sum(_weighted(jnp.exp(log_target), log_p), axis=1))


def best_of_n_sft_loss(
    log_p: Float[AnyArray, "P L"],
    tree: TokenTree,
    log_data: Float[AnyArray, "P L"],
    utility: Float[AnyArray, "P L"],
    *,
    n: int,
) -> jax.Array:
    """`sft_loss` on the best of n completions of P_data by a utility, nats.

    Minimised by the best-of-n distribution itself (`theory.operators.best_of_n`).
    """
    return sft_loss(log_p, best_of_n(tree, log_data, utility, n), tree.rho0)


def rwr_loss(
    log_p: Float[AnyArray, "P L"],
    log_data: Float[AnyArray, "P L"],
    reward: Float[AnyArray, "P L"],
    rho0: Float[AnyArray, " P"],
    *,
    beta: float,
) -> jax.Array:
    """-E_x E_{xi ~ P_data} exp(r / beta) log P(xi|x): reward-weighted regression.

    Peters & Schaal 2007 with an exponential transform of the reward; the largest r of all
    completions is taken out before exp, which rescales the loss and moves no optimum. Minimised by
    P proportional to P_data exp(r / beta): in one step, RLHF's optimum with reference P_data. Over
    a class that is not all policies the weight exp(r / beta) also weighs prompts.
    """
    held = ~jnp.isneginf(log_data)
    score = jnp.where(held, jnp.asarray(reward), -jnp.inf) / beta
    weight = jnp.where(held, jnp.exp(log_data + score - jnp.max(score)), 0.0)
    return -jnp.dot(jnp.asarray(rho0), jnp.sum(_weighted(weight, log_p), axis=1))


def policy_gradient_loss(
    log_p: Float[AnyArray, "P L"], reward: Float[AnyArray, "P L"], rho0: Float[AnyArray, " P"]
) -> jax.Array:
    """-E_x E_{xi ~ P} r(xi), reward units: the return itself, whose slope REINFORCE estimates.

    Bounded below by -E_x max r, and not attained by any policy > 0 unless r is constant at each
    prompt: mass drifts to the best completions for ever.
    """
    p = jnp.exp(log_p)
    return -jnp.dot(jnp.asarray(rho0), jnp.sum(_weighted(p, jnp.asarray(reward)), axis=1))


def reinforce_loss(
    log_p: Float[AnyArray, "P L"],
    draws: Float[AnyArray, "P L"],
    reward: Float[AnyArray, "P L"],
    *,
    baseline: Float[AnyArray, " P"] | None = None,
) -> jax.Array:
    """-sum draws (r - baseline) log P: its slope is the score-function gradient (Williams 1992).

    draws: how often each completion was drawn, summing to 1; rho0 P gives the exact expectation
    sum P (r - b) grad log P = grad E[r], for any baseline b(x), and counts / N an unbiased
    estimate. No gradient flows through draws; only the slope at the P that made them means
    anything, not the value.
    """
    gain = jnp.asarray(reward)
    if baseline is not None:
        gain = gain - jnp.asarray(baseline)[:, None]
    frequency = jax.lax.stop_gradient(jnp.asarray(draws))
    return -jnp.sum(_weighted(frequency * jnp.where(frequency > 0, gain, 0.0), log_p))


def rlhf_loss(
    log_p: Float[AnyArray, "P L"],
    reward: Float[AnyArray, "P L"],
    rho0: Float[AnyArray, " P"],
    *,
    beta: float,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> jax.Array:
    """-(E[r] - beta KL(P || P_ref)) (Eq. 13), or -(E[r] + beta H(P)) without log_ref (Eq. 10).

    Reward units. Minimised by P proportional to P_ref exp(r / beta) (Eq. 12, for each prompt), or
    to exp(r / beta) (Eq. 11); at -beta E_x log Z.
    """
    held = ~jnp.isneginf(log_p)
    ratio = jnp.where(held, log_p, 0.0)
    if log_ref is not None:
        ratio = ratio - jnp.where(held, jnp.asarray(log_ref), 0.0)
    gain = jnp.where(held, jnp.asarray(reward), 0.0) - beta * ratio
    return -jnp.dot(jnp.asarray(rho0), jnp.sum(_weighted(jnp.exp(log_p), gain), axis=1))


def _weighted(weight: AnyArray, values: AnyArray) -> jax.Array:
    """weight * values, 0 where the weight is 0 (values may be infinite there); safe to derive."""
    held = jnp.asarray(weight) != 0.0
    return jnp.where(held, weight * jnp.where(held, values, 0.0), 0.0)
