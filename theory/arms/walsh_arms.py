"""The arms of the proper-learning sweep: what each fits to one set of pairs, and how.

Completions are n bits cut into H tokens of n/H bits; one prompt. All arms minimise the same
objective on the same pairs,

    sum over pairs of -log sigmoid(score(winner) - score(loser)) + ridge / 2 |theta|^2,

and differ in what theta is and in score(xi), the reward that the arm implies:

- two_stage: score = Walsh polynomial of degree <= k (R_k); then exact soft RL. Convex: Newton.
- offline_all: score = beta log P_pi (Eq. 1), every policy: the logits of level h are Walsh
  polynomials of full degree in the bits of prefix and token, constant dropped (sum of 2^h - 1:
  502 coordinates and rank 255 at n = H = 8).
- offline_all_one_hot: the same class, one logit a (state, token): 510 coordinates at n = H = 8.
- offline_matched: as offline_all, degree <= k (120 coordinates, rank 36 at n = H = 8, k = 2).
- offline_proper: score = beta log P_pi inside Pi(R_k): pi comes from theta by soft value iteration
  and the fit sees only its per-token log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils as otu
from jaxtyping import Float

import theory._x64  # noqa: F401
from theory.errors import InputError
from theory.grid import ARM_NAMES
from theory.walsh import all_bits, features, subsets

MEMORY = 20  # curvature pairs kept by L-BFGS
MAX_STEPS = 400
TOLERANCE = 1e-3  # nats a unit of theta, on the largest entry of the summed gradient


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm on one shape. theta: (d,); both functions are traceable by JAX."""

    name: str
    n_parameters: int
    beta: float
    log_probs: Callable[[jax.Array], jax.Array]  # theta -> (L,) log P_pi, nats
    score: Callable[[jax.Array], jax.Array]  # theta -> (L,) implied reward, reward units
    basis: jax.Array | None = None  # (L, d) where score = basis @ theta
    polished: bool = False  # end with Newton steps through the policy, down to rounding


@lru_cache(maxsize=64)
def make_arm(name: str, bits: int, degree: int, horizon: int, beta: float) -> Arm:
    """The arm called `name` with reward or policy degree `degree`.

    Raises InputError for an unknown name, a horizon that does not divide bits, or a bad degree.
    """
    if name not in ARM_NAMES:
        raise InputError(f"arm {name!r} is none of {', '.join(ARM_NAMES)}")
    if horizon < 1 or bits % horizon:
        raise InputError(f"horizon {horizon} does not divide {bits} bits")
    basis = jnp.asarray(features(all_bits(bits), subsets(bits, degree)))
    if name in ("two_stage", "offline_proper"):
        vocab = 2 ** (bits // horizon)

        def soft_rl(theta: jax.Array) -> jax.Array:
            return chain(soft_policy(basis @ theta / beta, vocab))

        if name == "two_stage":
            return Arm(name, basis.shape[1], beta, soft_rl, lambda t: basis @ t, basis)
        return Arm(name, basis.shape[1], beta, soft_rl, lambda t: beta * soft_rl(t), polished=True)
    if name == "offline_all_one_hot":
        n_parameters, log_probs = one_hot_policy(bits, horizon)
    else:
        full = name == "offline_all"
        n_parameters, log_probs = walsh_policy(bits, horizon, bits if full else degree)
    return Arm(name, n_parameters, beta, log_probs, lambda t: beta * log_probs(t))


def jacobian_rank(arm: Arm, *, seed: int = 0) -> int:
    """Rank of d log P / d theta at a random point: the capacity that parameters do not show."""
    point = np.random.default_rng(seed).standard_normal(arm.n_parameters)
    return int(
        np.linalg.matrix_rank(np.asarray(jax.jit(jax.jacfwd(arm.log_probs))(jnp.asarray(point))))
    )


# --- policies over a dense tree -------------------------------------------------------------------


def soft_policy(leaf: Float[jax.Array, " L"], vocab: int) -> list[jax.Array]:
    """Soft-optimal per-token log-probabilities of leaf rewards in units of beta: (S, V) a level.

    V(s) = logsumexp_a V(s.a), log pi = V(s.a) - V(s). The traceable, maskless kernel of
    `theory.soft.soft_value_iteration` (beta = 1).
    """
    levels: list[jax.Array] = []
    values = leaf
    while values.shape[0] > 1:
        q = values.reshape(-1, vocab)
        values = jax.nn.logsumexp(q, axis=1)
        levels.insert(0, q - values[:, None])
    return levels


def chain(log_policy: list[jax.Array]) -> Float[jax.Array, " L"]:
    """log P(xi) = sum_h log pi(a_h | s_h) of every completion."""
    total = jnp.zeros(1)
    for level in log_policy:
        total = (total[:, None] + level).reshape(-1)
    return total


def walsh_policy(
    bits: int, horizon: int, degree: int
) -> tuple[int, Callable[[jax.Array], jax.Array]]:
    """(d, theta -> log P): level logits are Walsh polynomials in the bits of prefix and token."""
    seen = [bits // horizon * (h + 1) for h in range(horizon)]
    tables = [jnp.asarray(features(all_bits(n), subsets(n, min(degree, n)))) for n in seen]
    cuts = np.cumsum([table.shape[1] for table in tables])
    from_logits = logits_to_leaves(bits, horizon)

    def log_probs(theta: jax.Array) -> jax.Array:
        parts = jnp.split(theta, cuts[:-1])
        return from_logits(jnp.concatenate([t @ p for t, p in zip(tables, parts, strict=True)]))

    return int(cuts[-1]), log_probs


def one_hot_policy(bits: int, horizon: int) -> tuple[int, Callable[[jax.Array], jax.Array]]:
    """(d, theta -> log P): one logit for every (state, token)."""
    width = bits // horizon
    return sum(2 ** (width * (h + 1)) for h in range(horizon)), logits_to_leaves(bits, horizon)


def logits_to_leaves(bits: int, horizon: int) -> Callable[[jax.Array], jax.Array]:
    """Logits of every (state, token), root level first, to log P of every completion (L,)."""
    width = bits // horizon
    sizes = [2 ** (width * (h + 1)) for h in range(horizon)]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shifts = width * np.arange(horizon - 1, -1, -1)
    path = jnp.asarray(starts[None, :] + (np.arange(2**bits)[:, None] >> shifts[None, :]))

    def log_probs(logits: jax.Array) -> jax.Array:
        log_policy = jax.nn.log_softmax(logits.reshape(-1, 2**width), axis=1)
        return jnp.sum(log_policy.reshape(-1)[path], axis=1)

    return log_probs


# --- fitting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """K ridges times R replicates: parameters, the largest gradient entry there, steps taken."""

    theta: Float[np.ndarray, "K R d"]
    gradient: Float[np.ndarray, "K R"]
    steps: Float[np.ndarray, "K R"]


def pair_objective(
    arm: Arm, theta: jax.Array, pairs: jax.Array, weights: jax.Array, ridge: jax.Array
) -> jax.Array:
    """Summed Bradley-Terry loss plus ridge, nats. pairs (N, 2): winner, loser; weights (N,)."""
    score = arm.score(theta)
    margin = score[pairs[:, 0]] - score[pairs[:, 1]]
    return jnp.sum(weights * jax.nn.softplus(-margin)) + 0.5 * ridge * jnp.sum(theta * theta)


def fit(arm: Arm, pairs: np.ndarray, weights: np.ndarray, ridges: tuple[float, ...]) -> Fit:
    """Minimise the objective for every ridge and replicate, all from theta = 0.

    pairs (R, N, 2): winner and loser as leaf numbers; weights (N,), 0 = padding; ridges (K,) > 0.
    """
    if arm.basis is not None:  # Newton compiles quickly, but pays for every row
        pairs, weights = pairs[:, weights > 0], weights[weights > 0]
    solved = _solver(arm)(
        jnp.asarray(pairs), jnp.asarray(weights, jnp.float64), jnp.asarray(ridges, jnp.float64)
    )
    theta, gradient, steps = (np.asarray(part) for part in solved)
    return Fit(theta, gradient, steps)


@lru_cache(maxsize=64)
def _solver(arm: Arm) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """One compiled program a shape: ridges in turn, replicates together where that pays."""

    def one(
        pairs: jax.Array, weights: jax.Array, ridge: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def objective(theta: jax.Array) -> jax.Array:
            return pair_objective(arm, theta, pairs, weights, ridge)

        if arm.basis is not None:
            differences = arm.basis[pairs[:, 0]] - arm.basis[pairs[:, 1]]
            theta, steps = newton_linear(differences, weights, ridge)
        else:
            theta, steps = lbfgs(objective, jnp.zeros(arm.n_parameters))
        if arm.polished:
            theta, more = polish(arm, theta, pairs, weights, ridge)
            steps = steps + more
        return theta, jnp.max(jnp.abs(jax.grad(objective)(theta))), steps

    def every(
        pairs: jax.Array, weights: jax.Array, ridges: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def batch(ridge: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            if arm.basis is None:
                return jax.vmap(one, in_axes=(0, None, None))(pairs, weights, ridge)
            return jax.lax.map(
                lambda some: one(some, weights, ridge), pairs
            )  # one matmul at a time

        return jax.lax.map(batch, ridges)

    return jax.jit(every)


def newton_linear(
    differences: jax.Array, weights: jax.Array, ridge: jax.Array, max_steps: int = 60
) -> tuple[jax.Array, jax.Array]:
    """Ridge maximum likelihood of a reward linear in features: (theta, steps), to rounding.

    differences (N, d): features of the winner less those of the loser. Newton with the best of
    eight halvings a step while that lowers the objective, then full steps while the gradient falls.
    """
    fractions = 0.5 ** jnp.arange(8.0)
    eye = jnp.eye(differences.shape[1])

    def value(theta: jax.Array) -> jax.Array:
        loss = jnp.sum(weights * jax.nn.softplus(-(differences @ theta)))
        return loss + 0.5 * ridge * jnp.sum(theta * theta)

    def slope(theta: jax.Array) -> jax.Array:
        return ridge * theta - differences.T @ (weights * jax.nn.sigmoid(-(differences @ theta)))

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        theta, here, gradient, _, count = state
        p = jax.nn.sigmoid(differences @ theta)
        root = jnp.sqrt(weights * p * (1.0 - p))[:, None] * differences
        factor = jax.scipy.linalg.cho_factor(root.T @ root + ridge * eye)
        direction = jax.scipy.linalg.cho_solve(factor, gradient)
        tried = jax.vmap(lambda f: value(theta - f * direction))(fractions)
        best = jnp.argmin(tried)
        lower = tried[best] < here
        moved = theta - jnp.where(lower, fractions[best], 1.0) * direction
        gradient_there = slope(moved)
        better = lower | (jnp.max(jnp.abs(gradient_there)) < jnp.max(jnp.abs(gradient)))
        kept = jnp.where(better, moved, theta)
        gradient = jnp.where(better, gradient_there, gradient)
        return kept, jnp.where(lower, tried[best], here), gradient, ~better, count + 1

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        return ~state[3] & (state[4] < max_steps)

    start = jnp.zeros(differences.shape[1])
    first = (start, value(start), slope(start), jnp.array(False), jnp.array(0))
    state = jax.lax.while_loop(going, step, first)
    return state[0], state[4]


def polish(
    arm: Arm,
    theta: jax.Array,
    pairs: jax.Array,
    weights: jax.Array,
    ridge: jax.Array,
    max_steps: int = 12,
) -> tuple[jax.Array, jax.Array]:
    """(theta, steps): full Newton steps while the largest entry of the gradient falls.

    For scores that are linear in theta up to a shift that all completions share (an arm inside
    Pi(R_k): beta log P_pi = r - V): differences then have no second derivative, and the Hessian
    J^T W J of first derivatives of the policy's own log-probabilities is exact.
    """

    def slope(theta: jax.Array) -> jax.Array:
        return jax.grad(lambda t: pair_objective(arm, t, pairs, weights, ridge))(theta)

    def update(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        theta, gradient, _, count = state
        score, jacobian = arm.score(theta), jax.jacfwd(arm.score)(theta)
        differences = jacobian[pairs[:, 0]] - jacobian[pairs[:, 1]]
        p = jax.nn.sigmoid(score[pairs[:, 0]] - score[pairs[:, 1]])
        hessian = (differences.T * (weights * p * (1.0 - p))[None, :]) @ differences
        moved = theta - jnp.linalg.solve(hessian + ridge * jnp.eye(theta.shape[0]), gradient)
        gradient_there = slope(moved)
        better = jnp.max(jnp.abs(gradient_there)) < jnp.max(jnp.abs(gradient))
        gradient = jnp.where(better, gradient_there, gradient)
        return jnp.where(better, moved, theta), gradient, ~better, count + 1

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        return ~state[2] & (state[3] < max_steps)

    first = (theta, slope(theta), jnp.array(False), jnp.array(0))
    state = jax.lax.while_loop(going, update, first)
    return state[0], state[3]


def lbfgs(
    objective: Callable[[jax.Array], jax.Array], start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """L-BFGS with zoom line search (optax): (theta, steps).

    Stops at a gradient of TOLERANCE or after MAX_STEPS; the caller records the gradient reached.
    """
    solver = optax.lbfgs(memory_size=MEMORY)

    def update(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        theta, value, gradient, state, count = carry
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            updates, state = solver.update(
                gradient, state, theta, value=value, grad=gradient, value_fn=objective
            )
        # The line search has already evaluated the point that it accepted.
        value, gradient = otu.tree_get(state, "value"), otu.tree_get(state, "grad")
        return theta + updates, value, gradient, state, count + 1

    def going(carry: tuple[Any, ...]) -> jax.Array:
        return (jnp.max(jnp.abs(carry[2])) > TOLERANCE) & (carry[4] < MAX_STEPS)

    first = (start, *jax.value_and_grad(objective)(start), solver.init(start), jnp.array(0))
    theta, _, _, _, count = jax.lax.while_loop(going, update, first)
    return theta, count
