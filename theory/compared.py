"""The offline road over all policies: Eq. 9 and DPO, fitted in the logits that the data sees.

The likelihood reads the log-probabilities of compared completions alone. Over all policies nothing
is lost if the logits on their paths move and every other stays where the reference (or the uniform
distribution) has it: the conditionals on the paths, and what is left for the other tokens, still
take every value. So the fit has the size of the paths, not of the tree, and prompts are apart.

Nothing is shared with the reward fits of `theory.fit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, log_expit

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.fit import ROUNDING, ConvergenceError
from theory.preferences import ComparisonGraph, PairData
from theory.soft import check_beta, leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

MAX_WORK = 2e9  # distinct pairs times logits squared, of one prompt: a least-squares step each
STEPS = 500  # of Gauss-Newton; a hard fit takes some 30
PAD = 64  # sizes are padded to a multiple of PAD, so that few shapes are compiled


@dataclass(frozen=True)
class OfflineFit:
    """One maximiser of Eq. 9, or of the DPO likelihood; the masses of components are arbitrary."""

    log_p: Float[np.ndarray, "P L"]  # nats
    step: float  # largest change of a margin by the last step, relative to it and to beta log P
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


def fit_offline(
    tree: TokenTree,
    data: PairData,
    graph: ComparisonGraph,
    *,
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> OfflineFit:
    """Maximise Eq. 9 (or the DPO likelihood, if log_ref is given) over all policies.

    sum_i count_i log sigmoid(beta (log P(xi+) - log P(xi-) - log P_ref(xi+) + log P_ref(xi-))).
    log_ref: finite on compared completions. Raises InputError for beta <= 0, an empty set (`graph`)
    or a prompt beyond MAX_WORK (ask `offline_work` first), ConvergenceError short of the maximiser.
    """
    check_beta(beta)
    if not graph.exists:
        raise InputError(f"there is no finite maximiser to fit: {graph.witness}")
    if offline_work(tree, data) > MAX_WORK:
        raise InputError(f"the fit takes {offline_work(tree, data):.1e} operations a step")
    start = np.where(tree.leaf_mask, 0.0, -np.inf) * np.ones((tree.n_prompts, 1))
    reference = start if log_ref is None else np.asarray(log_ref, dtype=np.float64)
    policy = [np.array(level) for level in policy_from_leaves(tree, reference)]
    worst, logits = 0.0, 0
    for x in np.unique(data.prompt):
        leaves, pair, wins = _tally(data, graph, int(x))
        paths = _paths(tree, policy, int(x), leaves)
        against = reference[x, leaves]
        theta, step = _climb(paths, pair, wins, against[pair[0]] - against[pair[1]], beta)
        for h, level in enumerate(policy):
            here = paths.level == h
            level[x].reshape(-1)[paths.slot[here]] += theta[here] / beta
        worst, logits = max(worst, step), logits + len(theta)
    levels = [jnp.asarray(_normalised(level)) for level in policy]
    return OfflineFit(np.asarray(leaf_log_probs(tree, levels)), worst, logits)


def offline_work(tree: TokenTree, data: PairData) -> float:
    """Distinct pairs times logits squared of the largest prompt (see MAX_WORK)."""
    work = 0.0
    for x in np.unique(data.prompt):
        here = data.prompt == x
        leaves, pair = np.unique(np.stack([data.winner, data.loser])[:, here], return_inverse=True)
        pairs = len(np.unique(np.sort(pair.reshape(2, -1), axis=0), axis=1).T)
        table = _table(tree, leaves)
        work = max(work, pairs * float(len(np.unique(table[table >= 0]))) ** 2)
    return work


# --- one prompt ----------------------------------------------------------------------------------


def _climb(
    paths: _Paths,
    pair: Int[np.ndarray, "2 M"],
    wins: Float[np.ndarray, "2 M"],
    reference: Float[np.ndarray, " M"],
    beta: float,
) -> tuple[Float[np.ndarray, " E"], float]:
    """Damped Gauss-Newton in the logits (times beta), from the reference: parameters, last step.

    At a maximiser over all policies the slope in each log-probability is 0, so what Gauss-Newton
    leaves out of the Hessian vanishes there and the steps end quadratically.
    """
    theta = np.zeros(len(paths.state))
    arrays = _on_device(paths, beta)
    best, kept = np.inf, theta
    for _ in range(STEPS):
        log_p, jacobian = _compared(theta, len(paths.path), arrays)
        margin = beta * (log_p[pair[0]] - log_p[pair[1]] - reference)
        slope = wins[0] * expit(-margin) - wins[1] * expit(margin)
        bend = np.sqrt(wins.sum(axis=0) * expit(margin) * expit(-margin))
        rise = beta * (jacobian[pair[0]] - jacobian[pair[1]])
        if not bend.all():
            raise ConvergenceError("the policy fit left the range of float64: counts too uneven")
        move = np.linalg.lstsq(bend[:, None] * rise, slope / bend, rcond=1e-10)[0]
        change = float(np.abs(rise @ move).max())
        scale = 1.0 + float(np.abs(margin).max()) + beta * float(np.abs(log_p).max())
        error = change / scale  # beta log P is what rounds
        if error >= best and best < ROUNDING:
            break
        if error < best:
            best, kept = error, theta
        length = np.log1p(change) / change if change > 0 else 1.0
        value = _value(margin, wins)
        for _ in range(40):
            trial = theta + length * move
            new = _compared(trial, len(paths.path), arrays)[0]
            moved = beta * (new[pair[0]] - new[pair[1]] - reference)
            if _value(moved, wins) >= value - 1e-13 * (1.0 + abs(value)):
                break
            length /= 2
        theta = trial
    if not best < ROUNDING:
        raise ConvergenceError(
            f"the policy fit is not at its maximiser: its last step moves a margin by {best:.1e} "
            "(relative); the counts may be too uneven for float64"
        )
    return kept, best


def _value(margin: np.ndarray, wins: np.ndarray) -> float:
    return float(wins[0] @ log_expit(margin) + wins[1] @ log_expit(-margin))


def _compared(
    theta: np.ndarray, n: int, arrays: tuple[jax.Array, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """log P of the n compared completions (n,), nats, and its Jacobian in theta (n, E)."""
    padded = np.zeros(arrays[1].shape[0])
    padded[: len(theta)] = theta
    log_p, jacobian = _with_jacobian(jnp.asarray(padded), *arrays)
    return np.asarray(log_p)[:n], np.asarray(jacobian)[:n, : len(theta)]


@jax.jit
def _with_jacobian(theta, state, base, rest, path, beta):
    def log_probs(theta):
        logits, states = base + theta / beta, rest.shape[0]
        top = jax.ops.segment_max(logits, state, states)
        top = jax.lax.stop_gradient(jnp.maximum(top, 0.0))
        mass = jax.ops.segment_sum(jnp.exp(logits - top[state]), state, states)
        mass = mass + rest * jnp.exp(-top)
        step = logits - (top + jnp.log(mass))[state]
        return jnp.concatenate([step, jnp.zeros(1)])[path].sum(axis=1)

    return log_probs(theta), jax.jacobian(log_probs)(theta)


def _on_device(paths: _Paths, beta: float) -> tuple[jax.Array, ...]:
    """The arrays of `_with_jacobian`, padded; the last state takes the padding logits."""
    edges, states = len(paths.state), len(paths.rest)
    size, spare = _padded_size(edges), _padded_size(states + 1)
    path = np.where(paths.path == edges, size, paths.path)
    return (
        jnp.asarray(_padded(paths.state, size, spare - 1)),
        jnp.asarray(_padded(paths.base, size, 0.0)),
        jnp.asarray(_padded(paths.rest, spare, 1.0)),
        jnp.asarray(_padded(path, _padded_size(len(path)), size)),
        jnp.float64(beta),
    )


def _padded_size(n: int) -> int:
    return PAD * max(1, -(-n // PAD))


def _padded(x: np.ndarray, size: int, value: float) -> np.ndarray:
    """x continued along its first axis with `value` to `size` rows."""
    rest = np.full((size - len(x), *x.shape[1:]), value, dtype=x.dtype)
    return np.concatenate([x, rest])


# --- what the data of a prompt sees --------------------------------------------------------------


def _tally(
    data: PairData, graph: ComparisonGraph, x: int
) -> tuple[np.ndarray, Int[np.ndarray, "2 M"], Float[np.ndarray, "2 M"]]:
    """Compared leaves (C,), distinct pairs among them (2, M), wins of the first and of the second.

    Each component's counts are divided by their sum, so that none drowns another.
    """
    here = data.prompt == x
    leaves, ends = np.unique(np.stack([data.winner, data.loser])[:, here], return_inverse=True)
    ends = ends.reshape(2, -1)
    pair, place = np.unique(np.sort(ends, axis=0), axis=1, return_inverse=True)
    first = ends[0] < ends[1]
    count, place = data.count[here], place.reshape(-1)
    label = graph.component[x, data.winner[here]]
    count = count / np.bincount(label, count)[label]
    size = pair.shape[1]
    wins = [np.bincount(place[side], count[side], size) for side in (first, ~first)]
    return leaves, pair, np.stack(wins)


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
    return _Paths(level, slot, state, flat[number], rest, path)


def _normalised(level: Float[np.ndarray, "P S V"]) -> Float[np.ndarray, "P S V"]:
    """log softmax over tokens; a state of probability 0 stays -inf everywhere."""
    top = level.max(axis=2, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = top + np.log(np.exp(level - top).sum(axis=2, keepdims=True))
    return level - np.where(np.isfinite(total), total, 0.0)
