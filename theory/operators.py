"""What the LLM experiments really do, as exact operators on a token tree.

Utilities u (P, L) rank completions; equal utilities are ties. Arrays are float64 over prompts; leaf
slots that are no completion have log-probability -inf and never enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.soft import Policy, check_levels
from theory.tree import TokenTree

TIE = 1e-9  # scores nearer than this are a tie in `step`, reward units


@dataclass(frozen=True)
class PairDistribution:
    """The pair that best-and-worst-of-K makes of K iid completions of one prompt."""

    joint: Float[np.ndarray, "P L L"]  # probability that (best, worst) = (i, j), u_i > u_j
    no_pair: Float[np.ndarray, " P"]  # probability that all K are tied, so that there is no pair


def temper(tree: TokenTree, log_policy: Policy, tau: float) -> Policy:
    """Sampling at temperature tau, token by token: pi_tau(a|s) proportional to pi(a|s)^(1/tau).

    Not P^(1/tau) over completions. tau > 0. A state of probability 0 stays -inf everywhere.
    """
    if not (math.isfinite(tau) and tau > 0):
        raise InputError(f"temperature must be > 0, got {tau!r}")
    check_levels(tree, log_policy)
    return [temper_level(level, tau) for level in log_policy]


def temper_level(log_policy: jax.Array, tau: float) -> jax.Array:
    """`temper` of one level (..., V), traceable; rows that are -inf everywhere are left alone."""
    dead = jnp.all(jnp.isneginf(log_policy), axis=-1, keepdims=True)
    tempered = jax.nn.log_softmax(jnp.where(dead, 0.0, log_policy / tau), axis=-1)
    return jnp.where(dead, -jnp.inf, tempered)


def best_of_n(
    tree: TokenTree, log_p: Float[AnyArray, "P L"], u: Float[AnyArray, "P L"], n: int
) -> Float[np.ndarray, "P L"]:
    """log-probability of the best of n iid completions by u; ties in proportion to P.

    P_n(tie group) = F(u)^n - F(u-)^n with F the cdf of u under P.
    """
    if n < 1:
        raise InputError(f"best of n needs n >= 1, got {n}")
    p, utility = _checked(tree, log_p, u)
    out = np.full_like(p, -np.inf)
    for x in range(tree.n_prompts):
        group, mass = _groups(p[x], utility[x], tree.leaf_mask)
        upto = np.minimum(np.cumsum(mass), 1.0)
        below = np.concatenate([[0.0], upto[:-1]])
        # F^n - (F-)^n = (F - F-) sum_k F^(n-1-k) (F-)^k keeps small groups exact.
        powers = np.sum([upto ** (n - 1 - k) * below**k for k in range(n)], axis=0)
        with np.errstate(divide="ignore"):
            out[x, tree.leaf_mask] = np.log(p[x, tree.leaf_mask] * powers[group])
    return out


def best_worst_of_k(
    tree: TokenTree, log_p: Float[AnyArray, "P L"], u: Float[AnyArray, "P L"], k: int
) -> PairDistribution:
    """Distribution of (best, worst) of k iid completions by u; ties in proportion to P.

    For tie groups i > j with mass M on [j..i]: M[j,i]^k - M(j,i]^k - M[j,i)^k + M(j,i)^k; the mass
    of i = j, M_i^k, makes no pair and is returned apart. Absolute error about 1e-16.
    """
    if k < 2:
        raise InputError(f"best and worst of k needs k >= 2, got {k}")
    p, utility = _checked(tree, log_p, u)
    joint = np.zeros((tree.n_prompts, tree.n_leaves, tree.n_leaves))
    no_pair = np.zeros(tree.n_prompts)
    for x in range(tree.n_prompts):
        group, mass = _groups(p[x], utility[x], tree.leaf_mask)
        table = _group_pairs(mass, k)
        no_pair[x] = np.sum(mass**k)
        share = p[x, tree.leaf_mask] / np.where(mass > 0, mass, 1.0)[group]
        cells = table[np.ix_(group, group)] * share[:, None] * share[None, :]
        joint[x][np.ix_(tree.leaf_mask, tree.leaf_mask)] = cells
    return PairDistribution(joint, no_pair)


def win_rate(
    tree: TokenTree,
    log_p: Float[AnyArray, "P L"],
    log_q: Float[AnyArray, "P L"],
    u: Float[AnyArray, "P L"],
) -> float:
    """P(u(xi) > u(xi')) + half P(tie) for xi ~ P, xi' ~ Q independent given x ~ rho0; 0-1."""
    p, utility = _checked(tree, log_p, u)
    q, _ = _checked(tree, log_q, u)
    total = []
    for x, weight in enumerate(tree.weights):
        group, mass_p = _groups(p[x], utility[x], tree.leaf_mask)
        mass_q = np.bincount(group, weights=q[x, tree.leaf_mask], minlength=len(mass_p))
        below = np.concatenate([[0.0], np.cumsum(mass_q)[:-1]])
        total.append(weight * float(np.sum(mass_p * (below + 0.5 * mass_q))))
    return math.fsum(total)


def beats(u: Float[np.ndarray, "P L"], q: Float[np.ndarray, "P L"]) -> Float[np.ndarray, "P L"]:
    """Chance that each completion beats a draw of q by u, ties half; every slot a completion."""
    gap = u[:, :, None] - u[:, None, :]
    return np.einsum("pij,pj->pi", (gap > 0) + 0.5 * (gap == 0), q)


def step(gap: jax.Array) -> jax.Array:
    """1 for a won, 0 for a lost, half for a tied comparison of scores; traceable.

    Gaps within TIE are ties: compiled arithmetic may leave s - s at a rounding error, not at 0.
    """
    return jnp.where(gap > TIE, 1.0, jnp.where(gap < -TIE, 0.0, 0.5))


def _groups(p: np.ndarray, u: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tie group of every completion (ascending in u) and the mass of each group."""
    _, group = np.unique(u[mask], return_inverse=True)
    return group, np.bincount(group, weights=p[mask])


def _group_pairs(mass: np.ndarray, k: int) -> np.ndarray:
    """Probability of (best group, worst group) of k draws, for best above worst; else 0."""
    upto = np.concatenate([[0.0], np.cumsum(mass)])
    low, high = upto[:-1], upto[1:]

    def power(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.clip(top[:, None] - bottom[None, :], 0.0, 1.0) ** k

    table = power(high, low) - power(high, high) - power(low, low) + power(low, high)
    return np.tril(np.maximum(table, 0.0), -1)


def _checked(
    tree: TokenTree, log_p: AnyArray, u: AnyArray
) -> tuple[Float[np.ndarray, "P L"], Float[np.ndarray, "P L"]]:
    """Probabilities and utilities; raises InputError for a wrong shape, mass or utility."""
    shape = (tree.n_prompts, tree.n_leaves)
    p, utility = np.exp(np.asarray(log_p, np.float64)), np.asarray(u, np.float64)
    if p.shape != shape or utility.shape != shape:
        raise InputError(f"arrays of shape {p.shape} and {utility.shape} on a tree of {shape}")
    p = np.where(tree.leaf_mask, p, 0.0)
    if not np.allclose(p.sum(axis=1), 1.0, atol=1e-9):
        bad = int(np.argmax(~np.isclose(p.sum(axis=1), 1.0, atol=1e-9)))
        raise InputError(f"prompt {tree.prompts[bad]!r}: probabilities sum to {p[bad].sum()!r}")
    if not np.isfinite(utility[:, tree.leaf_mask]).all():
        raise InputError("a utility is not finite")
    return p, utility
