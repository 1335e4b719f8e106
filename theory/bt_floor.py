"""The smallest Bradley-Terry log-loss that any reward has, where no finite reward attains it too.

At the infimum, comparisons between different strong components cost nothing: the rewards part
without bound. What is left falls into strongly connected pieces, and on each the minimiser is
finite and unique up to a shift. A piece whose pairs form a tree fits each pair's share of wins
exactly. The others are solved together, by Newton's method with the line search of Armijo.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.special import expit, log_expit, xlogy

TOLERANCE = 1e-12  # nats a comparison that the last Newton step could still have won
LONGEST_STEP = 3.0  # of a margin; beyond, the curvature is another one (it falls by e a unit)
MAX_STEPS = 200


def least_log_loss(
    low: Int[np.ndarray, " D"],
    high: Int[np.ndarray, " D"],
    low_wins: Int[np.ndarray, " D"],
    high_wins: Int[np.ndarray, " D"],
) -> float:
    """inf over rewards of the mean of -log sigmoid(r(winner) - r(loser)) (Eq. 6), nats.

    Distinct pairs of nodes {low, high} with the wins of each side, at least one pair. Exact up to
    1e-12 nats. Raises ArithmeticError if Newton's method does not get there.
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

    def value(margin: Float[np.ndarray, " D"]) -> float:
        return float(-np.dot(wins, log_expit(margin)) - np.dot(losses, log_expit(-margin)))

    total = float(np.sum(wins + losses))
    r = np.zeros_like(difference.T @ wins)
    now = value(difference @ r)
    for _ in range(MAX_STEPS):
        margin = difference @ r
        p = expit(margin)
        gradient = difference.T @ (p * losses - (1.0 - p) * wins)
        curvature = diags_array((wins + losses) * p * (1.0 - p))
        step = splu(csc_array(difference.T @ curvature @ difference)).solve(gradient)
        decrement = float(np.dot(gradient, step))
        if decrement <= 2.0 * TOLERANCE * total:
            return now
        size = min(1.0, LONGEST_STEP / float(np.abs(difference @ step).max()))
        while (new := value(difference @ (r - size * step))) > now - 1e-4 * size * decrement:
            size /= 2.0
            if size < 1e-10:
                raise ArithmeticError(f"no smaller loss along Newton's step, decrement {decrement}")
        r, now = r - size * step, new
    raise ArithmeticError(f"no Bradley-Terry minimum in {MAX_STEPS} steps of Newton's method")
