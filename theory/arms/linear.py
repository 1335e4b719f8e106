"""Two-stage arms: a reward by maximum likelihood, then exact soft RL (the paper's online road).

Every arm minimises, on the pairs it is given,

    sum over pairs of -log sigmoid(score(winner) - score(loser)) + ridge / 2 |theta|^2,

and is what theta and score are:

- two_stage: score = features @ theta, R_sim.
- two_stage_full: every reward, in orthonormal coordinates; R(Pi) of all policies (Theorem 2.2).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory.arms.base import Candidate, Outcome
from theory.arms.lbfgs import lbfgs
from theory.arms.newton import Pairs, Solved, damped_newton, down_the_path, slope_and_bend
from theory.arms.policies import chained, soft_policies, tabular_rank
from theory.arms.replicates import distinct_pairs, on_all_cores, program
from theory.batch import Batch
from theory.errors import InputError

TOLERANCE = 1e-9  # of two_stage_full's gradient, counts a unit of theta
MAX_STEPS = 3000


def two_stage(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """The reward class of the batch by Newton's method, then soft RL."""
    return fit_by_ridge(_two_stage, batch, weights, batch.features.shape[3], feature_rank(batch))


def two_stage_full(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
    """Every reward, with |theta| its standard deviation over completions, then soft RL."""
    rank = tabular_rank(batch.tree)
    return fit_by_ridge(_two_stage_full, batch, weights, rank, rank, featured=False)


def fit_by_ridge(
    many: Any,
    batch: Batch,
    weights: np.ndarray,
    n_parameters: int,
    rank: int | None,
    *,
    featured: bool = True,
    extra: Any = (),
    static: Any = None,
) -> Outcome:
    """Run a program on every replicate, ridges from the largest down, and collect the outcome.

    The program is given shared = (ridges, beta, features or None, leaf mask or None, extra), mapped
    = (pairs, wins, features or None), static = ((P, V, H), static), and gives back log P and score
    (P, L, K), the largest entry of the gradient and the steps (K,).
    """
    tree = batch.tree
    _check(batch, weights)
    pairs, wins = distinct_pairs(tree, batch.pairs, weights)
    order = np.argsort(-np.asarray(batch.ridges), kind="stable")
    flat = batch.features.reshape(len(batch.features), -1, batch.features.shape[3])
    shared_features = featured and len(flat) == 1
    whole = tree.leaf_mask.all()
    shared = (
        np.asarray(batch.ridges, dtype=np.float64)[order],
        np.float64(batch.beta),
        flat[0] if shared_features else None,
        None if whole else tree.leaf_mask,
        extra,
    )
    mapped = (pairs, wins, flat if featured and not shared_features else None)
    shape = (tree.n_prompts, tree.vocab, tree.horizon)
    log_p, score, gradient, steps = on_all_cores(many, shared, mapped, (shape, static))
    back = np.argsort(order, kind="stable")
    live = tree.leaf_mask[None, None, None, :]
    log_p, score = (np.ascontiguousarray(np.moveaxis(a, 3, 0)[back]) for a in (log_p, score))
    return Outcome(
        candidates=tuple(Candidate(ridge) for ridge in batch.ridges),
        log_p=log_p if whole else np.where(live, log_p, -np.inf),
        score=score if whole else np.where(live, score, 0.0),
        gradient=np.ascontiguousarray(gradient.T[back]),
        steps=np.ascontiguousarray(steps.T[back]),
        n_parameters=n_parameters,
        jacobian_rank=rank,
    )


def _check(batch: Batch, weights: np.ndarray) -> None:
    """Raise InputError for weights of another shape, pairs of two prompts, or bad amounts."""
    if weights.shape != batch.pairs.shape[:2]:
        raise InputError(f"weights {weights.shape} for pairs {batch.pairs.shape[:2]}")
    apart = np.diff(batch.pairs // batch.tree.n_leaves, axis=2)[:, :, 0] != 0
    if apart.any():
        place = tuple(int(i) for i in np.argwhere(apart)[0])
        raise InputError(f"the pair at {place}, {batch.pairs[place].tolist()}, has two prompts")
    bad = ~(np.isfinite(weights) & (weights >= 0.0))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"the weight at {place} must be finite and >= 0, got {weights[place]}")
    for ridge in batch.ridges:
        if not (math.isfinite(ridge) and ridge >= 0.0):
            raise InputError(f"ridges must be finite and >= 0, got {ridge!r}")


def feature_rank(batch: Batch) -> int:
    """Rank of d log P / d theta of R_sim's soft-optimal policies at a random theta.

    d log P(xi) / d theta = (phi(xi) - E_P phi) / beta for every prompt. Where replicates have
    features of their own: the largest of theirs.
    """
    live = batch.features[:, :, batch.tree.leaf_mask]
    theta = np.random.default_rng(0).standard_normal(live.shape[3])
    logits = live @ theta / batch.beta
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    centred = live - np.einsum("fpl,fpld->fpd", p, live)[:, :, None]
    return int(np.linalg.matrix_rank(centred.reshape(len(live), -1, live.shape[3])).max())


def soft_rl(
    reward: Float[jax.Array, "P L K"], beta: jax.Array, vocab: int, leaf_mask: jax.Array | None
) -> Float[jax.Array, "P L K"]:
    """log P of the soft-optimal policy, token by token."""
    return chained(soft_policies(reward / beta, vocab, leaf_mask))


@program
def _two_stage(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, ...]:
    ridges, beta, common, leaf_mask, _ = shared
    pairs, wins, own = mapped
    (prompts, vocab, _), _ = static
    features = common if own is None else own  # (P L, D)
    compared = Pairs.of(features, pairs)
    eye = jnp.eye(features.shape[1])

    def fit(start: jax.Array, ridge: jax.Array) -> Solved:
        def at(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
            slope, bend = slope_and_bend(compared.margin(theta), wins)
            return ridge * theta + compared.gradient(slope), bend

        return damped_newton(at, lambda bend: compared.hessian(bend) + ridge * eye, start)

    theta, gradient, steps = down_the_path(fit, jnp.zeros(features.shape[1]), ridges)
    score = (features @ theta.T).reshape(prompts, -1, len(ridges))
    return soft_rl(score, beta, vocab, leaf_mask), score, gradient, steps


@program
def _two_stage_full(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, ...]:
    ridges, beta, _, leaf_mask, _ = shared
    pairs, wins, _ = mapped
    (prompts, vocab, horizon), _ = static
    slots = prompts * vocab**horizon
    live = slots if leaf_mask is None else prompts * jnp.sum(leaf_mask)
    unit = jnp.sqrt(jnp.asarray(live, dtype=jnp.float64))  # reward = unit theta

    def objective(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, slope = pair_loss(unit * theta, pairs, wins)
        penalty = 0.5 * ridges * jnp.sum(theta * theta, axis=0)
        return value + penalty, unit * slope + ridges[None, :] * theta

    start = jnp.zeros((slots, len(ridges)))
    theta, gradient, steps = lbfgs(objective, start, TOLERANCE, MAX_STEPS)
    score = (unit * theta).reshape(prompts, -1, len(ridges))
    return soft_rl(score, beta, vocab, leaf_mask), score, jnp.max(jnp.abs(gradient), axis=0), steps


def pair_loss(
    score: Float[jax.Array, "S B"], pairs: jax.Array, wins: Float[jax.Array, "M 2"]
) -> tuple[Float[jax.Array, " B"], Float[jax.Array, "S B"]]:
    """Summed Bradley-Terry loss of B problems on the same pairs, nats, and its slope by the score.

    pairs (M, 2): leaf numbers; wins (M, 2): how often the first and the second of them won.
    """
    margin = score[pairs[:, 0]] - score[pairs[:, 1]]
    small = jnp.exp(-jnp.abs(margin))
    total = jnp.sum(wins, axis=1)[:, None]
    loss = total * (jnp.maximum(-margin, 0.0) + jnp.log1p(small)) + wins[:, 1:] * margin
    won = jnp.where(margin > 0.0, 1.0, small) / (1.0 + small)
    lost = jnp.where(margin > 0.0, small, 1.0) / (1.0 + small)
    slope = wins[:, 1:] * won - wins[:, :1] * lost
    ends = jnp.concatenate([pairs[:, 0], pairs[:, 1]])
    by_score = jnp.zeros_like(score).at[ends].add(jnp.concatenate([slope, -slope]))
    return jnp.sum(loss, axis=0), by_score
