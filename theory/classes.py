"""Reward classes and policy classes: tabular, linear in features, finite lists.

Rewards are (P, L) tables in reward units. A parametrised policy class is a JAX pytree, so that one
compiled objective serves every instance of the same shape; `log_policy(theta)` is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.soft import Policy, check_beta, check_reward, leaf_log_probs
from theory.tree import TokenTree


def local_reward(
    tree: TokenTree, log_policy: Policy, beta: float = 1.0
) -> Float[np.ndarray, "P L"]:
    """r_pi(xi) = beta sum_h log pi(a_h | s_h) (Eq. 1, with its beta), reward units.

    -inf where no completion is. Positive policies only: raises InputError where pi is 0.
    """
    check_beta(beta)
    return check_reward(tree, beta * np.asarray(leaf_log_probs(tree, log_policy)))


# --- reward classes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearRewards:
    """r = Phi theta, theta in R^D."""

    phi: Float[np.ndarray, "P L D"]  # values at slots that are no completion are ignored

    def reward(self, theta: AnyArray) -> Float[np.ndarray, "P L"]:
        """The reward of theta (D,)."""
        return self.phi @ np.asarray(theta, dtype=np.float64)


@dataclass(frozen=True)
class FiniteRewards:
    """A list of M rewards."""

    tables: Float[np.ndarray, "M P L"]

    @classmethod
    def of(cls, tree: TokenTree, tables: list[AnyArray]) -> FiniteRewards:
        """Checked; raises InputError for an empty list or a non-finite reward."""
        if not tables:
            raise InputError("a finite reward class needs at least one reward")
        return cls(np.stack([check_reward(tree, table) for table in tables]))


# --- policy classes ------------------------------------------------------------------------------


class PolicyClass(Protocol):
    """A differentiable class {pi_theta : theta in R^dimension} of strictly positive policies."""

    @property
    def dimension(self) -> int: ...

    def log_policy(self, theta: jax.Array) -> tuple[jax.Array, ...]: ...


@dataclass(frozen=True)
class FinitePolicies:
    """A list of M policies."""

    policies: tuple[Policy, ...]

    def log_probs(self, tree: TokenTree) -> Float[np.ndarray, "M P L"]:
        """log P_pi of every completion under each policy, nats."""
        return np.stack([np.asarray(leaf_log_probs(tree, pi)) for pi in self.policies])

    def rewards(self, tree: TokenTree, beta: float = 1.0) -> FiniteRewards:
        """R(Pi), the local rewards of the list."""
        return FiniteRewards.of(tree, [local_reward(tree, pi, beta) for pi in self.policies])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogLinearPolicies:
    """log pi(a|s) = f(s, a) . theta - log sum_a' exp(f(s, a') . theta), features f given.

    features: one (P, V**h, V, D) array a level; allowed: one (V**h, V) mask a level.
    """

    features: tuple[jax.Array, ...]
    allowed: tuple[jax.Array, ...]

    @property
    def dimension(self) -> int:
        return self.features[0].shape[-1]

    def log_policy(self, theta: jax.Array) -> tuple[jax.Array, ...]:
        """One (P, V**h, V) array of log-probabilities a level."""
        logits = [feature @ theta for feature in self.features]
        return tuple(
            masked_log_softmax(level, mask)
            for level, mask in zip(logits, self.allowed, strict=True)
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TabularPolicies:
    """Every policy: one logit for each (prompt, state, token), levels one after the other.

    blank: (P,) array, read for its length alone. Logits of tokens that are not allowed, and one
    shift a state, do not matter: `flat_directions` counts them.
    """

    blank: jax.Array
    allowed: tuple[jax.Array, ...]

    @classmethod
    def of(cls, tree: TokenTree) -> TabularPolicies:
        """All strictly positive policies of a tree."""
        allowed = tuple(jnp.asarray(mask) for mask in tree.allowed_levels)
        return cls(jnp.zeros(tree.n_prompts), allowed)

    @property
    def dimension(self) -> int:
        return self.blank.shape[0] * sum(mask.size for mask in self.allowed)

    @property
    def flat_directions(self) -> int:
        """Parameters that no policy depends on: masked logits and one shift a live state."""
        used = sum(int(np.maximum(np.asarray(m).sum(axis=1) - 1, 0).sum()) for m in self.allowed)
        return self.dimension - self.blank.shape[0] * used

    def log_policy(self, theta: jax.Array) -> tuple[jax.Array, ...]:
        """One (P, V**h, V) array of log-probabilities a level."""
        prompts, start, levels = self.blank.shape[0], 0, []
        for mask in self.allowed:
            size = prompts * mask.size
            logits = theta[start : start + size].reshape(prompts, *mask.shape)
            levels.append(masked_log_softmax(logits, mask))
            start += size
        return tuple(levels)

    def logits(self, log_policy: Policy) -> np.ndarray:
        """Parameters (dimension,) of a given policy: its own log-probabilities, 0 where masked."""
        flat = np.concatenate([np.asarray(level).reshape(-1) for level in log_policy])
        return np.where(np.isfinite(flat), flat, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftOptimalPolicies:
    """Pi(R) of a linear reward class: theta -> the soft-optimal policy of Phi theta.

    phi: (P, L, D), 0 at slots that are no completion. beta: () array, reward units per nat.
    """

    phi: jax.Array
    allowed: tuple[jax.Array, ...]
    beta: jax.Array

    @classmethod
    def of(cls, tree: TokenTree, rewards: LinearRewards, beta: float) -> SoftOptimalPolicies:
        """The class for one tree; raises InputError for beta <= 0."""
        check_beta(beta)
        phi = np.where(tree.leaf_mask[None, :, None], rewards.phi, 0.0)
        allowed = tuple(jnp.asarray(mask) for mask in tree.allowed_levels)
        return cls(jnp.asarray(phi), allowed, jnp.float64(beta))

    @property
    def dimension(self) -> int:
        return self.phi.shape[-1]

    def log_policy(self, theta: jax.Array) -> tuple[jax.Array, ...]:
        """One (P, V**h, V) array of log-probabilities a level, by differentiable backups."""
        value, levels = self.phi @ theta / self.beta, []
        for mask in reversed(self.allowed):
            q = value.reshape(value.shape[0], *mask.shape)
            levels.insert(0, masked_log_softmax(q, mask))
            live = mask.any(axis=1)
            filled = jnp.where((mask | ~live[:, None])[None], q, -jnp.inf)
            value = jnp.where(live[None], jax.nn.logsumexp(filled, axis=2), 0.0)
        return tuple(levels)


def masked_log_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """log softmax over the allowed tokens of each state, -inf elsewhere; gradients stay finite.

    logits: (P, S, V), mask: (S, V). A state with no allowed token (there is no such state in the
    tree) gets -inf everywhere.
    """
    live = mask.any(axis=1)[:, None]
    filled = jnp.where((mask | ~live)[None], logits, -jnp.inf)
    return jnp.where(mask[None], jax.nn.log_softmax(filled, axis=2), -jnp.inf)


def chain(log_policy: tuple[jax.Array, ...]) -> Float[jax.Array, "P L"]:
    """log P_pi of every completion, differentiable (no checks), nats."""
    total = jnp.zeros((log_policy[0].shape[0], 1))
    for level in log_policy:
        total = (total[:, :, None] + level).reshape(level.shape[0], -1)
    return total


def bigram_policies(tree: TokenTree) -> LogLinearPolicies:
    """Log-linear policies in the pair (previous token or start, next token): D = (V + 1) V.

    The features do not see the prompt or the place: a class far smaller than the tabular one.
    """
    vocab, features = tree.vocab, []
    for h in range(tree.horizon):
        previous = np.arange(vocab**h) % vocab if h else np.full(1, vocab)
        level = np.zeros((tree.n_prompts, vocab**h, vocab, (vocab + 1) * vocab))
        for token in range(vocab):
            level[:, np.arange(vocab**h), token, previous * vocab + token] = 1.0
        features.append(jnp.asarray(level))
    return LogLinearPolicies(
        tuple(features), tuple(jnp.asarray(mask) for mask in tree.allowed_levels)
    )
