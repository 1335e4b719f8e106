"""What a fitted policy and its score are worth: exact, by enumeration of all completions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import theory._x64  # noqa: F401
from theory.arms.replicates import on_all_cores, program
from theory.operators import TIE
from theory.sweep.schema import BEST_OF
from theory.tree import TokenTree

NAMES = ("kl", "regret", "win_rate", "val_loss", "val_accuracy", "best_of_n")
BLOCK = 256  # factors of at most 2 whose product is taken before its logarithm


def measure(
    tree: TokenTree,
    beta: float,
    reward: Float[np.ndarray, "R P L"],
    log_reference: Float[np.ndarray, "R P L"],
    log_p: Float[np.ndarray, "K R P L"],
    score: Float[np.ndarray, "K R P L"],
) -> dict[str, np.ndarray]:
    """Means over prompts by rho0, (K, R) each; best_of_n (K, R, counts).

    kl: KL(P_pi || P*_r), nats. regret: E_{P*_r} r - E_{P_pi} r, reward units; negative where the
    policy is sharper than the soft optimum. win_rate: against one draw of the reference, by the
    true reward, ties half. val_loss, val_accuracy: over all pairs of different completions of a
    prompt, labels Bradley-Terry by the true reward without noise, nats a pair and 0-1; ties of the
    score count half. best_of_n: expected true reward of the best of N draws of the reference by the
    score (ties in proportion to the reference), less the reference's own mean, reward units.
    """
    live = tree.leaves
    mapped = (
        *(reward[:, :, live], log_reference[:, :, live]),
        *(np.moveaxis(log_p[..., live], 0, 1), np.moveaxis(score[..., live], 0, 1)),
    )
    found = on_all_cores(_replicate, (tree.rho0, np.float64(beta)), mapped, None)
    return {name: np.moveaxis(value, 0, 1) for name, value in zip(NAMES, found, strict=True)}


@program
def _replicate(shared: Any, row: Any, _: None) -> tuple[jax.Array, ...]:
    """One replicate, (P, C) and (K, P, C): every measure of every candidate, (K,) each."""
    rho0, beta = shared
    r, log_ref, log_ps, scores = row
    worth = partial(_worth, _truth(r, log_ref, beta), r, jnp.exp(log_ref), rho0)
    found = jax.lax.map(lambda pair: worth(*pair), (log_ps, scores))
    return tuple(found[name] for name in NAMES)


def _truth(r: jax.Array, log_ref: jax.Array, beta: jax.Array) -> dict[str, jax.Array]:
    """What a replicate's candidates share. Pair tables are (P, C, C) with a zero diagonal."""
    gap = r[:, :, None] - r[:, None, :]
    small = jnp.exp(-jnp.abs(gap))
    label = jnp.where(gap >= 0.0, 1.0, small) / (1.0 + small)
    apart = 1.0 - jnp.eye(r.shape[1])[None]
    label = label * apart
    return {
        "log_star": jax.nn.log_softmax(r / beta, axis=1),
        "label": label,
        "pull": jnp.sum(label - 0.5 * apart, axis=2),
        "beats": jnp.sum(_step(gap) * jnp.exp(log_ref)[:, None, :], axis=2),
    }


def _worth(
    truth: dict[str, jax.Array],
    r: jax.Array,
    reference: jax.Array,
    rho0: jax.Array,
    log_p: jax.Array,
    score: jax.Array,
) -> dict[str, jax.Array]:
    """The measures of one policy, log_p and score (P, C), by the tables of `_truth`."""
    p, star = jnp.exp(log_p), jnp.exp(truth["log_star"])
    never = jnp.isneginf(log_p)  # adds nothing; NaN stays
    kl = jnp.sum(jnp.where(never, 0.0, p * (log_p - truth["log_star"])), axis=1)
    margin = score[:, :, None] - score[:, None, :]
    n_pairs = r.shape[1] * (r.shape[1] - 1) / 2
    right = jnp.sum(truth["label"] * _step(margin), axis=(1, 2))
    loss = _log_cosh(margin) - jnp.sum(truth["pull"] * score, axis=1)
    below = jnp.sum(jnp.where(margin > TIE, reference[:, None, :], 0.0), axis=2)
    upto = below + jnp.sum(jnp.where(jnp.abs(margin) <= TIE, reference[:, None, :], 0.0), axis=2)
    share = jnp.where(reference > 0.0, reference / jnp.where(upto > below, upto - below, 1.0), 0.0)
    best = [jnp.sum(share * (upto**n - below**n) * r, axis=1) for n in BEST_OF]
    own = jnp.sum(reference * r, axis=1)
    return {
        "kl": jnp.sum(rho0 * kl),
        "regret": jnp.sum(rho0 * jnp.sum((star - p) * r, axis=1)),
        "win_rate": jnp.sum(rho0 * jnp.sum(p * truth["beats"], axis=1)),
        "val_loss": jnp.sum(rho0 * loss) / n_pairs,
        "val_accuracy": jnp.sum(rho0 * right) / n_pairs,
        "best_of_n": jnp.stack([jnp.sum(rho0 * (value - own)) for value in best]),
    }


def _step(gap: jax.Array) -> jax.Array:
    """1 for a won, 0 for a lost, half for a tied comparison; see `theory.operators.step`."""
    return jnp.where(gap > TIE, 1.0, jnp.where(gap < -TIE, 0.0, 0.5))


def _log_cosh(margin: jax.Array) -> jax.Array:
    """Sum over unordered pairs of log(2 cosh(margin / 2)), (P, C, C) to (P,).

    -log sigmoid(m) = log(2 cosh(m / 2)) - m / 2, and log(2 cosh(m / 2)) = |m| / 2 +
    log(1 + exp(-|m|)): factors in 1..2, multiplied in blocks so that few logarithms are taken.
    """
    size = jnp.abs(margin)
    prompts, n = size.shape[0], size.shape[1]
    factors = 1.0 + jnp.exp(-size)
    flat = factors.reshape(prompts, -1)
    padded = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % BLOCK)), constant_values=1.0)
    logs = jnp.sum(jnp.log(jnp.prod(padded.reshape(prompts, -1, BLOCK), axis=2)), axis=1)
    both = 0.5 * jnp.sum(size, axis=(1, 2)) + logs
    return 0.5 * (both - n * jnp.log(2.0))


def held_out_loss(
    score: Float[np.ndarray, "K R P L"], pairs: np.ndarray, n_held: int
) -> Float[np.ndarray, "K R"]:
    """Mean Bradley-Terry loss of the last n_held pairs of each replicate, nats a pair."""
    flat = score.reshape(*score.shape[:2], -1)
    held = pairs[:, pairs.shape[1] - n_held :]
    out = np.empty(flat.shape[:2])
    for i, rows in enumerate(held):
        margin = flat[:, i, rows[:, 0]] - flat[:, i, rows[:, 1]]
        out[:, i] = np.logaddexp(0.0, -margin).mean(axis=1)
    return out
