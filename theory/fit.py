"""Maximum likelihood over a reward class: the SET of optima, never one optimiser's end point.

Rewards are fitted here in numpy on reward tables and features; policies are fitted in
`theory.fit_policy`, in JAX on their own log-probabilities, so that two roads never share a fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import null_space
from scipy.optimize import linprog
from scipy.special import expit

from theory.classes import FiniteRewards, LinearRewards
from theory.preferences import ComparisonGraph, PairData, bt_log_likelihood, comparison_graph
from theory.tree import TokenTree

TIE = 1e-11  # relative: log-likelihoods closer than TIE * (comparisons + |likelihood|) are tied
KERNEL = 1e-10  # relative singular value below which a direction counts as unseen by the data


class ConvergenceError(ArithmeticError):
    """A maximiser exists but was not reached to rounding; nothing is returned in its place."""


# --- ridge-regularised logistic regression, batched ----------------------------------------------


def newton_logistic(
    d: jax.Array, w: jax.Array, ridge: float | jax.Array, iterations: int = 50
) -> tuple[jax.Array, jax.Array]:
    """Minimise sum_i w_i softplus(-d_i . theta) + 0.5 ridge |theta|^2 by damped Newton steps.

    d: (N, D) differences; w: (N,) weights >= 0 (0 pads); ridge > 0. Returns theta (D,) and the
    norm of the gradient there. Each step takes the length among 1, 1/2, ..., 1/128 that leaves the
    smallest gradient, and the iteration stops when none makes it smaller (rounding is reached).
    Pure: use it under `jax.jit`, `jax.vmap` or `jax.lax.map`.
    """
    lengths = 0.5 ** jnp.arange(8.0)
    identity = jnp.eye(d.shape[1])

    def gradient(theta: jax.Array, margin: jax.Array) -> jax.Array:
        return ridge * theta - d.T @ (w * jax.nn.sigmoid(-margin))

    def step(state: tuple) -> tuple:
        theta, slope, norm, i, _ = state
        p = jax.nn.sigmoid(d @ theta)
        curvature = (d * (w * p * (1.0 - p))[:, None]).T @ d + ridge * identity
        move = -jnp.linalg.solve(curvature, slope)
        margin, change = d @ theta, d @ move
        trials = theta[None, :] + lengths[:, None] * move[None, :]
        slopes = jax.vmap(gradient)(trials, margin[None, :] + lengths[:, None] * change[None, :])
        norms = jnp.linalg.norm(slopes, axis=1)
        best = jnp.argmin(norms)
        better = norms[best] < norm
        theta = jnp.where(better, trials[best], theta)
        slope = jnp.where(better, slopes[best], slope)
        return theta, slope, jnp.where(better, norms[best], norm), i + 1, better

    theta = jnp.zeros(d.shape[1])
    slope = gradient(theta, jnp.zeros(d.shape[0]))
    state = (theta, slope, jnp.linalg.norm(slope), jnp.int32(0), jnp.bool_(True))
    state = jax.lax.while_loop(lambda s: s[4] & (s[3] < iterations), step, state)
    return state[0], state[2]


# --- one maximiser without a ridge, minimum norm -------------------------------------------------


def _newton_minimum_norm(d: np.ndarray, count: np.ndarray) -> np.ndarray:
    """argmax sum_i count_i log sigmoid(d_i . theta) of least norm; a maximiser must exist.

    Every step is the least-squares solution of the Newton system, so theta stays in the row space.
    """
    theta = np.zeros(d.shape[1])
    slope = d.T @ (count * expit(-d @ theta))
    limit = 1e-13 * max(1.0, float(count.sum())) * max(1.0, float(np.abs(d).max(initial=0.0)))
    for _ in range(200):
        p = expit(d @ theta)
        curvature = (d * (count * p * (1.0 - p))[:, None]).T @ d
        move = np.linalg.lstsq(curvature, slope, rcond=KERNEL)[0]
        trials = [theta + 0.5**k * move for k in range(12)]
        slopes = [d.T @ (count * expit(-d @ trial)) for trial in trials]
        norms = [float(np.linalg.norm(s)) for s in slopes]
        best = int(np.argmin(norms))
        if norms[best] >= np.linalg.norm(slope):
            break
        theta, slope = trials[best], slopes[best]
    if np.linalg.norm(slope) > limit:
        raise ConvergenceError(f"gradient {np.linalg.norm(slope):.2e} is left, limit {limit:.2e}")
    return theta


# --- all rewards ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TabularOptima:
    """argmax of Eq. 6 over all rewards: r + span{1_C : C a component}; EMPTY if r is None."""

    r: Float[np.ndarray, "P L"] | None  # least norm; 0 where no completion is
    graph: ComparisonGraph  # component labels; the witness if the set is empty
    log_likelihood: float | None  # nats

    @property
    def empty(self) -> bool:
        return self.r is None

    def member(self, steps: Float[np.ndarray, " C"]) -> Float[np.ndarray, "P L"]:
        """The maximiser r + sum_C steps[C] 1_C. Raises ValueError if the set is empty."""
        if self.r is None:
            raise ValueError("the set of maximisers is empty")
        return self.r + self.graph.shift(steps)


def fit_tabular(tree: TokenTree, data: PairData) -> TabularOptima:
    """The set of Bradley-Terry maximisers over all rewards (math: Zermelo 1929, Ford 1957)."""
    graph = comparison_graph(tree, data)
    if not graph.exists:
        return TabularOptima(None, graph, None)
    first, second = (data.prompt * tree.n_leaves + leaf for leaf in (data.winner, data.loser))
    compared = np.unique(np.concatenate([first, second]))
    d = np.zeros((data.size, len(compared)))
    d[np.arange(data.size), np.searchsorted(compared, first)] = 1.0
    d[np.arange(data.size), np.searchsorted(compared, second)] = -1.0
    r = np.zeros(tree.n_prompts * tree.n_leaves)
    r[compared] = _newton_minimum_norm(d, data.count)
    r = r.reshape(tree.n_prompts, tree.n_leaves)
    return TabularOptima(r, graph, bt_log_likelihood(r, data))


# --- linear rewards ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearOptima:
    """argmax of Eq. 6 over r = Phi theta: theta + span(kernel); EMPTY if theta is None."""

    theta: Float[np.ndarray, " D"] | None  # least norm
    kernel: Float[np.ndarray, "D K"]  # orthonormal basis of ker D, D = differences of the pairs
    witness: Float[np.ndarray, " D"] | None  # if empty: D witness >= 0 and D witness != 0
    log_likelihood: float | None
    policy_dimension: int  # of the set of induced policies: dim ker D - dim {v : Phi v flat}

    @property
    def empty(self) -> bool:
        return self.theta is None


def fit_linear(tree: TokenTree, rewards: LinearRewards, data: PairData) -> LinearOptima:
    """The set of Bradley-Terry maximisers over a linear class; existence by a linear program."""
    phi = rewards.phi
    d = phi[data.prompt, data.winner] - phi[data.prompt, data.loser]
    kernel = null_space(d, rcond=KERNEL)
    inner = phi[:, tree.leaves]
    inner = (inner - inner[:, :1]).reshape(-1, phi.shape[2])
    dimension = kernel.shape[1] - null_space(inner, rcond=KERNEL).shape[1]
    witness = separating_direction(d)
    if witness is not None:
        return LinearOptima(None, kernel, witness, None, dimension)
    theta = _newton_minimum_norm(d, data.count)
    return LinearOptima(
        theta, kernel, None, bt_log_likelihood(rewards.reward(theta), data), dimension
    )


def separating_direction(d: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " D"] | None:
    """A theta with d theta >= 0 and d theta != 0, or None; a maximiser exists iff there is none.

    Linear program: max sum(d theta) with 0 <= d theta <= 1. Its value is 0, or at least 1 by
    scaling: the threshold 1/2 leaves no doubtful case.
    """
    rows = np.concatenate([d, -d])
    bounds = np.concatenate([np.ones(len(d)), np.zeros(len(d))])
    solved = linprog(-d.sum(axis=0), A_ub=rows, b_ub=bounds, bounds=(None, None), method="highs")
    if solved.status != 0:
        raise ConvergenceError(f"the linear program for existence failed: {solved.message}")
    return solved.x if -solved.fun > 0.5 else None


# --- finite lists --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FiniteOptima:
    """The argmax set of a finite list, ties included."""

    indices: Int[np.ndarray, " K"]
    log_likelihoods: Float[np.ndarray, " M"]  # nats, of every member


def fit_finite(rewards: FiniteRewards, data: PairData) -> FiniteOptima:
    """argmax of Eq. 6 over a list by enumeration; tied within TIE (see there)."""
    values = np.asarray([bt_log_likelihood(table, data) for table in rewards.tables])
    return FiniteOptima(tied_maximisers(values, data.total), values)


def tied_maximisers(values: Float[np.ndarray, " M"], total: float) -> Int[np.ndarray, " K"]:
    """Indices of values within TIE * (total + |largest|) of the largest.

    Raises ConvergenceError if a value is NaN: it has no place in an order.
    """
    if np.isnan(values).any():
        raise ConvergenceError(f"member {int(np.argmax(np.isnan(values)))} of the list is NaN")
    best = float(values.max())
    return np.flatnonzero(values >= best - TIE * (total + abs(best)))
