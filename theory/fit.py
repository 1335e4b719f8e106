"""Maximum likelihood over a reward class: the SET of optima, never one optimiser's end point.

Rewards are fitted here in numpy on reward tables and features; policies are fitted in
`theory.fit_policy`, in JAX on their own log-probabilities, so that two roads never share a fit.

An `ArgmaxSet` is one of three: TabularOptima (all rewards: an affine set), LinearOptima (rewards
linear in features: an affine set) or FiniteOptima (a list: its tied members). They share

    empty           whether there is no finite maximiser at all
    witness         why not: a strong component that never loses, or a separating direction; or None
    dimension       of the set of policies that the members induce; None if the set is empty
    log_likelihood  of every member (Eq. 6), nats; None if the set is empty
    member(where)   one member in the class's own terms: the table r (P, L) at a step a component,
                    theta (D,) at a step a kernel direction, the place in the list at k < size.
                    Raises EmptySetError, which names the witness, if the set is empty

Existence is decided by strong components or by a linear program, never by a gradient: where no
finite maximiser exists, there is no large number that stands in for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import null_space
from scipy.optimize import linprog
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu
from scipy.special import expit

from theory.classes import FiniteRewards, LinearRewards
from theory.errors import InputError
from theory.preferences import (
    ComparisonGraph,
    PairData,
    Witness,
    bt_log_likelihood,
    comparison_graph,
)
from theory.tree import TokenTree

TIE = 1e-11  # relative: log-likelihoods closer than TIE * (comparisons + |likelihood|) are tied
SPAN = 1e10  # counts within one component may differ by this factor: float64 resolves no more
DENSE = 4000  # completions of a component up to which its Laplacian is factored as a dense matrix
ROUNDING = 1e-9  # relative: Newton's last step may move a margin by less than this
STEPS = 500  # of Newton on one component; a hard one takes some 40
KERNEL = 1e-10  # relative singular value below which a direction counts as unseen by the data


class ConvergenceError(ArithmeticError):
    """A maximiser exists but was not reached to rounding; nothing is returned in its place."""


class EmptySetError(ValueError):
    """A member of an empty set of maximisers was asked for; the message gives the witness."""


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
        """Whether no finite maximiser exists."""
        return self.r is None

    @property
    def witness(self) -> Witness | None:
        """Completions that beat others and never lose, if the set is empty."""
        return self.graph.witness

    @property
    def dimension(self) -> int | None:
        """#components - #prompts: BT and policies do not see one shift a prompt."""
        return None if self.empty else self.graph.dimension

    def member(self, steps: Float[np.ndarray, " C"]) -> Float[np.ndarray, "P L"]:
        """The maximiser r + sum_C steps[C] 1_C. Raises EmptySetError if the set is empty."""
        if self.r is None:
            raise EmptySetError(f"the set of maximisers is empty: {self.witness}")
        return self.r + self.graph.shift(steps)


def fit_tabular(tree: TokenTree, data: PairData) -> TabularOptima:
    """The set of Bradley-Terry maximisers over all rewards (Zermelo 1929, Ford 1957).

    Components are fitted one at a time, so that none is drowned by another's counts. Raises
    InputError if the counts of one differ by more than the factor SPAN, and ConvergenceError if a
    maximiser exists and is not reached to rounding.
    """
    graph = comparison_graph(tree, data)
    if not graph.exists:
        return TabularOptima(None, graph, None)
    r = np.zeros((tree.n_prompts, tree.n_leaves))
    component = graph.component[data.prompt, data.winner]
    order = np.argsort(component, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        if len(rows):
            _check_span(tree, data, rows)
            pair = np.stack([data.winner[rows], data.loser[rows]])
            leaves, local = np.unique(pair, return_inverse=True)
            r[data.prompt[rows[0]], leaves] = _strengths(local.reshape(2, -1), data.count[rows])
    return TabularOptima(r, graph, bt_log_likelihood(r, data))


def _check_span(tree: TokenTree, data: PairData, rows: np.ndarray) -> None:
    least, most = float(data.count[rows].min()), float(data.count[rows].max())
    if most > SPAN * least:
        raise InputError(
            f"prompt {tree.prompts[data.prompt[rows[0]]]!r}: the counts of one component span "
            f"{least!r} to {most!r}; float64 resolves a factor of {SPAN:g}"
        )


def _strengths(pair: Int[np.ndarray, "2 N"], count: np.ndarray) -> Float[np.ndarray, " n"]:
    """The Bradley-Terry maximiser of mean 0 on one strongly connected component.

    pair: winners and losers in 0..n-1. Newton's step with the length log(1 + d) / d, d the largest
    change of a margin, which descends from anywhere (the loss is generalised self-concordant with
    constant 1: Sun and Tran-Dinh 2019) and tends to a full step. The last node is held at 0.
    """
    winner, loser = pair
    n = int(pair.max()) + 1
    weight = count / count.sum()
    r = np.zeros(n)
    best, kept = np.inf, r
    for _ in range(STEPS):
        margin = r[winner] - r[loser]
        flow = weight * expit(-margin)
        slope = np.bincount(winner, flow, n) - np.bincount(loser, flow, n)
        bend = flow * expit(margin)
        move = np.zeros(n)
        move[:-1] = _grounded_solve(pair, bend, slope)
        if not np.isfinite(move).all():
            raise ConvergenceError("the comparisons are too uneven for float64")
        change = float(np.abs(move[winner] - move[loser]).max())
        error = change / (1.0 + float(np.abs(margin).max()))
        if error >= best and best < ROUNDING:
            break
        if error < best:
            best, kept = error, r
        r = r + (np.log1p(change) / change if change > 0 else 1.0) * move
    if not best < ROUNDING:
        raise ConvergenceError(f"Newton's last step still moves a margin by {best:.2e} (relative)")
    return kept - kept.mean()


def _grounded_solve(
    pair: Int[np.ndarray, "2 N"], bend: np.ndarray, slope: np.ndarray
) -> Float[np.ndarray, " m"]:
    """Solve the weighted Laplacian of a connected graph with its last node left out."""
    n = len(slope)
    try:
        if n <= DENSE:
            weights = np.bincount(pair[0] * n + pair[1], bend, n * n).reshape(n, n)
            weights = weights + weights.T
            laplacian = np.diag(weights.sum(axis=1)) - weights
            return np.linalg.solve(laplacian[:-1, :-1], slope[:-1])
        weights = coo_array((bend, pair), shape=(n, n)).tocsr()
        weights = weights + weights.T
        laplacian = diags_array(weights.sum(axis=1)) - weights
        return splu(laplacian.tocsc()[:-1, :-1]).solve(slope[:-1])
    except (RuntimeError, np.linalg.LinAlgError) as error:
        raise ConvergenceError(f"the comparisons are too uneven for float64: {error}") from error


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
        """Whether no finite maximiser exists."""
        return self.theta is None

    @property
    def dimension(self) -> int | None:
        """`policy_dimension`, or None if the set is empty."""
        return None if self.empty else self.policy_dimension

    def member(self, steps: Float[np.ndarray, " K"]) -> Float[np.ndarray, " D"]:
        """The maximiser theta + kernel steps. Raises EmptySetError if the set is empty."""
        if self.theta is None:
            raise EmptySetError(f"the set of maximisers is empty: {self.witness} separates")
        return self.theta + self.kernel @ np.asarray(steps, dtype=np.float64)


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
    log_likelihoods: Float[np.ndarray, " M"]  # nats, of every reward of the list

    @property
    def empty(self) -> bool:
        """False: a list that is not empty has a best member."""
        return False

    @property
    def witness(self) -> None:
        """None: the set is never empty."""
        return None

    @property
    def dimension(self) -> int:
        """0: points."""
        return 0

    @property
    def size(self) -> int:
        """Number of tied members."""
        return len(self.indices)

    @property
    def log_likelihood(self) -> float:
        """The largest of the list, nats."""
        return float(self.log_likelihoods.max())

    def member(self, k: int) -> int:
        """Place in the list of the k-th maximiser. Raises IndexError unless 0 <= k < size."""
        if not 0 <= k < self.size:
            raise IndexError(f"the list has {self.size} maximisers, there is no number {k}")
        return int(self.indices[k])


ArgmaxSet = TabularOptima | LinearOptima | FiniteOptima


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
