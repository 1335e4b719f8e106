"""The two-stage road as the paper runs it: online DPO on best and worst of K samples (App. C.3).

1. Stage one: the reward of R_sim by maximum likelihood (the arm two_stage), at each ridge.
2. A generator G: the reference (`sft`), or the policy of offline_all at the same ridge (`dpo`).
3. For each row of data its prompt, K completions of G at the batch's temperature, token by token;
   the best and the worst by the fitted reward make a pair. `population` has the exact distribution
   of this pair instead, prompts by rho0.
4. DPO from G against G: sum of -log sigmoid(beta (ratio(best) - ratio(worst))) with ratio = log of
   P_tau / G_tau, the logits of policy and reference divided by the temperature (Table 3), over all
   tabular policies, by full-batch Adam of one rate.

Best beats worst and never the other way round, so this loss has no minimiser, not even in
population: an iterate is named by its ridge (of stage one, and of offline_all) and by its steps,
STOPS, and `converged` is False. What is measured is the policy at temperature 1, and its local
reward beta log P_pi (Eq. 1).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory.arms.base import Candidate, Outcome
from theory.arms.linear import two_stage
from theory.arms.network_arms import adam, check_reference, largest_entry, pair_loss
from theory.arms.online_pairs import (
    Drawn,
    conditionals,
    draw_best_worst,
    pair_chances,
    ranked,
    tempered_chain,
    tempered_leaves,
)
from theory.arms.policies import live_entries, tabular_rank
from theory.arms.replicates import distinct_pairs, on_all_cores, program
from theory.arms.tabular import offline_all
from theory.batch import Batch
from theory.classes import TabularPolicies, chain
from theory.errors import InputError

RATE = 0.05  # of Adam: the most that a logit moves a step
STOPS = (5, 20, 80)  # steps after which the policy is read off

Rows = Float[np.ndarray, "K R P L"]  # a candidate of stage one times a replicate


def online_arm(
    batch: Batch, weights: Float[np.ndarray, "R N"], *, from_dpo: bool, population: bool
) -> Outcome:
    """All four steps. Raises InputError as `online_dpo` does."""
    score = two_stage(batch, weights).score
    if from_dpo:
        generator = offline_all(batch, weights).log_p
    else:
        generator = np.broadcast_to(batch.log_reference, score.shape)
    return online_dpo(batch, weights, score, generator, population=population)


def online_dpo(
    batch: Batch,
    weights: Float[np.ndarray, "R N"],
    score: Rows,
    generator: Rows,
    *,
    population: bool,
) -> Outcome:
    """DPO from a generator on its best and worst by a score, (K, R, P, L) each, a ridge a row.

    Raises InputError for fewer than 2 samples, a temperature that is not > 0, or a reference that
    gives a completion no probability.
    """
    tree, (n_ridges, replicates) = batch.tree, score.shape[:2]
    if batch.samples < 2:
        raise InputError(f"best and worst of K needs K >= 2 samples, got {batch.samples!r}")
    check_reference(batch)
    log_g = generator.reshape(-1, *generator.shape[2:])
    if population:
        tempered = tempered_leaves(tree, log_g, batch.temperature)
        order = ranked(tree, tempered, score.reshape(log_g.shape))
        total = np.tile(weights.sum(axis=1), n_ridges)
        data = (order.group, order.share, order.before, order.through, total)
    else:
        drawn = drawn_pairs(batch, score, generator)
        kept = np.tile(weights, (n_ridges, 1)) * drawn.kept
        data = distinct_pairs(tree, drawn.pairs, kept)
    shared = (np.float64(batch.beta), np.float64(batch.temperature))
    k = batch.samples if population else None
    log_p, gradient = on_all_cores(_dpo, shared, (log_g, data), (tree, k))

    def candidates_first(part: np.ndarray) -> np.ndarray:  # (K R, stops, ...) -> (K stops, R, ...)
        part = np.swapaxes(part.reshape(n_ridges, replicates, *part.shape[1:]), 1, 2)
        return np.ascontiguousarray(part.reshape(-1, *part.shape[2:]))

    log_p, gradient = candidates_first(log_p), candidates_first(gradient)
    steps = np.tile(np.asarray(STOPS, dtype=np.float64), n_ridges)
    return Outcome(
        candidates=tuple(Candidate(ridge, stop) for ridge in batch.ridges for stop in STOPS),
        log_p=np.where(tree.leaf_mask, log_p, -np.inf),
        score=batch.beta * log_p,
        gradient=gradient,
        steps=np.broadcast_to(steps[:, None], gradient.shape).copy(),
        n_parameters=sum(live_entries(tree)),
        jacobian_rank=tabular_rank(tree),
        converged=False,
    )


def drawn_pairs(batch: Batch, score: Rows, generator: Rows) -> Drawn:
    """One pair for each row of data of each (candidate, replicate), B = K R.

    A replicate's draws come from its seed, the same uniforms for every candidate.
    """
    tree, n_ridges = batch.tree, len(score)
    log_g = generator.reshape(-1, *generator.shape[2:])
    tempered = tempered_leaves(tree, log_g, batch.temperature)
    size = (batch.n_pairs, batch.samples)
    uniforms = np.stack([np.random.default_rng([seed, 11]).random(size) for seed in batch.seeds])
    prompts = batch.pairs[:, :, 0] // tree.n_leaves
    return draw_best_worst(
        tree,
        tempered,
        score.reshape(log_g.shape),
        np.tile(prompts, (n_ridges, 1)),
        np.tile(uniforms, (n_ridges, 1, 1)),
    )


# --- the loss and its steps -----------------------------------------------------------------------


def tempered_ratio(
    policies: TabularPolicies, theta: jax.Array, log_reference: jax.Array, tau: jax.Array
) -> Float[jax.Array, "P L"]:
    """log P_tau - log G_tau of every completion, nats; 0 at slots that are none.

    log_reference: log G_tau, already tempered.
    """
    mask = policies.allowed[-1].reshape(1, -1)
    log_p = tempered_chain(policies.log_policy(theta), tau)
    return jnp.where(mask, log_p, 0.0) - jnp.where(mask, log_reference, 0.0)


@jax.custom_vjp
def population_loss(
    score: Float[jax.Array, "P L"], either: Float[jax.Array, "P L L"], lost: Float[jax.Array, "P L"]
) -> jax.Array:
    """-E log sigmoid(score(best) - score(worst)), nats, from the chances C[i, j] of (best, worst).

    either = C + its transpose, lost = column sums of C: how often a completion is the worst. With
    s[i, j] = softplus(score_j - score_i), s[i, j] - s[j, i] = score_j - score_i, so that the sum of
    C s is half the sum of either s and half that of score (lost - won). The slope needs row sums of
    one symmetric table alone, which compiles to a single pass.
    """
    won = jnp.sum(either, axis=2) - lost
    behind = jax.nn.softplus(score[:, None, :] - score[:, :, None])
    return 0.5 * (jnp.sum(either * behind) + jnp.sum(score * (lost - won)))


def _population_forward(score: jax.Array, either: jax.Array, lost: jax.Array) -> tuple:
    return population_loss(score, either, lost), (score, either, lost)


def _population_backward(kept: tuple, slope: jax.Array) -> tuple:
    score, either, lost = kept
    upset = jax.nn.sigmoid(score[:, None, :] - score[:, :, None])
    return slope * (lost - jnp.sum(either * upset, axis=2)), None, None


population_loss.defvjp(_population_forward, _population_backward)


@program
def _dpo(shared: Any, mapped: Any, static: Any) -> tuple[jax.Array, jax.Array]:
    """(log P at temperature 1, largest entry of the gradient) of one row, each (stops, ...).

    static: the tree, and K where pairs come as their distribution.
    """
    (beta, tau), (log_g, data), (tree, k) = shared, mapped, static
    policies, mask = TabularPolicies.of(tree), jnp.asarray(tree.leaf_mask)
    levels = conditionals(log_g, mask, tree.vocab)
    start = jnp.concatenate([level.reshape(-1) for level in levels])
    start = jnp.where(jnp.isfinite(start), start, 0.0)
    reference = tempered_chain(levels, tau)
    if k is not None:
        group, share, before, through, total = data
        chances = (
            total
            * jnp.asarray(tree.rho0)[:, None, None]
            * pair_chances(group, share, before, through, k)
        )
        either, lost = chances + jnp.swapaxes(chances, 1, 2), jnp.sum(chances, axis=1)

    def objective(theta: dict[str, jax.Array]) -> jax.Array:
        ratio = tempered_ratio(policies, theta["logits"], reference, tau)
        if k is not None:
            return population_loss(beta * ratio, either, lost)
        return pair_loss(beta * ratio, *data)

    def read_off(theta: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        log_p = chain(policies.log_policy(theta["logits"]))
        log_p = jnp.where(mask[None], log_p, 0.0)
        return log_p, largest_entry(jax.grad(objective)(theta))

    return jax.lax.map(read_off, adam(objective, {"logits": start}, STOPS, RATE))
