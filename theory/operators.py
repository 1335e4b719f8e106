"""What the LLM experiments really do, as exact operators on a token tree.

Utilities u (P, L) rank completions; equal utilities are ties. Arrays are float64 over prompts; leaf
slots that are no completion have log-probability -inf and never enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.soft import Policy, check_levels
from theory.tree import TokenTree

TIE = 1e-9  # scores nearer than this are a tie in `step`, reward units
SMALLEST = float(np.finfo(np.float64).tiny)  # below it floats lose digits, and quotients overflow
MOST_DRAWS = 10**300  # of best and worst: k enters as a float64
TINY = -38.0  # below this log, exp(x) and -log(1 - exp(x)) are the same number


@dataclass(frozen=True)
class PairDistribution:
    """The pair that best-and-worst-of-K makes of K iid completions of one prompt."""

    joint: Float[np.ndarray, "P L L"]  # probability that (best, worst) = (i, j), u_i > u_j
    no_pair: Float[np.ndarray, " P"]  # probability that all K are tied, so that there is no pair


def temper(tree: TokenTree, log_policy: Policy, tau: float) -> Policy:
    """Sampling at temperature tau, token by token: pi_tau(a|s) proportional to pi(a|s)^(1/tau).

    Not P^(1/tau) over completions. tau at least 2.3e-308, the smallest normal float64. A state of
    probability 0 stays -inf everywhere. Raises InputError for a bad tau or policy, and where a
    tempered log-probability leaves float64.
    """
    if not (math.isfinite(tau) and tau > 0):
        raise InputError(f"temperature must be > 0, got {tau!r}")
    if tau < SMALLEST:
        raise InputError(f"temperature {tau!r} is below the smallest normal float64, {SMALLEST!r}")
    check_levels(tree, log_policy)
    tempered = [_temper_level(level, jnp.float64(tau)) for level in log_policy]
    for h, (before, after) in enumerate(zip(log_policy, tempered, strict=True)):
        lost = np.isfinite(before) & ~np.isfinite(after)
        if lost.any():
            x, s, a = (int(i) for i in np.argwhere(lost)[0])
            raise InputError(
                f"temperature {tau!r} takes log-probability {float(before[x, s, a])!r} out of "
                f"float64: token {tree.tokens[a]!r} at prompt {tree.prompts[x]!r}, level {h}, "
                f"state {s}"
            )
    return tempered


def temper_level(log_policy: jax.Array, tau: float | jax.Array) -> jax.Array:
    """`temper` of one level (..., V), traceable; rows that are -inf everywhere are left alone.

    The largest entry of a row is taken out before the division, so that a small tau enlarges the
    differences of a row and not the rounding of its common part.
    """
    dead = jnp.all(jnp.isneginf(log_policy), axis=-1, keepdims=True)
    live = jnp.where(dead, 0.0, log_policy)
    top = jax.lax.stop_gradient(jnp.max(live, axis=-1, keepdims=True))
    tempered = jax.nn.log_softmax((live - top) / tau, axis=-1)
    return jnp.where(dead, -jnp.inf, tempered)


_temper_level = jax.jit(temper_level)


# --- best of N, best and worst of K --------------------------------------------------------------


def best_of_n(
    tree: TokenTree, log_p: Float[AnyArray, "P L"], u: Float[AnyArray, "P L"], n: int
) -> Float[np.ndarray, "P L"]:
    """log-probability of the best of n iid completions by u; ties in proportion to P.

    P_n(tie group) = F(u)^n - F(u-)^n with F the cdf of u under P. Any n >= 1: the work does not
    depend on n, and logarithms are exact where the probabilities themselves underflow.
    Raises InputError for a bad n, probabilities that do not sum to 1 within 1e-9, or a utility
    that is not finite.
    """
    _check_count("best of n", "n", n, 1)
    logs, utility = _checked(tree, log_p, u)
    out = np.full_like(logs, -np.inf)
    for x in range(tree.n_prompts):
        leaf = logs[x, tree.leaf_mask]
        group, log_mass = _groups(leaf, utility[x, tree.leaf_mask])
        change = np.full_like(log_mass, -np.inf)
        held = np.isfinite(log_mass)
        change[held] = _log_best(log_mass[held], n) - log_mass[held]
        out[x, tree.leaf_mask] = leaf + change[group]
    return out


def best_worst_of_k(
    tree: TokenTree, log_p: Float[AnyArray, "P L"], u: Float[AnyArray, "P L"], k: int
) -> PairDistribution:
    """Distribution of (best, worst) of k iid completions by u; ties in proportion to P.

    For tie groups i > j with mass M on [j..i]: M[j,i]^k - M(j,i]^k - M[j,i)^k + M(j,i)^k; the mass
    of i = j, M_i^k, makes no pair and is returned apart. Every cell is accurate relative to its own
    size, for any k from 2 to 10^300 (see `_group_pairs`); groups of mass below 2.3e-308 get 0.
    Errors as in `best_of_n`, and a tree whose (P, L, L) table would pass its max_bytes.
    """
    _check_count("best and worst of k", "k", k, 2)
    if k > MOST_DRAWS:
        raise InputError(f"best and worst of k needs k <= 10^300, got one of {len(str(k))} digits")
    size = 8 * tree.n_prompts * tree.n_leaves**2
    if size > tree.max_bytes:
        raise InputError(
            f"a pair table of {tree.n_prompts} prompt(s) and {tree.n_leaves:,} leaves takes "
            f"{size:,} bytes; the limit is {tree.max_bytes:,}"
        )
    logs, utility = _checked(tree, log_p, u)
    joint = np.zeros((tree.n_prompts, tree.n_leaves, tree.n_leaves))
    no_pair = np.zeros(tree.n_prompts)
    for x in range(tree.n_prompts):
        leaf = logs[x, tree.leaf_mask]
        group, log_mass = _groups(leaf, utility[x, tree.leaf_mask])
        table, no_pair[x] = _group_pairs(np.exp(log_mass), k)
        finite = np.where(np.isfinite(log_mass), log_mass, 0.0)
        share = np.exp(leaf - finite[group])
        cells = table[np.ix_(group, group)] * share[:, None] * share[None, :]
        joint[x][np.ix_(tree.leaf_mask, tree.leaf_mask)] = cells
    return PairDistribution(joint, no_pair)


def _log_best(log_mass: np.ndarray, n: int) -> np.ndarray:
    """log(F^n - (F-)^n) of tie groups in ascending order, from their finite log-masses.

    F^n (1 - (1 - m/F)^n) with m the mass of the group. log F comes from the mass above where that
    is the smaller part; both powers go through the log of a rate, so that n may be any integer.
    """
    log_n = math.log(n)
    upto = np.logaddexp.accumulate(log_mass)
    above = np.append(np.logaddexp.accumulate(log_mass[::-1])[::-1][1:], -np.inf)
    above = np.minimum(above, 0.0)  # rounding may leave a mass above 1
    with np.errstate(divide="ignore", over="ignore"):
        log_f = np.where(above < -math.log(2.0), _log1mexp(above), np.minimum(upto, 0.0))
        share = np.minimum(log_mass - log_f, 0.0)
        rate = np.where(share < TINY, share, np.log(-_log1mexp(share)))
        drawn = np.where(
            log_n + rate < TINY, log_n + rate, np.log(-np.expm1(-np.exp(log_n + rate)))
        )
        return drawn - np.exp(log_n + np.log(-log_f))


def _group_pairs(mass: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Probability of (best group, worst group) of k draws, 0 unless best > worst; and of a tie.

    With a, b the shares of the two groups in M[j,i], A = (1 - a)^k, B = (1 - b)^k and
    C = (1 - a - b)^k, a cell is M[j,i]^k times 1 - A - B + C = (1 - A)(1 - B) - (AB - C). That both
    groups are drawn is at least (k - 1)/k of (1 - A)(1 - B): after the first draw of one group the
    other has k - 1 chances, or better ones. So AB - C is at most 1/(k - 1) of the cell, and the
    difference loses no more than two bits. Inner masses are sums, never differences of a cdf.
    """
    table = np.zeros((len(mass), len(mass)))
    held = np.flatnonzero(mass >= SMALLEST)
    m, size = mass[held], len(held)
    whole = np.cumsum(np.triu(np.broadcast_to(m, (size, size))), axis=1)  # [j, i]: mass of j..i
    between = np.zeros_like(whole)
    between[:-1, 1:] = np.triu(whole[1:, :-1])
    below = np.concatenate([[0.0], np.cumsum(m)[:-1]])
    above = np.append(np.cumsum(m[::-1])[::-1][1:], 0.0)
    outside = below[:, None] + above[None, :]
    best, worst, power = m[None, :], m[:, None], float(k)
    with np.errstate(divide="ignore", invalid="ignore"):  # the lower triangle means nothing
        log_whole = np.where(outside < 0.5, np.log1p(-outside), np.log(whole))
        first = _log_complement(best / whole, (worst + between) / whole)
        second = _log_complement(worst / whole, (best + between) / whole)
        third = _log_complement(
            best / (best + between) * (worst / (worst + between)),
            between / (best + between) * (whole / (worst + between)),
        )
        cell = np.expm1(power * first) * np.expm1(power * second)
        cell = cell + np.exp(power * (first + second)) * np.expm1(power * third)
        cell = np.triu(np.exp(power * log_whole) * np.maximum(cell, 0.0), 1)
    table[np.ix_(held, held)] = cell.T
    return table, math.fsum(np.exp(power * np.diag(log_whole)))


def _log_complement(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """log(1 - part) where part + rest = 1, from the smaller of the two."""
    return np.where(part < 0.5, np.log1p(-np.minimum(part, 0.5)), np.log(rest))


def _log1mexp(x: np.ndarray) -> np.ndarray:
    """log(1 - exp(x)) for x <= 0."""
    return np.where(x > -math.log(2.0), np.log(-np.expm1(x)), np.log1p(-np.exp(x)))


# --- win rates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Chances of one draw of P against one independent draw of Q, each 0-1, sum 1."""

    win: float
    tie: float
    loss: float

    @property
    def rate(self) -> float:
        """The win rate, ties half."""
        return self.win + 0.5 * self.tie


def compare(
    tree: TokenTree,
    log_p: Float[AnyArray, "P L"],
    log_q: Float[AnyArray, "P L"],
    u: Float[AnyArray, "P L"],
) -> Outcome:
    """P(u(xi) > u(xi')), P(tie) and P(u(xi) < u(xi')) for xi ~ P, xi' ~ Q given x ~ rho0."""
    p, utility = _checked(tree, log_p, u)
    q, _ = _checked(tree, log_q, u)
    parts = []
    for x, weight in enumerate(tree.weights):
        group, log_mass = _groups(p[x, tree.leaf_mask], utility[x, tree.leaf_mask])
        mass = np.exp(log_mass)
        other = np.bincount(group, weights=np.exp(q[x, tree.leaf_mask]), minlength=len(mass))
        below = np.concatenate([[0.0], np.cumsum(other)[:-1]])
        above = np.append(np.cumsum(other[::-1])[::-1][1:], 0.0)
        parts.append([weight * float(np.sum(mass * chance)) for chance in (below, other, above)])
    win, tie, loss = (math.fsum(column) for column in zip(*parts, strict=True))
    return Outcome(win, tie, loss)


def win_rate(
    tree: TokenTree,
    log_p: Float[AnyArray, "P L"],
    log_q: Float[AnyArray, "P L"],
    u: Float[AnyArray, "P L"],
) -> float:
    """P(u(xi) > u(xi')) + half P(tie) for xi ~ P, xi' ~ Q independent given x ~ rho0; 0-1."""
    return compare(tree, log_p, log_q, u).rate


def beats(u: Float[np.ndarray, "P L"], q: Float[np.ndarray, "P L"]) -> Float[np.ndarray, "P L"]:
    """Chance that each completion beats a draw of q by u, ties half; every slot a completion."""
    gap = u[:, :, None] - u[:, None, :]
    return np.einsum("pij,pj->pi", (gap > 0) + 0.5 * (gap == 0), q)


def step(gap: jax.Array) -> jax.Array:
    """1 for a won, 0 for a lost, half for a tied comparison of scores; traceable.

    Gaps within TIE are ties: compiled arithmetic may leave s - s at a rounding error, not at 0.
    """
    return jnp.where(gap > TIE, 1.0, jnp.where(gap < -TIE, 0.0, 0.5))


# --- helpers -------------------------------------------------------------------------------------


def _groups(log_p: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tie group of every completion (ascending in u) and the log-mass of each group."""
    values, group = np.unique(u, return_inverse=True)
    top = np.full(len(values), -np.inf)
    np.maximum.at(top, group, log_p)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return group, top + np.log(np.bincount(group, weights=np.exp(log_p - top[group])))


def _check_count(what: str, name: str, value: int, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise InputError(f"{what} needs a whole number {name} >= {least}, got {value!r}")


def _checked(
    tree: TokenTree, log_p: AnyArray, u: AnyArray
) -> tuple[Float[np.ndarray, "P L"], Float[np.ndarray, "P L"]]:
    """log P (normalised to rounding, -inf at no completion) and utilities, or InputError."""
    shape = (tree.n_prompts, tree.n_leaves)
    logs, utility = np.asarray(log_p, np.float64), np.asarray(u, np.float64)
    if logs.shape != shape or utility.shape != shape:
        raise InputError(f"arrays of shape {logs.shape} and {utility.shape} on a tree of {shape}")
    logs = np.where(tree.leaf_mask, logs, -np.inf)
    total = np.exp(logs).sum(axis=1)
    wrong = ~(np.abs(total - 1.0) <= 1e-9)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise InputError(f"prompt {tree.prompts[bad]!r}: probabilities sum to {total[bad]!r}")
    if not np.isfinite(utility[:, tree.leaf_mask]).all():
        x, i = (int(v) for v in np.argwhere(~np.isfinite(utility) & tree.leaf_mask)[0])
        words = " ".join(tree.leaf_tokens(i))
        raise InputError(
            f"the utility of completion {words!r} of prompt {tree.prompts[x]!r} is not finite: "
            f"{utility[x, i]!r}"
        )
    return logs - np.log(total)[:, None], utility
