"""Maximum likelihood of policies, fitted through their own log-probabilities (Eqs. 7-9, DPO).

JAX on policy parameters: nothing is shared with the reward fits of `theory.fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog, minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from theory.certificate import SLACK
from theory.classes import SoftOptimalPolicies, TabularPolicies, chain
from theory.fit import ConvergenceError
from theory.preferences import PairData
from theory.soft import check_beta

RESOLVED = 1e-8  # relative: what may be left of the gradient of the rarest comparison
NULL = 1e-9  # relative curvature below which a direction counts as flat
PAD = 160  # pairs are padded with count 0 to a multiple of PAD, so that few shapes are compiled


class NoMaximiserError(ArithmeticError):
    """No policy to return: the likelihood rises without end, or existence was not decided."""


@dataclass(frozen=True)
class PolicyFit:
    """One end point of a fit: a stationary point of the objective, to rounding."""

    theta: Float[np.ndarray, " D"]
    log_p: Float[np.ndarray, "P L"]  # log-probability of every completion, nats
    value: float  # the objective there: log-likelihood, nats (or the soft return)
    gradient: float  # its norm, per comparison
    nullity: int  # flat directions of the Hessian there
    gap: float  # smallest curvature that is not flat / largest flat one (inf if none is flat)


def fit_policy(
    policies: Any,
    data: PairData,
    start: Float[np.ndarray, " D"],
    *,
    beta: float = 1.0,
    log_ref: Float[np.ndarray, "P L"] | None = None,
) -> PolicyFit:
    """Maximise Eq. 9 (or the DPO likelihood, if log_ref is given) from one start.

    sum_i count_i log sigmoid(beta (log P(xi+) - log P(xi-) - log P_ref(xi+) + log P_ref(xi-))).
    policies: a class of `theory.classes` with `log_policy(theta)`; start: its parameters.
    Raises InputError for beta <= 0, and NoMaximiserError if the class is TabularPolicies or
    SoftOptimalPolicies and the likelihood has no maximiser on it (for every reference and beta
    alike). In other classes existence is the caller's business.

    Counts within a factor of 1e5 of each other are fitted to rounding; beyond that a rare
    comparison bends the likelihood too little for the steps taken here. Raises ConvergenceError if
    the gradient left, per comparison, is above `gradient_limit`; no policy stands in for one.
    """
    check_beta(beta)
    check_maximiser(policies, data)
    margin = np.zeros(data.size)
    if log_ref is not None:
        reference = np.asarray(log_ref, dtype=np.float64)
        margin = reference[data.prompt, data.winner] - reference[data.prompt, data.loser]
    size = PAD * max(1, -(-data.size // PAD))
    arguments = (
        policies,
        _padded(data.prompt, size),
        _padded(data.winner, size),
        _padded(data.loser, size),
        _padded(data.count, size),
        _padded(margin, size),
        jnp.float64(beta),
    )
    fit = maximise(_log_likelihood, start, arguments, scale=data.total)
    limit = gradient_limit(data)
    if not fit.gradient <= beta * limit:
        raise ConvergenceError(
            f"gradient {fit.gradient:.1e} a comparison is left, limit {beta * limit:.1e}: "
            f"the counts go from {data.count.min():g} to {data.count.max():g}"
        )
    return fit


def gradient_limit(data: PairData) -> float:
    """Largest gradient, per comparison and over beta, that a fit of policies may leave.

    Never above SLACK; and below RESOLVED times the share of the rarest comparison, so that the
    gradient of that comparison is itself 0 to eight digits.
    """
    return min(SLACK, RESOLVED * float(data.count.min()) / data.total)


def check_maximiser(policies: Any, data: PairData) -> None:
    """Raise NoMaximiserError with the witness if the pairs can be separated within the class.

    TabularPolicies: completions that win against others and never lose, from the strong components
    of the comparison graph. SoftOptimalPolicies: a direction theta with D theta >= 0 and not 0, D
    the feature differences of the pairs, from a linear program. Other classes are not looked at.
    """
    if isinstance(policies, TabularPolicies):
        _check_components(policies.allowed[-1].size, data)
    elif isinstance(policies, SoftOptimalPolicies):
        phi = np.asarray(policies.phi)
        _check_features(phi[data.prompt, data.winner] - phi[data.prompt, data.loser])


def _check_components(slots: int, data: PairData) -> None:
    winner, loser = (data.prompt * slots + leaf for leaf in (data.winner, data.loser))
    nodes, place = np.unique(np.concatenate([winner, loser]), return_inverse=True)
    winner, loser = place[: data.size], place[data.size :]
    edges = coo_array((data.count, (winner, loser)), shape=(len(nodes), len(nodes)))
    _, strong = connected_components(edges.tocsr(), directed=True, connection="strong")
    crossing = strong[winner] != strong[loser]
    if crossing.any():
        beaten = strong[loser[crossing]]
        unbeaten = strong[winner[crossing]]
        source = unbeaten[~np.isin(unbeaten, beaten)][0]
        prompt, leaves = nodes[strong == source] // slots, nodes[strong == source] % slots
        raise NoMaximiserError(
            f"leaves {leaves.tolist()} of prompt {int(prompt[0])} win and never lose: their "
            "likelihood rises without end"
        )


def _check_features(d: np.ndarray) -> None:
    """max sum(d theta) with 0 <= d theta <= 1 is 0 or at least 1, by scaling."""
    rows, bounds = np.concatenate([d, -d]), np.repeat([1.0, 0.0], len(d))
    solved = linprog(-d.sum(axis=0), A_ub=rows, b_ub=bounds, bounds=(None, None), method="highs")
    if solved.status != 0:
        raise NoMaximiserError(f"existence could not be decided: {solved.message}")
    if -solved.fun > 0.5:
        raise NoMaximiserError(
            f"the direction {solved.x.tolist()} separates the pairs: no maximiser"
        )


def _padded(x: np.ndarray, size: int) -> jax.Array:
    """x (N,) continued with zeros to (size,)."""
    return jnp.asarray(np.concatenate([x, np.zeros(size - len(x), dtype=x.dtype)]))


def _log_likelihood(theta, policies, prompt, winner, loser, count, reference, beta):
    log_p = chain(policies.log_policy(theta))
    # padding rows compare a completion that may not exist: keep -inf out before subtracting
    first = jnp.where(count > 0, log_p[prompt, winner], 0.0)
    second = jnp.where(count > 0, log_p[prompt, loser], 0.0)
    return jnp.sum(count * jax.nn.log_sigmoid(beta * (first - second - reference)))


# --- a maximiser to rounding: L-BFGS, then Newton ------------------------------------------------


def maximise(
    objective: Callable[..., jax.Array],
    start: Float[np.ndarray, " D"],
    arguments: tuple,
    *,
    scale: float,
) -> PolicyFit:
    """Climb `objective(theta, policies, ...)` from `start` with L-BFGS, then polish with Newton.

    arguments[0] is the policy class. scale divides the objective (the number of comparisons).
    The end point is a stationary point; whether it is the best one is for the caller to compare.
    """

    def down(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _value_and_gradient(objective, jnp.asarray(theta), arguments)
        return -float(value) / scale, -np.asarray(slope) / scale

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 0.0, "gtol": 1e-7}
    solved = minimize(down, np.asarray(start, float), jac=True, method="L-BFGS-B", options=options)
    theta, slope, curvature = _polish(objective, solved.x, arguments, scale)
    return _evaluate(objective, theta, arguments, slope, curvature)


def _polish(
    objective: Callable, theta: np.ndarray, arguments: tuple, scale: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Newton steps along the directions with curvature, while they lower the gradient."""
    slope = np.asarray(_value_and_gradient(objective, jnp.asarray(theta), arguments)[1]) / scale
    curvature = np.asarray(_hessian(objective, jnp.asarray(theta), arguments)) / scale
    for _ in range(20):
        values, vectors = np.linalg.eigh(curvature)
        seen = np.abs(values) > NULL * np.abs(values).max(initial=1e-300)
        along = vectors[:, seen]
        trial = theta - along @ ((along.T @ slope) / values[seen])
        new = np.asarray(_value_and_gradient(objective, jnp.asarray(trial), arguments)[1]) / scale
        if not np.linalg.norm(new) < np.linalg.norm(slope):
            break
        theta, slope = trial, new
        curvature = np.asarray(_hessian(objective, jnp.asarray(theta), arguments)) / scale
    return theta, float(np.linalg.norm(slope)), curvature


def _evaluate(
    objective: Callable, theta: np.ndarray, arguments: tuple, slope: float, curvature: np.ndarray
) -> PolicyFit:
    bends = np.sort(np.abs(np.linalg.eigvalsh(curvature)))
    flat = bends <= NULL * bends.max(initial=1e-300)
    gap = float("inf")
    if flat.any() and not flat.all():
        gap = float(bends[~flat].min() / max(float(bends[flat].max()), 1e-300))
    value = float(_value_and_gradient(objective, jnp.asarray(theta), arguments)[0])
    log_p = np.asarray(_log_probs(jnp.asarray(theta), arguments[0]))
    return PolicyFit(theta, log_p, value, slope, int(flat.sum()), gap)


@partial(jax.jit, static_argnums=0)
def _value_and_gradient(objective, theta, arguments):
    return jax.value_and_grad(objective)(theta, *arguments)


@partial(jax.jit, static_argnums=0)
def _hessian(objective, theta, arguments):
    return jax.hessian(objective)(theta, *arguments)


@jax.jit
def _log_probs(theta, policies):
    return chain(policies.log_policy(theta))
