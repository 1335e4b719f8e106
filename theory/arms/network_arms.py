"""Same-size networks on both roads: global reward models, offline maximum likelihood, and DPO.

All arms minimise sum of weight * -log sigmoid(score(winner) - score(loser)) + ridge / 2 |theta|^2
by full-batch Adam (Kingma and Ba 2015) of one rate, from one initial trunk a seed, and are read off
after the steps in STOPS: the candidates of every arm are ridges times stops. They differ in score:

- two_stage: the network's reward of the whole completion (the global reward model); its policy is
  the exact soft optimum, log P = score / beta - log Z (Eq. 11).
- offline: beta log P_pi of the policy network, the local reward (Eq. 1): maximum likelihood.
- dpo: beta (log P_pi - log P_ref); the policy starts as the network that SFT_STEPS steps of
  cross-entropy fit to the batch's reference, and P_ref is that network's own distribution.

The ridge pulls every parameter to 0, in DPO too: for a policy the uniform next token, not the SFT
network. None trains to a stationary point: stopping early is part of the regularisation, and
`gradient` says how far it was. In the transformer it stays large however long one trains: what is
written to the stream is normalised, so the ridge shrinks those weights without changing a score,
while the gradient grows as their inverse. Stops of 1000 and 3000 beside these cost ten times as
much and do not clearly help: Walsh degree 2, 256 pairs, 8 seeds, at 4 bits held-out pairs chose one
for 3 two-stage and no offline fits, mean KL .20 to .21 and .12 to .12 nats; at 5 bits for 6 and 5
fits, .60 to .52 and .35 to .50 (standard errors .1 to .2).

RATE was chosen by the objective alone: of .001, .003, .01 and .03 it leaves the least after 300
steps, or at most 8 % more, in both networks on both roads (Walsh degree 2, 512 pairs, two ridges).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from theory.arms.base import Candidate, Outcome
from theory.arms.networks import Network, Parameters
from theory.arms.replicates import distinct_pairs, on_all_cores, program
from theory.batch import Batch
from theory.errors import InputError
from theory.tree import TokenTree

RATE = 0.01  # of Adam: the most that a weight moves a step
STOPS = (30, 100, 300)  # steps after which a fit is read off
SFT_STEPS = 200  # of cross-entropy to the reference, before DPO
ROADS = ("two_stage", "offline", "dpo")
RANKED = 1024  # completions of all prompts up to which the Jacobian's rank is computed

Loss = Callable[[Parameters], jax.Array]


def network_arm(batch: Batch, weights: Float[np.ndarray, "R N"], kind: str, road: str) -> Outcome:
    """Fit one network on one road to every replicate, at every ridge and stop.

    weights: how often each pair counts, 0 leaves it out. Raises InputError for an unknown kind or
    road, a bad width, and for DPO a reference that gives some completion no probability.
    """
    if road not in ROADS:
        raise InputError(f"road {road!r} is none of {', '.join(ROADS)}")
    network, tree = Network(kind, batch.tree, batch.width), batch.tree
    policy = road != "two_stage"
    if road == "dpo":
        check_reference(batch)
    made = [network.initial(seed, policy=policy) for seed in batch.seeds]
    initial = {name: np.stack([one[name] for one in made]) for name in made[0]}
    pairs, wins = distinct_pairs(tree, batch.pairs, weights)
    reference = np.where(tree.leaf_mask, np.exp(batch.log_reference), 0.0)
    shared = (np.asarray(batch.ridges, dtype=np.float64), np.float64(batch.beta))
    log_p, score, gradient = on_all_cores(
        _fit, shared, (initial, reference, pairs, wins), (network, road)
    )

    def candidates_first(part: np.ndarray) -> np.ndarray:  # (R, ridges, stops, ...) -> (K, R, ...)
        flat = part.reshape(part.shape[0], -1, *part.shape[3:])
        return np.ascontiguousarray(np.swapaxes(flat, 0, 1))

    gradient = candidates_first(gradient)
    steps = np.tile(np.asarray(STOPS, np.float64), len(batch.ridges))
    return Outcome(
        candidates=tuple(Candidate(ridge, stop) for ridge in batch.ridges for stop in STOPS),
        log_p=np.where(tree.leaf_mask, candidates_first(log_p), -np.inf),
        score=candidates_first(score),
        gradient=gradient,
        steps=np.broadcast_to(steps[:, None], gradient.shape).copy(),
        n_parameters=network.n_parameters(policy=policy),
        jacobian_rank=network_rank(network, policy=policy),
        converged=False,
    )


# --- objectives -----------------------------------------------------------------------------------


def pair_loss(
    score: Float[jax.Array, "P L"], pairs: Int[jax.Array, "M 2"], wins: Float[jax.Array, "M 2"]
) -> jax.Array:
    """Summed Bradley-Terry loss of a score, nats.

    pairs: leaf numbers x L + leaf; wins: how often the first and the second of them won.
    """
    flat = score.reshape(-1)
    margin = flat[pairs[:, 0]] - flat[pairs[:, 1]]
    return jnp.sum(wins[:, 0] * jax.nn.softplus(-margin) + wins[:, 1] * jax.nn.softplus(margin))


def with_ridge(loss: Loss, ridge: jax.Array) -> Loss:
    """loss + ridge / 2 |theta|^2, all parameters alike."""

    def total(theta: Parameters) -> jax.Array:
        return loss(theta) + 0.5 * ridge * sum(jnp.sum(part * part) for part in theta.values())

    return total


def cross_entropy(
    network: Network, theta: Parameters, reference: Float[jax.Array, "P L"]
) -> jax.Array:
    """-E_{x ~ rho0} sum_xi P_ref(xi | x) log P_pi(xi | x), nats: what SFT minimises."""
    rho0 = jnp.asarray(network.tree.rho0)[:, None]
    return -jnp.sum(rho0 * reference * network.log_probs(theta))


def soft_optimum(
    score: Float[jax.Array, "P L"], beta: jax.Array, tree: TokenTree
) -> Float[jax.Array, "P L"]:
    """log P*_r = r / beta - log Z (Eq. 11), nats; 0 at slots that are no completion."""
    mask = jnp.asarray(tree.leaf_mask)[None]
    scaled = jnp.where(mask, score / beta, -jnp.inf)
    return jnp.where(mask, jax.nn.log_softmax(scaled, axis=1), 0.0)


def score_of(
    network: Network, road: str, theta: Parameters, beta: jax.Array, log_ref: jax.Array
) -> Float[jax.Array, "P L"]:
    """The reward that the network implies on its road, reward units; 0 where no completion is."""
    if road == "two_stage":
        return network.reward(theta)
    if road == "offline":
        return beta * network.log_probs(theta)
    return beta * (network.log_probs(theta) - log_ref)


def log_probs_of(
    network: Network, road: str, theta: Parameters, beta: jax.Array
) -> Float[jax.Array, "P L"]:
    """log P_pi of the road's policy, nats."""
    if road == "two_stage":
        return soft_optimum(network.reward(theta), beta, network.tree)
    return network.log_probs(theta)


# --- training -------------------------------------------------------------------------------------


def adam(loss: Loss, theta: Parameters, steps: tuple[int, ...], rate: float) -> Parameters:
    """theta after each number of steps (ascending) of full-batch Adam, stacked; traceable."""
    solver = optax.adam(rate)

    def step(_: int, carry: tuple) -> tuple:
        at, state = carry
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            updates, state = solver.update(jax.grad(loss)(at), state, at)
        return jax.tree.map(jnp.add, at, updates), state

    def until_stop(carry: tuple, more: jax.Array) -> tuple:
        carry = jax.lax.fori_loop(0, more, step, carry)
        return carry, carry[0]

    more = jnp.asarray(np.diff((0, *steps)))
    return jax.lax.scan(until_stop, (theta, solver.init(theta)), more)[1]


def sft(network: Network, theta: Parameters, reference: Float[jax.Array, "P L"]) -> Parameters:
    """The network after SFT_STEPS steps of cross-entropy to the reference."""
    fitted = adam(lambda t: cross_entropy(network, t, reference), theta, (SFT_STEPS,), RATE)
    return jax.tree.map(lambda stack: stack[0], fitted)


def largest_entry(tree: Parameters) -> jax.Array:
    """max |entry| over all arrays."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(part)) for part in tree.values()]))


@program
def _fit(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, ...]:
    """(log_p, score, gradient) of one replicate, each (ridges, stops, ...)."""
    (ridges, beta), (theta, reference, pairs, wins), (network, road) = shared, mapped, static
    log_ref = jnp.zeros_like(reference)
    if road == "dpo":
        theta = sft(network, theta, reference)
        log_ref = network.log_probs(theta)

    def at_ridge(ridge: jax.Array) -> tuple[jax.Array, ...]:
        def loss(t: Parameters) -> jax.Array:
            return pair_loss(score_of(network, road, t, beta, log_ref), pairs, wins)

        objective = with_ridge(loss, ridge)

        def read_off(t: Parameters) -> tuple[jax.Array, ...]:
            log_p = log_probs_of(network, road, t, beta)
            score = score_of(network, road, t, beta, log_ref)
            return log_p, score, largest_entry(jax.grad(objective)(t))

        return jax.lax.map(read_off, adam(objective, theta, STOPS, RATE))

    return jax.lax.map(at_ridge, ridges)


@lru_cache(maxsize=64)
def network_rank(network: Network, *, policy: bool) -> int | None:
    """Rank of d log P / d theta at a random theta (heads included); None on large trees."""
    tree = network.tree
    if tree.n_prompts * tree.n_leaves > RANKED:
        return None
    generator = np.random.default_rng(0)
    theta = {
        name: jnp.asarray(generator.standard_normal(shape) / np.sqrt(shape[0]))
        for name, shape in network.shapes(policy=policy).items()
    }
    road = "offline" if policy else "two_stage"
    rows = jax.jit(jax.jacrev(lambda t: log_probs_of(network, road, t, jnp.float64(1.0))))(theta)
    size = tree.n_prompts * tree.n_leaves
    flat = np.concatenate([np.asarray(part).reshape(size, -1) for part in rows.values()], axis=1)
    return int(np.linalg.matrix_rank(flat))


# --- checks ---------------------------------------------------------------------------------------


def check_reference(batch: Batch) -> None:
    """Raise InputError where the reference of a replicate gives a completion no probability."""
    bad = ~np.isfinite(batch.log_reference) & batch.tree.leaf_mask
    if bad.any():
        r, x, leaf = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"seed {batch.seeds[r]}: the reference gives completion "
            f"{' '.join(batch.tree.leaf_tokens(leaf))!r} of prompt {batch.tree.prompts[x]!r} "
            f"log-probability {batch.log_reference[r, x, leaf]!r}: DPO has no ratio there"
        )
