"""The offline road over all policies: Eq. 9 and DPO, fitted in the logits that the data sees.

The likelihood reads the log-probabilities of compared completions alone. Over all policies nothing
is lost if the logits on their paths move and every other stays where the reference (or the uniform
distribution) has it: the conditionals on the paths, and what is left for the other tokens, still
take every value. So the fit has the size of the paths, not of the tree, and prompts are apart.

Nothing is shared with the reward fits of `theory.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import lstsq
from scipy.special import expit

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.fit import ROUNDING, ConvergenceError
from theory.preferences import ComparisonGraph, PairData
from theory.soft import check_beta, leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

MAX_WORK = 1e11  # operations of a whole fit: about a minute
USUAL_STEPS = 20  # of a fit, for the estimate of its work
OVERHEAD = 3e5  # operations a step takes however small its prompt
STEPS = 500  # of Newton; a hard fit takes some 60
EPS = float(np.finfo(np.float64).eps)
CARRY = 12  # least-squares steps that carry the logits along one step of Newton
CLOSE = 1e-6  # relative: how near they come to its end; the next step starts from where they are
RANK = 1e-13  # relative; the differences of the compared completions have full rank, far above


@dataclass(frozen=True)
class OfflineFit:
    """One maximiser of Eq. 9, or of the DPO likelihood; the masses of components are arbitrary."""

    log_p: Float[np.ndarray, "P L"]  # nats
    step: float  # the larger of the last step of a margin and the largest net flow, both relative
    logits: int  # how many were fitted


@dataclass(frozen=True)
class _Paths:
    """The compared completions of one prompt: C of them, on E logits at S states."""

    level: Int[np.ndarray, " E"]
    slot: Int[np.ndarray, " E"]  # state * V + token within its level
    state: Int[np.ndarray, " E"]  # place of its state in `rest`
    base: Float[np.ndarray, " E"]  # log-probability of the token at theta = 0
    rest: Float[np.ndarray, " S"]  # probability of the tokens on no path there
    path: Int[np.ndarray, "C H"]  # logits of a completion; E where the token is forced
    on: Float[np.ndarray, "C E"]  # 1 where a logit is on the path of a completion
    visits: Float[np.ndarray, "C S"]  # 1 where a state is


@dataclass(frozen=True)
class _Duels:
    """What was counted at one prompt; the counts of each component sum to 1."""

    pair: Int[np.ndarray, "2 M"]  # distinct pairs of completions, in 0..C-1
    wins: Float[np.ndarray, "2 M"]  # of the first and of the second
    ground: Int[np.ndarray, " C"]  # the completion whose score is held, -1 at itself


def fit_offline(
    tree: TokenTree,
    data: PairData,
    graph: ComparisonGraph,
    *,
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
    track: Callable[[list[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> OfflineFit:
    """Maximise Eq. 9 (or the DPO likelihood, if log_ref is given) over all policies.

    sum_i count_i log sigmoid(beta (log P(xi+) - log P(xi-) - log P_ref(xi+) + log P_ref(xi-))).
    log_ref: finite on compared completions. track: passes the prompts on, one after the other, and
    may show how many are done. Raises InputError for beta <= 0, an empty set (`graph`) or work
    beyond MAX_WORK (ask `offline_work` first), ConvergenceError short of the maximiser: at every
    compared completion the net flow must be within ROUNDING of the gross flow, and so must Newton's
    last step of the margins, or within what beta log P rounds to.
    """
    check_beta(beta)
    if not graph.exists:
        raise InputError(f"there is no finite maximiser to fit: {graph.witness}")
    work = offline_work(tree, data)
    if work > MAX_WORK:
        raise InputError(f"the policy fit takes some {work:.1e} operations")
    start = np.where(tree.leaf_mask, 0.0, -np.inf) * np.ones((tree.n_prompts, 1))
    reference = start if log_ref is None else np.asarray(log_ref, dtype=np.float64)
    policy = [np.array(level) for level in policy_from_leaves(tree, reference)]
    worst, logits = 0.0, 0
    for rows in track(_rows_by_prompt(data)):
        x = int(data.prompt[rows[0]])
        leaves, duels = _tally(data, graph, rows)
        paths = _paths(tree, policy, x, leaves)
        theta, step = _climb(paths, duels, reference[x, leaves], beta)
        for h, level in enumerate(policy):
            here = paths.level == h
            level[x].reshape(-1)[paths.slot[here]] += theta[here] / beta
        worst, logits = max(worst, step), logits + len(theta)
    levels = [jnp.asarray(_normalised(level)) for level in policy]
    return OfflineFit(np.asarray(leaf_log_probs(tree, levels)), worst, logits)


def offline_work(tree: TokenTree, data: PairData) -> float:
    """Operations that `fit_offline` takes, about: C^2 (C + E) a step of C completions, E logits."""
    work = 0.0
    for rows in _rows_by_prompt(data):
        leaves = np.unique(np.concatenate([data.winner[rows], data.loser[rows]]))
        table = _table(tree, leaves)
        logits = len(np.unique(table[table >= 0]))
        work += USUAL_STEPS * (OVERHEAD + float(len(leaves)) ** 2 * (len(leaves) + logits))
    return work


def _rows_by_prompt(data: PairData) -> list[np.ndarray]:
    order = np.argsort(data.prompt, kind="stable")
    cuts = np.flatnonzero(np.diff(data.prompt[order])) + 1
    return [rows for rows in np.split(order, cuts) if len(rows)]


# --- one prompt ----------------------------------------------------------------------------------


def _climb(
    paths: _Paths, duels: _Duels, reference: Float[np.ndarray, " C"], beta: float
) -> tuple[Float[np.ndarray, " E"], float]:
    """Damped Newton from the reference, in the logits (times beta): parameters, error.

    Newton's step in beta log P solves a Laplacian of flows; the logits follow it (`_carried`). Its
    length log(1 + d) / d, d the largest change of a margin, ascends from anywhere (the likelihood
    is generalised self-concordant: Sun and Tran-Dinh 2019) and tends to a full step.
    """
    first, second = duels.pair
    theta = np.zeros(len(paths.state))
    best, kept = np.inf, theta
    for _ in range(STEPS):
        log_p, _ = _log_probs(theta / beta, paths)
        scores = beta * (log_p - reference)
        margin = scores[first] - scores[second]
        rounding = EPS * (1.0 + float(np.abs(margin).max()) + beta * float(np.abs(log_p).max()))
        target, net = _newton(margin, duels)
        change = float(np.abs(target[first] - target[second]).max())
        # beta log P is what rounds: no flow is known better, and no margin
        error = max(change / (rounding / EPS), net / (1.0 + 8.0 * rounding / ROUNDING))
        if not np.isfinite(error):
            raise ConvergenceError("the policy fit left the range of float64: counts too uneven")
        if error >= best and best < ROUNDING:
            break
        if error < best:
            best, kept = error, theta
        length = np.log1p(change) / change if change > 0 else 1.0
        theta = _carried(theta, beta * log_p + length * target, paths, duels, beta)
    if not best < ROUNDING:
        raise ConvergenceError(
            f"the policy fit is not at its maximiser: a flow or a step of {best:.1e} (relative) is "
            "left; the counts may be too uneven for float64"
        )
    return kept, best


def _carried(
    theta: Float[np.ndarray, " E"],
    goal: Float[np.ndarray, " C"],
    paths: _Paths,
    duels: _Duels,
    beta: float,
) -> Float[np.ndarray, " E"]:
    """The logits moved until beta log P differs from `goal` by a constant a component, nearly.

    One least-squares step at least; more where the step is long, up to CARRY.
    """
    inside = duels.ground >= 0
    ground = duels.ground[inside]
    goal = goal[inside] - goal[ground]
    for i in range(CARRY):
        log_p, rise = _log_probs(theta / beta, paths)
        miss = goal - beta * (log_p[inside] - log_p[ground])
        if not np.isfinite(miss).all():
            raise ConvergenceError("the policy fit left the range of float64: counts too uneven")
        if i and np.abs(miss).max() <= CLOSE * (1.0 + np.abs(goal).max()):
            break
        rows = rise[inside] - rise[ground]
        solved = lstsq(rows, miss, cond=RANK, lapack_driver="gelsy", check_finite=False)
        assert solved is not None  # its stub allows None
        theta = theta + solved[0]
    return theta


def _newton(
    margin: Float[np.ndarray, " M"], duels: _Duels
) -> tuple[Float[np.ndarray, " C"], float]:
    """Newton's step in the scores beta log P, 0 at each ground; largest net flow, relative.

    A duel's flow to its winner is wins * sigmoid(-margin); at a maximiser each completion's flows
    cancel. The relative net flow is |in - out| / (in + out).
    """
    (first, second), n = duels.pair, len(duels.ground)
    gain, loss = duels.wins[0] * expit(-margin), duels.wins[1] * expit(margin)
    slope = np.bincount(first, gain - loss, n) - np.bincount(second, gain - loss, n)
    gross = np.bincount(first, gain + loss, n) + np.bincount(second, gain + loss, n)
    with np.errstate(invalid="ignore"):  # flows that underflow to 0: NaN, which is refused
        net = float(np.max(np.abs(slope) / gross))
    bend = duels.wins.sum(axis=0) * expit(margin) * expit(-margin)
    weights = np.bincount(first * n + second, bend, n * n).reshape(n, n)
    weights += weights.T
    laplacian = np.diag(weights.sum(axis=1)) - weights
    inside = duels.ground >= 0
    step = np.zeros(n)
    try:
        step[inside] = np.linalg.solve(laplacian[np.ix_(inside, inside)], slope[inside])
    except np.linalg.LinAlgError as error:
        raise ConvergenceError("the policy fit left the range of float64") from error
    return step, net


def _log_probs(
    logits: Float[np.ndarray, " E"], paths: _Paths
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, "C E"]]:
    """log P of the compared completions, nats, and its Jacobian in logits added to `base`."""
    states, moved = len(paths.rest), paths.base + logits
    top = np.zeros(states)
    np.maximum.at(top, paths.state, moved)
    mass = np.bincount(paths.state, np.exp(moved - top[paths.state]), states)
    log_mass = top + np.log(mass + paths.rest * np.exp(-top))
    step = moved - log_mass[paths.state]
    log_p = np.append(step, 0.0)[paths.path].sum(axis=1)
    return log_p, paths.on - paths.visits[:, paths.state] * np.exp(step)


# --- what the data of a prompt sees --------------------------------------------------------------


def _tally(
    data: PairData, graph: ComparisonGraph, rows: Int[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " C"], _Duels]:
    """Compared leaves of the prompt that `rows` belong to, and what was counted.

    Each component's counts are divided by their sum, so that none drowns another.
    """
    ends = np.stack([data.winner, data.loser])[:, rows]
    leaves, ends = np.unique(ends, return_inverse=True)
    ends = ends.reshape(2, -1)
    pair, place = np.unique(np.sort(ends, axis=0), axis=1, return_inverse=True)
    forward = ends[0] < ends[1]
    count, place = data.count[rows], place.reshape(-1)
    labels = graph.component[data.prompt[rows[0]], leaves]
    _, first, local = np.unique(labels, return_index=True, return_inverse=True)
    local = local.reshape(-1)
    part = local[ends[0]]
    count = count / np.bincount(part, count)[part]
    size = pair.shape[1]
    wins = [np.bincount(place[side], count[side], size) for side in (forward, ~forward)]
    ground = np.where(first[local] == np.arange(len(leaves)), -1, first[local])
    return leaves, _Duels(pair, np.stack(wins), ground)


def _table(tree: TokenTree, leaves: np.ndarray) -> Int[np.ndarray, "C H"]:
    """Logits of each leaf's path, numbered level by level; -1 where the token is forced."""
    columns, start = [], 0
    for h, mask in enumerate(tree.allowed_levels):
        slot = leaves // tree.vocab ** (tree.horizon - h - 1)
        free = mask.sum(axis=1)[slot // tree.vocab] > 1
        columns.append(np.where(free, start + slot, -1))
        start += mask.size
    return np.stack(columns, axis=1)


def _paths(tree: TokenTree, policy: list[np.ndarray], x: int, leaves: np.ndarray) -> _Paths:
    table = _table(tree, leaves)
    number = np.unique(table[table >= 0])
    path = np.where(table >= 0, np.searchsorted(number, table), len(number))
    starts = np.cumsum([0] + [mask.size for mask in tree.allowed_levels])
    level = np.searchsorted(starts, number, side="right") - 1
    _, state = np.unique(number // tree.vocab, return_inverse=True)
    slot = number - starts[level]
    flat = np.concatenate([step[x].reshape(-1) for step in policy])
    row = np.unique(number // tree.vocab)[:, None] * tree.vocab + np.arange(tree.vocab)
    rest = np.where(np.isin(row, number), 0.0, np.exp(flat[row])).sum(axis=1)
    on, visits = np.zeros((len(path), len(number) + 1)), np.zeros((len(path), len(rest) + 1))
    np.put_along_axis(on, path, 1.0, axis=1)
    np.put_along_axis(visits, np.append(state, len(rest))[path], 1.0, axis=1)
    return _Paths(level, slot, state, flat[number], rest, path, on[:, :-1], visits[:, :-1])


def _normalised(level: Float[np.ndarray, "P S V"]) -> Float[np.ndarray, "P S V"]:
    """log softmax over tokens; a state of probability 0 stays -inf everywhere."""
    top = level.max(axis=2, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = top + np.log(np.exp(level - top).sum(axis=2, keepdims=True))
    return level - np.where(np.isfinite(total), total, 0.0)
