"""Soft value iteration, trajectory distributions, entropy and KL on a token tree (float64).

Arrays are (P, ...) over prompts; log-probabilities are nats, -inf at leaf slots that are no
completion. Everything is exact up to rounding: per-node maxima are taken out before any exp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory._x64 import AnyArray
from theory.backup import PolicyMemory, aligned, soft_backup
from theory.errors import InputError
from theory.tree import TokenTree

Policy = list[jax.Array]  # one (P, V**h, V) array of log-probabilities a level, h = 0..H-1

TINY = float(np.finfo(np.float64).tiny)  # smallest normal number
RANGE = 1e306  # of rewards / beta, and of their differences in a prompt


@dataclass(frozen=True)
class SoftSolution:
    """The soft-optimal values and policy of one reward."""

    values: list[jax.Array]  # V(s), (P, V**h) for h = 0..H, reward units; -inf where no state is
    log_policy: Policy
    log_z: jax.Array  # (P,), log sum exp(r / beta) over the completions of each prompt
    _memory: PolicyMemory | None = field(default=None, repr=False, compare=False)  # for `reuse`


def soft_value_iteration(
    tree: TokenTree,
    r: Float[AnyArray, "P L"],
    *,
    beta: float = 1.0,
    reuse: SoftSolution | None = None,
) -> SoftSolution:
    """Soft-optimal values and policy of a trajectory-level reward, exact up to rounding.

    V(s) = beta * logsumexp_a(V(s.a) / beta), V(leaf) = r, pi = exp((Q - V) / beta)
    (Ziebart 2010; the paper's App. D).

    r: reward units, read at completions only; a numpy array is copied, a float64 JAX array is not.
    beta > 0: reward units per nat. reuse: an earlier solution of a tree of this shape whose policy
    is no longer needed: its policy arrays cannot be read again, and the solution after the next
    lies in their memory (none that a view still holds). On large trees most of the time goes into
    new memory, and this saves it.
    Raises InputError for a beta that `check_beta` refuses, a non-finite reward (prompt and
    completion named), rewards / beta out of float64's range, or a `reuse` of another shape, not in
    JAX arrays or used before. What is refused leaves `reuse` as it was.
    """
    check_beta(beta)
    check_shape(tree, r)
    old = None if reuse is None else _given_back(tree, reuse)
    kept = None if tree.eos is None and not tree.forbidden else tree.leaf_mask
    reward = np.ascontiguousarray(r, dtype=np.float64)
    shared = kept is None and isinstance(r, jax.Array) and r.dtype == np.float64
    leaf = None if shared else aligned(reward.shape)
    spare = None if old is None else old.free_spare()
    shape = (tree.vocab, tree.horizon)
    made = soft_backup(reward, shape, float(beta), leaf=leaf, kept=kept, spare=spare)
    if not made.in_range:
        _check_solvable(tree, reward, beta, made.values[0])
    for level in () if reuse is None else reuse.log_policy:
        level.delete()
    memory = PolicyMemory(made.memory, None if old is None else old.hand_over())
    values, policy, log_z = jax.device_put((made.values, made.policy, made.log_z))
    values.append(r if shared else jax.device_put(leaf))
    return SoftSolution(values, policy, log_z, memory)


def _given_back(tree: TokenTree, reuse: SoftSolution) -> PolicyMemory:
    """The memory of a solution that may be overwritten. Raises InputError if it may not."""
    if not all(isinstance(x, jax.Array) and x.dtype == np.float64 for x in reuse.log_policy):
        raise InputError("reuse: its policy must be in float64 JAX arrays, as it was returned")
    check_levels(tree, reuse.log_policy)
    if any(level.is_deleted() for level in reuse.log_policy):
        raise InputError("reuse: the arrays of this solution were overwritten before")
    return PolicyMemory(None, None) if reuse._memory is None else reuse._memory


# --- the limits in beta --------------------------------------------------------------------------


@dataclass(frozen=True)
class HardSolution:
    """The best completions of one reward, ties included: the limit beta -> 0 as sets."""

    values: list[np.ndarray]  # max of r below s, (P, V**h) for h = 0..H; -inf where no state is
    argmax: list[np.ndarray]  # (P, V**h, V) bool a level, h = 0..H-1: every optimal token
    n_optimal: list[np.ndarray]  # optimal completions below s, (P, V**h) int64 for h = 0..H


def hard_value_iteration(tree: TokenTree, r: Float[AnyArray, "P L"]) -> HardSolution:
    """V(s) = max_a V(s.a) and every a that attains it; rewards tie when they are equal as floats.

    r: reward units, read at completions only. `n_optimal[0][:, 0]` counts the optimal completions
    of each prompt. Raises InputError for a non-finite reward (prompt and completion named).
    """
    return _hard(tree, check_reward(tree, r))


def hard_policy(
    tree: TokenTree,
    r: Float[AnyArray, "P L"],
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> Policy:
    """The limit beta -> 0 of the soft-optimal policy, at every state (also where it never comes).

    Without a reference tied tokens share in proportion to their numbers of optimal completions,
    so the optimal completions are equally likely. With log_ref (nats, need not be normalised) it is
    the limit of P_ref exp(r / beta): the best completions with P_ref > 0 share in proportion to
    P_ref; states without any get -inf everywhere.
    Raises InputError for a non-finite reward, or a reference that is NaN, +inf or 0 on a prompt.
    """
    reward = check_reward(tree, r)
    if log_ref is None:
        hard = _hard(tree, reward)
        with np.errstate(divide="ignore"):
            return _shares(hard.argmax, [np.log(count) for count in hard.n_optimal])
    reference = _check_log_p(tree, log_ref, "log_ref")
    if np.isneginf(reference).all(axis=1).any():
        bad = tree.prompts[int(np.argmax(np.isneginf(reference).all(axis=1)))]
        raise InputError(f"the reference has no mass on prompt {bad!r}")
    hard = _hard(tree, np.where(np.isneginf(reference), -np.inf, reward))
    masses = [reference]
    for argmax in reversed(hard.argmax):
        best = np.where(argmax, masses[0].reshape(argmax.shape), -np.inf)
        masses.insert(0, np.asarray(logsumexp(best, axis=2)))
    return _shares(hard.argmax, masses)


def uniform_over_completions(tree: TokenTree) -> Policy:
    """The limit beta -> infinity: pi(a|s) = completions below s.a / completions below s.

    Uniform over completions, so not over tokens where there is EOS or a forbidden token.
    """
    return hard_policy(tree, np.zeros((tree.n_prompts, tree.n_leaves)))


def _hard(tree: TokenTree, leaf: np.ndarray) -> HardSolution:
    """Hard backups; a state with no leaf above -inf has no optimal token."""
    values, counts, argmaxes = [leaf], [np.isfinite(leaf).astype(np.int64)], []
    for h in reversed(range(tree.horizon)):
        q = values[0].reshape(leaf.shape[0], tree.vocab**h, tree.vocab)
        best = q.max(axis=2)
        argmax = (q == best[:, :, None]) & np.isfinite(q)
        argmaxes.insert(0, argmax)
        values.insert(0, best)
        counts.insert(0, np.where(argmax, counts[0].reshape(q.shape), 0).sum(axis=2))
    return HardSolution(values, argmaxes, counts)


def _shares(argmax: list[np.ndarray], log_mass: list[np.ndarray]) -> Policy:
    """log pi(a|s) = log mass(s.a) - log mass(s) on optimal tokens, -inf elsewhere."""
    policy = []
    for h, mask in enumerate(argmax):
        below = np.where(mask, log_mass[h + 1].reshape(mask.shape), -np.inf)
        state = log_mass[h][:, :, None]
        policy.append(jnp.asarray(below - np.where(np.isfinite(state), state, 0.0)))
    return policy


def leaf_log_probs(tree: TokenTree, log_policy: Policy) -> Float[jax.Array, "P L"]:
    """log P_pi(xi | x) = sum_h log pi(a_h | s_h) of every completion, nats; -inf elsewhere."""
    check_levels(tree, log_policy)
    total = jnp.zeros((tree.n_prompts, 1))
    for level in log_policy:
        total = _extend(total, level)
    return total


@jax.jit
def _extend(total: jax.Array, level: jax.Array) -> jax.Array:
    """One level more; XLA's compiler fails on a program of many levels (12 of 2 tokens)."""
    return (total[:, :, None] + level).reshape(level.shape[0], -1)


def policy_from_leaves(tree: TokenTree, log_p: Float[AnyArray, "P L"]) -> Policy:
    """Conditionals of a completion distribution; log_p need not be normalised.

    A state of probability 0 gets -inf everywhere: its conditionals do not exist.
    """
    mass = _check_log_p(tree, log_p, "log_p")
    shape = (tree.vocab, tree.horizon)
    made = soft_backup(mass, shape, 1.0, leaf=np.empty_like(mass), kept=tree.leaf_mask)
    return jax.device_put(made.policy)


def log_optimal(
    tree: TokenTree,
    r: Float[AnyArray, "P L"],
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> Float[np.ndarray, "P L"]:
    """log P*_r (Eq. 11), or log of P*_r . P_ref normalised for each prompt (Lemma B.1).

    Computed over the leaves at once, on no common code path with `soft_value_iteration`.
    log_ref may be -inf on some completions, not on all of a prompt. Raises InputError for a beta,
    a reward or a reference that is refused, or rewards / beta out of float64's range.
    """
    check_beta(beta)
    reward = check_reward(tree, r)
    _check_range(tree, reward, beta)
    score = reward / beta
    if log_ref is not None:
        score = score + _masked(tree, log_ref)
    log_z = np.asarray(logsumexp(score, axis=1, keepdims=True))
    if not np.isfinite(log_z).all():
        bad = tree.prompts[int(np.argmax(~np.isfinite(log_z[:, 0])))]
        raise InputError(f"the reference has no mass on prompt {bad!r}, or is not finite there")
    return score - log_z


# --- expectations (over rho0 and completions) ----------------------------------------------------


def kl(tree: TokenTree, log_p: Float[AnyArray, "P L"], log_q: Float[AnyArray, "P L"]) -> float:
    """E_{x ~ rho0} KL(P(.|x) || Q(.|x)), nats; inf where log P > -inf and log Q = -inf.

    Also where P itself is below the smallest float64. NaN in either on a completion gives NaN.
    """
    p, q = _masked(tree, log_p), _masked(tree, log_q)
    held = ~np.isneginf(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(held, np.exp(p) * (np.where(held, p, 0.0) - q), 0.0)
    terms = np.where(held & np.isneginf(q), np.inf, terms)
    return _mean(tree, np.where(np.isnan(p) | np.isnan(q), np.nan, terms))


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
    """Raises InputError unless beta is finite, > 0, and neither it nor 1 / beta is subnormal."""
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"beta must be > 0, got {beta!r}")
    if not TINY <= beta <= 1.0 / TINY:
        raise InputError(f"beta must be from {TINY:.3g} to {1.0 / TINY:.3g}, got {beta!r}")


def check_reward(tree: TokenTree, r: AnyArray) -> Float[np.ndarray, "P L"]:
    """r as float64, -inf at masked slots. Raises InputError naming prompt and completion."""
    reward = _masked(tree, r)
    bad = ~np.isfinite(reward) & tree.leaf_mask
    if bad.any():
        raise InputError(f"reward is not finite {_place(tree, bad)}")
    return reward


def _check_range(tree: TokenTree, reward: np.ndarray, beta: float) -> None:
    """Raises InputError unless reward / beta and its differences in a prompt are within RANGE."""
    most = reward.max(axis=1)
    least = reward.min(axis=1, where=tree.leaf_mask, initial=np.inf)
    with np.errstate(over="ignore"):
        ends = np.stack([most / beta, least / beta, (most - least) / beta])
    bad = ~(np.abs(ends) <= RANGE).all(axis=0)
    if bad.any():
        p = int(np.argmax(bad))
        raise InputError(
            f"rewards from {float(least[p])!r} to {float(most[p])!r} at prompt {tree.prompts[p]!r} "
            f"are out of float64's range when divided by beta = {beta!r}"
        )


def _check_solvable(tree: TokenTree, r: AnyArray, beta: float, root: np.ndarray) -> None:
    """Raises InputError that says why a backup, with these V at the root, is out of range."""
    reward = check_reward(tree, r)
    _check_range(tree, reward, beta)
    if not np.isfinite(root).all():
        raise InputError(
            f"the soft values overflow: rewards up to {float(reward.max())!r} at beta = {beta!r}"
        )


def check_levels(tree: TokenTree, log_policy: Policy) -> None:
    """Raises InputError unless log_policy has one (P, V**h, V) array a level."""
    shapes = [tuple(level.shape) for level in log_policy]
    expected = [(tree.n_prompts, tree.vocab**h, tree.vocab) for h in range(tree.horizon)]
    if shapes != expected:
        raise InputError(f"log_policy has level shapes {shapes}, the tree needs {expected}")


def check_shape(tree: TokenTree, x: AnyArray) -> None:
    """Raises InputError unless x is (prompts, leaf slots)."""
    if x.shape != (tree.n_prompts, tree.n_leaves):
        raise InputError(
            f"an array of shape {tuple(x.shape)} on a tree of {tree.n_prompts} prompt(s) and "
            f"{tree.n_leaves} leaf slots"
        )


def _masked(tree: TokenTree, x: AnyArray) -> np.ndarray:
    array = np.asarray(x, dtype=np.float64)
    check_shape(tree, array)
    return np.where(tree.leaf_mask, array, -np.inf)


def _check_log_p(tree: TokenTree, log_p: AnyArray, name: str) -> np.ndarray:
    leaf = _masked(tree, log_p)
    if np.isnan(leaf).any() or np.isposinf(leaf).any():
        raise InputError(f"{name} is not a log-probability {_place(tree, ~(leaf < np.inf))}")
    return leaf


def _place(tree: TokenTree, bad: np.ndarray) -> str:
    prompt, leaf = (int(i) for i in np.argwhere(bad)[0])
    return f"at prompt {tree.prompts[prompt]!r}, completion {' '.join(tree.leaf_tokens(leaf))!r}"
