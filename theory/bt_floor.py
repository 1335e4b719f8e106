"""The smallest Bradley-Terry log-loss that any reward has, where no finite reward attains it too.

At the infimum, comparisons between different strong components cost nothing: the rewards part
without bound. What is left falls into strongly connected pieces, and on each the minimiser is
finite and unique up to a shift. A piece whose pairs form a tree fits each pair's share of wins
exactly. The others are solved together, by Newton's method, each step cut to
a length at which the loss is certain to fall.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.special import expit, log_expit, xlogy

TOLERANCE = 1e-12  # nats a comparison that the last Newton step could still have won
MAX_STEPS = 300
HALVINGS = 60  # of the interval in which the length of a step is sought
LARGEST_POWER = 500.0  # exp of it times any curvature is a float


def least_log_loss(
    low: Int[np.ndarray, " D"],
    high: Int[np.ndarray, " D"],
    low_wins: Int[np.ndarray, " D"],
    high_wins: Int[np.ndarray, " D"],
) -> float:
    """inf over rewards of the mean of -log sigmoid(r(winner) - r(loser)) (Eq. 6), nats.

    Distinct pairs of nodes {low, high} with the wins of each side, at least one pair. Exact up to
    1e-12 nats. Raises ArithmeticError, saying why, if Newton's method does not get there.
    """
    total = float(low_wins.sum() + high_wins.sum())
    nodes, ends = np.unique(np.stack([low, high]), return_inverse=True)
    low, high = ends.reshape(2, -1)
    n = len(nodes)
    tails = np.concatenate([low[low_wins > 0], high[high_wins > 0]])
    heads = np.concatenate([high[low_wins > 0], low[high_wins > 0]])
    edges = csr_array((np.ones(len(tails)), (tails, heads)), shape=(n, n))
    n_pieces, piece = connected_components(edges, directed=True, connection="strong")
    inside = piece[low] == piece[high]
    spare = np.bincount(piece[low[inside]], minlength=n_pieces) >= np.bincount(piece)
    cyclic = inside & spare[piece[low]]
    tree = inside & ~cyclic
    w, l = low_wins[tree].astype(np.float64), high_wins[tree].astype(np.float64)  # noqa: E741
    loss = float(np.sum(xlogy(w + l, w + l) - xlogy(w, w) - xlogy(l, l)))
    if cyclic.any():
        loss += _fit(low[cyclic], high[cyclic], low_wins[cyclic], high_wins[cyclic], piece)
    return loss / total


def _fit(
    low: Int[np.ndarray, " D"],
    high: Int[np.ndarray, " D"],
    low_wins: Int[np.ndarray, " D"],
    high_wins: Int[np.ndarray, " D"],
    piece: Int[np.ndarray, " n"],
) -> float:
    """The least summed loss on strongly connected pieces, one node of each held at 0."""
    nodes, ends = np.unique(np.stack([low, high]), return_inverse=True)
    free = np.ones(len(nodes), dtype=bool)
    free[np.unique(piece[nodes], return_index=True)[1]] = False
    column = np.cumsum(free) - 1
    rows = np.tile(np.arange(len(low)), 2)
    signs = np.repeat([1.0, -1.0], len(low))
    flat = ends.reshape(-1)
    keep = free[flat]
    shape = (len(low), int(free.sum()))
    difference = csc_array((signs[keep], (rows[keep], column[flat[keep]])), shape=shape)
    return _newton(difference, low_wins.astype(np.float64), high_wins.astype(np.float64))


def _newton(
    difference: csc_array, wins: Float[np.ndarray, " D"], losses: Float[np.ndarray, " D"]
) -> float:
    """min over r of sum wins log(1 + exp(-m)) + losses log(1 + exp(m)), m = difference @ r."""
    total = float(np.sum(wins + losses))
    r = np.zeros_like(difference.T @ wins)
    for _ in range(MAX_STEPS):
        margin = difference @ r
        p, q = expit(margin), expit(-margin)  # 1 - p would be 0 from a margin of 37 on
        gradient = difference.T @ (p * losses - q * wins)
        curvature = (wins + losses) * p * q
        step = _solve(difference, curvature, gradient)
        decrement = float(np.dot(gradient, step))
        if decrement <= 2.0 * TOLERANCE * total:
            return float(-np.dot(wins, log_expit(margin)) - np.dot(losses, log_expit(-margin)))
        r = r - _length(curvature, np.abs(difference @ step), decrement) * step
    raise ArithmeticError(f"no Bradley-Terry minimum in {MAX_STEPS} steps of Newton's method")


def _length(
    curvature: Float[np.ndarray, " D"], change: Float[np.ndarray, " D"], decrement: float
) -> float:
    """The part of Newton's step at which an upper bound of the loss is least, within (0, 1).

    The curvature of log(1 + e^m) grows by at most e per unit of m. So if the step changes margin i
    by change_i >= 0, the loss falls along a part t of it by at least
    t decrement - sum_i curvature_i (exp(t change_i) - 1 - t change_i). This is concave in t; its
    slope is 0 at the part sought. A margin of no curvature, however far it goes, does not cut it.
    """
    moved = change > 0
    pull, change = (curvature * change)[moved], change[moved]
    low, high = 0.0, min(1.0, float((LARGEST_POWER / change).min()))
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        if float(np.dot(pull, np.expm1(middle * change))) < decrement:
            low = middle
        else:
            high = middle
    return low


def _solve(
    difference: csc_array, curvature: Float[np.ndarray, " D"], gradient: Float[np.ndarray, " F"]
) -> Float[np.ndarray, " F"]:
    """Newton's step."""
    hessian = csc_array(difference.T @ diags_array(curvature) @ difference)
    try:
        step = splu(hessian).solve(gradient)
    except RuntimeError as error:
        raise ArithmeticError(f"the Bradley-Terry curvature is singular: {error}") from None
    if not np.isfinite(step).all():
        raise ArithmeticError("a step of Newton's method is not finite")
    return step
