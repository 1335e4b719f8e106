"""Soft value iteration, trajectory distributions, entropy and KL on a token tree (float64).

Arrays are (P, ...) over prompts; log-probabilities are nats, -inf at leaf slots that are no
completion. Everything is exact up to rounding: per-node maxima are taken out before any exp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.tree import TokenTree

Policy = list[jax.Array]  # one (P, V**h, V) array of log-probabilities a level, h = 0..H-1


@dataclass(frozen=True)
class SoftSolution:
    """The soft-optimal values and policy of one reward."""

    values: list[jax.Array]  # V(s), (P, V**h) for h = 0..H, reward units; -inf where no state is
    log_policy: Policy
    log_z: jax.Array  # (P,), log sum exp(r / beta) over the completions of each prompt


def soft_value_iteration(
    tree: TokenTree, r: Float[AnyArray, "P L"], *, beta: float = 1.0
) -> SoftSolution:
    """Soft-optimal values and policy of a trajectory-level reward, exact up to rounding.

    V(s) = beta * logsumexp_a(V(s.a) / beta), V(leaf) = r, pi = exp((Q - V) / beta)
    (Ziebart 2010; the paper's App. D).

    r: reward units, read at completions only. beta > 0: reward units per nat.
    Raises InputError for beta <= 0 or a non-finite reward (prompt and completion named).
    """
    check_beta(beta)
    leaf = check_reward(tree, r)
    values, log_policy = _backup(jnp.asarray(leaf), tree.allowed_levels, jnp.float64(beta))
    return SoftSolution(list(values), list(log_policy), values[0][:, 0] / beta)


@jax.jit
def _backup(
    leaf: jax.Array, allowed: tuple[jax.Array, ...], beta: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Soft backups from the leaves (P, L) to the root; lists run from the root down."""
    values, policies = [leaf], []
    for mask in reversed(allowed):
        states, vocab = mask.shape
        q = values[0].reshape(leaf.shape[0], states, vocab)
        q = jnp.where(mask[None], q, -jnp.inf)
        top = jnp.max(q, axis=2, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        scaled = (q - top) / beta
        log_sum = jnp.log(jnp.sum(jnp.exp(scaled), axis=2, keepdims=True))
        policies.insert(0, scaled - jnp.where(jnp.isfinite(log_sum), log_sum, 0.0))
        values.insert(0, (top + beta * log_sum)[:, :, 0])
    return tuple(values), tuple(policies)


def leaf_log_probs(tree: TokenTree, log_policy: Policy) -> Float[jax.Array, "P L"]:
    """log P_pi(xi | x) = sum_h log pi(a_h | s_h) of every completion, nats; -inf elsewhere."""
    check_levels(tree, log_policy)
    return _chain(tuple(log_policy))


@jax.jit
def _chain(log_policy: tuple[jax.Array, ...]) -> jax.Array:
    total = jnp.zeros((log_policy[0].shape[0], 1))
    for level in log_policy:
        total = (total[:, :, None] + level).reshape(level.shape[0], -1)
    return total


def policy_from_leaves(tree: TokenTree, log_p: Float[AnyArray, "P L"]) -> Policy:
    """Conditionals of a completion distribution; log_p need not be normalised.

    A state of probability 0 gets -inf everywhere: its conditionals do not exist.
    """
    leaf = _masked(tree, log_p)
    if np.isnan(leaf).any() or np.isposinf(leaf).any():
        raise InputError(f"log_p is not a log-probability {_place(tree, ~(leaf < np.inf))}")
    return list(_backup(jnp.asarray(leaf), tree.allowed_levels, jnp.float64(1.0))[1])


def log_optimal(
    tree: TokenTree,
    r: Float[AnyArray, "P L"],
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> Float[np.ndarray, "P L"]:
    """log P*_r (Eq. 11), or log of P*_r . P_ref normalised for each prompt (Lemma B.1).

    Computed over the leaves at once, on no common code path with `soft_value_iteration`.
    log_ref may be -inf on some completions, not on all of a prompt.
    """
    check_beta(beta)
    score = check_reward(tree, r) / beta
    if log_ref is not None:
        score = score + _masked(tree, log_ref)
    log_z = np.asarray(logsumexp(score, axis=1, keepdims=True))
    if not np.isfinite(log_z).all():
        bad = tree.prompts[int(np.argmax(~np.isfinite(log_z[:, 0])))]
        raise InputError(f"the reference has no mass on prompt {bad!r}, or is not finite there")
    return score - log_z


# --- expectations (over rho0 and completions) ----------------------------------------------------


def kl(tree: TokenTree, log_p: Float[AnyArray, "P L"], log_q: Float[AnyArray, "P L"]) -> float:
    """E_{x ~ rho0} KL(P(.|x) || Q(.|x)), nats; inf where P has mass and Q has none."""
    p, q = _masked(tree, log_p), _masked(tree, log_q)
    held = ~np.isneginf(p)  # NaN is held, so that it shows
    with np.errstate(invalid="ignore"):
        terms = np.where(held, np.exp(p) * (np.where(held, p, 0.0) - q), 0.0)
    return _mean(tree, terms)


def entropy(tree: TokenTree, log_p: Float[AnyArray, "P L"]) -> float:
    """E_{x ~ rho0} H(P(.|x)), nats (the paper's causal entropy, Eq. 8)."""
    p = _masked(tree, log_p)
    held = ~np.isneginf(p)  # NaN is held, so that it shows
    return _mean(tree, np.where(held, -np.exp(p) * np.where(held, p, 0.0), 0.0))


def expected_reward(
    tree: TokenTree, log_p: Float[AnyArray, "P L"], r: Float[AnyArray, "P L"]
) -> float:
    """E_{x ~ rho0} E_{xi ~ P} r(xi), reward units."""
    reward = np.where(tree.leaf_mask, np.asarray(r, dtype=np.float64), 0.0)
    return _mean(tree, np.exp(_masked(tree, log_p)) * reward)


def _mean(tree: TokenTree, terms: np.ndarray) -> float:
    return math.fsum(w * math.fsum(row) for w, row in zip(tree.weights, terms, strict=True))


# --- checks at the boundary ----------------------------------------------------------------------


def check_beta(beta: float) -> None:
    """Raises InputError unless beta is finite and > 0."""
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"beta must be > 0, got {beta!r}")


def check_reward(tree: TokenTree, r: AnyArray) -> Float[np.ndarray, "P L"]:
    """r as float64, -inf at masked slots. Raises InputError naming prompt and completion."""
    reward = _masked(tree, r)
    bad = ~np.isfinite(reward) & tree.leaf_mask
    if bad.any():
        raise InputError(f"reward is not finite {_place(tree, bad)}")
    return reward


def check_levels(tree: TokenTree, log_policy: Policy) -> None:
    """Raises InputError unless log_policy has one (P, V**h, V) array a level."""
    shapes = [tuple(level.shape) for level in log_policy]
    expected = [(tree.n_prompts, tree.vocab**h, tree.vocab) for h in range(tree.horizon)]
    if shapes != expected:
        raise InputError(f"log_policy has level shapes {shapes}, the tree needs {expected}")


def _masked(tree: TokenTree, x: AnyArray) -> np.ndarray:
    array = np.asarray(x, dtype=np.float64)
    if array.shape != (tree.n_prompts, tree.n_leaves):
        raise InputError(
            f"an array of shape {array.shape} on a tree of {tree.n_prompts} prompt(s) and "
            f"{tree.n_leaves} leaf slots"
        )
    return np.where(tree.leaf_mask, array, -np.inf)


def _place(tree: TokenTree, bad: np.ndarray) -> str:
    prompt, leaf = (int(i) for i in np.argwhere(bad)[0])
    return f"at prompt {tree.prompts[prompt]!r}, completion {' '.join(tree.leaf_tokens(leaf))!r}"
