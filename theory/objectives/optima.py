"""The known optimum of each loss over all policies > 0, from its own closed form.

None of these descends a loss of `theory.objectives`: maximisers of a likelihood are convex fits in
numpy, the rest are formulas, so that one can judge the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import networkx as nx
import numpy as np
from jaxtyping import Float
from scipy.linalg import qr, solve_triangular
from scipy.optimize import root_scalar
from scipy.special import expit, logit, logsumexp

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.fit import ConvergenceError, fit_tabular
from theory.operators import best_of_n
from theory.preferences import ComparisonGraph, PairData, comparison_graph
from theory.soft import check_beta, check_reward, log_optimal
from theory.tree import TokenTree

LEAST_SQUARES_SPAN = 1e14  # counts of one component; margins then err by some 1e-12 at most


@dataclass(frozen=True)
class Optimum:
    """One minimiser over policies > 0 and the size of the set, or the reason why there is none."""

    log_p: Float[np.ndarray, "P L"] | None  # nats; None: there is no minimiser
    dimension: int = 0  # of the set of optimal policies; 0: log_p is the only one
    reason: str = ""  # why there is none


# --- pairs ---------------------------------------------------------------------------------------


def mle_optimum(tree: TokenTree, data: PairData, *, beta: float = 1.0) -> Optimum:
    """Of `mle_loss` and `reference_free_dpo_loss`: P proportional to exp(r / beta).

    r: a Bradley-Terry maximiser, free by one shift a component; so are the components' masses.
    """
    return _bradley_terry(tree, data, beta, None)


def dpo_optimum(
    tree: TokenTree, log_ref: Float[AnyArray, "P L"], data: PairData, *, beta: float
) -> Optimum:
    """Of `dpo_loss`: P proportional to P_ref exp(r / beta), that is P_mle P_ref (theorem 2.3).

    P_ref must be > 0 on every completion, or InputError.
    """
    check_reward(tree, log_ref)
    return _bradley_terry(tree, data, beta, log_ref)


def ipo_optimum(
    tree: TokenTree, log_ref: Float[AnyArray, "P L"], data: PairData, *, tau: float
) -> Optimum:
    """Of `ipo_loss`: P proportional to P_ref exp(h), h a weighted least-squares solution.

    A pair compared n times, won with share p, asks for a margin of (2 p - 1)/(2 tau) with weight n;
    h meets these where they agree around every cycle. It exists for any data. If both completions
    are drawn from mu, h(xi) - h(xi') = (chance that xi beats mu - chance that xi' does)/tau.
    Components are solved one at a time. Raises InputError if the counts of one differ by more than
    the factor 10^14.
    """
    check_beta(tau)
    check_reward(tree, log_ref)
    graph = comparison_graph(tree, data)
    h = np.zeros((tree.n_prompts, tree.n_leaves))
    component = graph.component[data.prompt, data.winner]
    order = np.argsort(component, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        x, count = data.prompt[rows[0]], data.count[rows]
        if count.max() > LEAST_SQUARES_SPAN * count.min():
            raise InputError(
                f"prompt {tree.prompts[x]!r}: the counts of one component span "
                f"{float(count.min())!r} to {float(count.max())!r}; the limit is a factor "
                f"{LEAST_SQUARES_SPAN:g}"
            )
        pair = np.stack([data.winner[rows], data.loser[rows]])
        leaves, local = np.unique(pair, return_inverse=True)
        h[x, leaves] = _least_squares(local.reshape(2, -1), count) / (2.0 * tau)
    return Optimum(log_optimal(tree, h, 1.0, log_ref), graph.dimension)


def simpo_optimum(
    tree: TokenTree,
    data: PairData,
    length: Float[AnyArray, " L"],
    *,
    beta: float,
    gamma: float,
) -> Optimum:
    """Of `simpo_loss`: log P = (|xi|/beta)(s(xi) + c), s the fit of the margins, c for each prompt.

    s minimises sum softplus(gamma - margin of s), convex, with a minimiser iff Bradley-Terry has
    one. Any s is met by a policy: sum_xi exp((|xi|/beta)(s(xi) + c)) rises in c from 0 to infinity,
    so exactly one c makes it 1; with several components each has its own shift, and all but one a
    prompt are free. For one pair won with share p, u = exp(margin) solves
    (1 - p) g u^2 - (2 p - 1) u - p g = 0 with g = exp(-gamma): the logit of p only at gamma = 0.
    Where all lengths are n: P proportional to exp(n s / beta).
    """
    check_beta(beta)
    graph = comparison_graph(tree, data)
    if not graph.exists:
        return Optimum(None, reason=_separated(tree, graph))
    d, compared = _differences(tree, data)
    s = np.zeros(tree.n_prompts * tree.n_leaves)
    s[compared] = _offset_fit(d, data.count, gamma)
    log_p = np.full((tree.n_prompts, tree.n_leaves), -np.inf)
    per_nat = np.asarray(length, dtype=np.float64)[tree.leaves] / beta
    for x, row in enumerate(s.reshape(tree.n_prompts, -1)[:, tree.leaves]):
        log_p[x, tree.leaves] = per_nat * (row + _normalising_shift(row, per_nat))
    return Optimum(log_p, graph.dimension)


def slic_zero_loss(tree: TokenTree, data: PairData, *, delta: float) -> Optimum:
    """A policy at which the hinge of `slic_loss` is 0; there is one iff no comparison cycle exists.

    On a cycle the margins sum to 0 and cannot all be delta > 0. Without one, delta times the
    longest chain of wins below a completion is a table of margins >= delta; the set is full.
    """
    check_beta(delta)
    wins = nx.DiGraph()
    wins.add_edges_from(
        ((x, i), (x, j)) for x, i, j in zip(data.prompt, data.winner, data.loser, strict=True)
    )
    if not nx.is_directed_acyclic_graph(wins):
        cycle = [edge[0] for edge in nx.find_cycle(wins)]
        words = ", ".join(repr(" ".join(tree.leaf_tokens(int(leaf)))) for _, leaf in cycle)
        prompt = tree.prompts[int(cycle[0][0])]
        return Optimum(None, reason=f"at prompt {prompt!r} wins run in a cycle: {words}")
    table = np.zeros((tree.n_prompts, tree.n_leaves))
    for depth, nodes in enumerate(nx.topological_generations(wins.reverse(copy=False))):
        for node in nodes:
            table[node] = delta * depth
    return Optimum(log_optimal(tree, table), tree.n_prompts * (len(tree.leaves) - 1))


def slic_optimum_of_two(
    share: float, *, delta: float, sft_weight: float = 0.0, target: float = 0.5
) -> tuple[float, float]:
    """Margins m = log P(a) - log P(b) that minimise `slic_loss` on two completions: [low, high].

    share: of comparisons won by a; target: P_sft(a). The slope -share [m < delta] + (1 - share)
    [m > -delta] + sft_weight (sigmoid(m) - target) only rises; the minimisers are where it is 0 or
    changes sign: in one of three pieces or at the kinks +-delta.
    """
    check_beta(delta)
    if not (0.0 <= share <= 1.0 and 0.0 < target < 1.0 and sft_weight >= 0.0):
        raise InputError(f"share {share!r}, target {target!r}, sft_weight {sft_weight!r}")
    pieces = (
        (-math.inf, -delta, -share),
        (-delta, delta, 1.0 - 2.0 * share),
        (delta, math.inf, 1.0 - share),
    )
    found = []
    for low, high, hinge in pieces:
        if sft_weight == 0.0:
            found += [(low, high)] if hinge == 0.0 else []
            continue
        chance = target - hinge / sft_weight
        if 0.0 < chance < 1.0 and low < float(logit(chance)) < high:
            found.append((float(logit(chance)), float(logit(chance))))
    if found:
        return found[0]
    left = pieces[1][2] + sft_weight * (float(expit(-delta)) - target)  # slope just above -delta
    return (-delta, -delta) if left >= 0.0 else (delta, delta)


# --- rewards and targets -------------------------------------------------------------------------


def rlhf_optimum(
    tree: TokenTree,
    reward: Float[AnyArray, "P L"],
    *,
    beta: float,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> Optimum:
    """Of `rlhf_loss`: P*_r (Eq. 11), or P*_r . P_ref normalised for each prompt (Lemma B.1)."""
    return _attained(tree, log_optimal(tree, reward, beta, log_ref), "the reference")


def rwr_optimum(
    tree: TokenTree,
    log_data: Float[AnyArray, "P L"],
    reward: Float[AnyArray, "P L"],
    *,
    beta: float,
) -> Optimum:
    """Of `rwr_loss`: P_data exp(r / beta), normalised: RLHF's optimum with reference P_data."""
    return _attained(tree, log_optimal(tree, reward, beta, log_data), "P_data")


def best_of_n_sft_optimum(
    tree: TokenTree, log_data: Float[AnyArray, "P L"], utility: Float[AnyArray, "P L"], *, n: int
) -> Optimum:
    """Of `best_of_n_sft_loss`: the best-of-n distribution."""
    return _attained(tree, best_of_n(tree, log_data, utility, n), "P_data")


def policy_gradient_optimum(tree: TokenTree, reward: Float[AnyArray, "P L"]) -> Optimum:
    """Of `policy_gradient_loss`: every policy if r is constant at each prompt, else none.

    E[r] < E_x max r for every policy > 0, and mass on the best completions comes arbitrarily near.
    """
    table = check_reward(tree, reward)[:, tree.leaves]
    spread = table.max(axis=1) - table.min(axis=1)
    if (spread > 0).any():
        bad = tree.prompts[int(np.argmax(spread))]
        reason = f"the largest reward at prompt {bad!r} is approached and not attained"
        return Optimum(None, reason=reason)
    zero = np.zeros((tree.n_prompts, tree.n_leaves))
    return Optimum(log_optimal(tree, zero), tree.n_prompts * (len(tree.leaves) - 1))


# --- helpers -------------------------------------------------------------------------------------


def _bradley_terry(
    tree: TokenTree, data: PairData, beta: float, log_ref: AnyArray | None
) -> Optimum:
    check_beta(beta)
    fit = fit_tabular(tree, data)
    if fit.r is None:
        return Optimum(None, reason=_separated(tree, fit.graph))
    return Optimum(log_optimal(tree, fit.r, beta, log_ref), fit.graph.dimension)


def _separated(tree: TokenTree, graph: ComparisonGraph) -> str:
    if graph.witness is None:
        raise ValueError("the comparisons have a maximiser")
    words = ", ".join(repr(" ".join(tree.leaf_tokens(leaf))) for leaf in graph.witness.leaves)
    return f"at prompt {tree.prompts[graph.witness.prompt]!r} these win and never lose: {words}"


def _attained(tree: TokenTree, log_p: np.ndarray, what: str) -> Optimum:
    """log_p as an optimum, or none where it is 0 on a completion: only approached there."""
    gone = np.isneginf(log_p) & tree.leaf_mask
    if gone.any():
        x, leaf = (int(i) for i in np.argwhere(gone)[0])
        words = " ".join(tree.leaf_tokens(leaf))
        place = f"{words!r} of prompt {tree.prompts[x]!r}"
        return Optimum(None, reason=f"{what} is 0 on {place}: approached and not attained")
    return Optimum(log_p)


def _least_squares(pair: np.ndarray, count: np.ndarray) -> np.ndarray:
    """argmin sum count (h(winner) - h(loser) - 1)^2 of mean 0 on one connected component.

    Steps with a QR factor of the weighted differences, the last node held at 0, from a slope that
    is computed in fractions: heavy comparisons that disagree around a cycle leave large terms that
    cancel, and in float64 their rounding drowns the light comparisons.
    """
    n = int(pair.max()) + 1
    order = np.argsort(-count, kind="stable")
    rows, root = np.arange(len(count)), np.sqrt(count[order] / count.max())
    d = np.zeros((len(count), n))
    d[rows, pair[0, order]], d[rows, pair[1, order]] = root, -root
    factor, pivot = cast(tuple[np.ndarray, np.ndarray], qr(d[:, :-1], mode="r", pivoting=True))
    factor = factor[: n - 1]
    h, change = np.zeros(n), math.inf
    for _ in range(50):
        slope = _exact_slope(pair, count, h)[pivot]
        move = np.zeros(n)
        move[pivot] = solve_triangular(factor, solve_triangular(factor, slope, trans=1))
        if not np.abs(move).max() < 0.5 * change:
            break
        h, change = h + move, float(np.abs(move).max())
    if not change <= 1e-12 * (1.0 + float(np.abs(h).max())):
        raise ConvergenceError(f"the last step of the least squares still moves by {change:.2e}")
    return h - h.mean()


def _exact_slope(pair: np.ndarray, count: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Minus half the slope of `_least_squares` in h, over the largest count; rounded once."""
    at, slope = [Fraction(value) for value in h.tolist()], [Fraction(0)] * len(h)
    for i, j, weight in zip(*pair.tolist(), count.tolist(), strict=True):
        pull = Fraction(weight) * (1 - at[i] + at[j])
        slope[i] += pull
        slope[j] -= pull
    top = Fraction(float(count.max()))
    return np.asarray([float(value / top) for value in slope])


def _differences(tree: TokenTree, data: PairData) -> tuple[np.ndarray, np.ndarray]:
    """+1 winner, -1 loser, one row a comparison (N, C); and the C compared flat slots."""
    first, second = (data.prompt * tree.n_leaves + leaf for leaf in (data.winner, data.loser))
    compared = np.unique(np.concatenate([first, second]))
    d, rows = np.zeros((data.size, len(compared))), np.arange(data.size)
    d[rows, np.searchsorted(compared, first)] = 1.0
    d[rows, np.searchsorted(compared, second)] = -1.0
    return d, compared


def _offset_fit(d: np.ndarray, count: np.ndarray, gamma: float) -> np.ndarray:
    """argmin sum count softplus(gamma - d s) of least norm, by damped Newton; it must exist."""
    s = np.zeros(d.shape[1])
    slope = d.T @ (count * expit(gamma - d @ s))
    for _ in range(200):
        p = expit(gamma - d @ s)
        curvature = (d * (count * p * (1.0 - p))[:, None]).T @ d
        move = np.linalg.lstsq(curvature, slope, rcond=1e-10)[0]
        trials = [s + 0.5**k * move for k in range(12)]
        slopes = [d.T @ (count * expit(gamma - d @ trial)) for trial in trials]
        norms = [float(np.linalg.norm(each)) for each in slopes]
        best = int(np.argmin(norms))
        if norms[best] >= np.linalg.norm(slope):
            break
        s, slope = trials[best], slopes[best]
    limit = 1e-13 * max(1.0, float(count.sum()))
    if np.linalg.norm(slope) > limit:
        raise ConvergenceError(f"gradient {np.linalg.norm(slope):.2e} is left, limit {limit:.2e}")
    return s


def _normalising_shift(s: np.ndarray, per_nat: np.ndarray) -> float:
    """The c with sum exp(per_nat (s + c)) = 1; per_nat > 0."""
    high = -float(s.max())
    low = high - math.log(len(s)) / float(per_nat.min())
    if len(s) == 1:
        return high

    def log_total(c: float) -> float:
        return float(np.asarray(logsumexp(per_nat * (s + c))))

    return float(root_scalar(log_total, bracket=(low, high), method="brentq", xtol=1e-15).root)
