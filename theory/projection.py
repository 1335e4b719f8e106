"""Soft RL inside a policy class, and reverse-KL projection onto it (Lemma 2.1, Lemma B.1).

The RL side maximises the soft return by backward induction through the policy's conditionals; KL
is measured afterwards, over completions. The two are computed apart, so that one can judge the
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from theory._x64 import AnyArray
from theory.classes import FinitePolicies
from theory.fit import tied_maximisers
from theory.fit_policy import PolicyFit, maximise
from theory.soft import (
    Policy,
    check_beta,
    check_levels,
    check_reward,
    kl,
    policy_from_leaves,
)
from theory.tree import TokenTree


def soft_return(
    tree: TokenTree,
    log_policy: Policy,
    r: Float[AnyArray, "P L"],
    *,
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> float:
    """E_pi[r] + beta H(pi) (Eq. 10), or E_pi[r] - beta KL(P_pi || P_ref) (Eq. 13), reward units.

    Backward induction: J(s) = sum_a pi(a|s) (J(s.a) - beta log pi(a|s)), J(leaf) = r (+ beta
    log P_ref); it never forms the probability of a completion.
    """
    check_beta(beta)
    check_levels(tree, log_policy)
    leaf = jnp.asarray(_leaf_terms(tree, r, beta, log_ref))
    return float(_soft_return(tuple(log_policy), leaf, jnp.float64(beta), jnp.asarray(tree.rho0)))


def _leaf_terms(tree: TokenTree, r: AnyArray, beta: float, log_ref: AnyArray | None) -> np.ndarray:
    """What a completion pays: r (+ beta log P_ref), 0 at slots that are no completion."""
    leaf = check_reward(tree, r)
    if log_ref is not None:
        leaf = leaf + beta * check_reward(tree, log_ref)
    return np.where(tree.leaf_mask, leaf, 0.0)


@jax.jit
def _soft_return(log_policy, leaf, beta, rho0):
    value = leaf
    for level in reversed(log_policy):
        taken = level > -jnp.inf
        log_pi = jnp.where(taken, level, 0.0)
        gain = value.reshape(level.shape) - beta * log_pi
        value = jnp.sum(jnp.where(taken, jnp.exp(log_pi) * gain, 0.0), axis=2)
    return jnp.dot(rho0, value[:, 0])


def project_all(tree: TokenTree, log_target: Float[AnyArray, "P L"]) -> Policy:
    """Reverse-KL projection onto all policies: the conditionals of the target, at KL 0."""
    return policy_from_leaves(tree, log_target)


# --- finite lists --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FiniteSolution:
    """The argmax set of soft RL (or the argmin set of KL) over a list, ties included."""

    indices: Int[np.ndarray, " K"]
    values: Float[np.ndarray, " M"]  # soft return (reward units), or KL (nats), of every member


def soft_rl_finite(
    tree: TokenTree,
    policies: FinitePolicies,
    r: Float[AnyArray, "P L"],
    *,
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> FiniteSolution:
    """argmax of the soft return over a list of policies, by enumeration."""
    values = [soft_return(tree, pi, r, beta=beta, log_ref=log_ref) for pi in policies.policies]
    return FiniteSolution(tied_maximisers(np.asarray(values), 1.0), np.asarray(values))


def project_finite(
    tree: TokenTree, log_probs: Float[AnyArray, "M P L"], log_target: Float[AnyArray, "P L"]
) -> FiniteSolution:
    """argmin of KL(P_pi || target) over a list of completion distributions, by enumeration."""
    values = np.asarray([kl(tree, log_p, log_target) for log_p in log_probs])
    return FiniteSolution(tied_maximisers(-values, 1.0), values)


# --- differentiable classes ----------------------------------------------------------------------


def soft_rl(
    tree: TokenTree,
    policies: Any,
    r: Float[AnyArray, "P L"],
    starts: Float[np.ndarray, "S D"],
    *,
    beta: float = 1.0,
    log_ref: Float[AnyArray, "P L"] | None = None,
) -> list[PolicyFit]:
    """Climb the soft return inside a differentiable class from many starts.

    `value` of each run is the soft return in nats (divided by beta). Ascent can drift away or end
    at a local optimum: compare the runs' KL to the target before believing one.
    """
    check_beta(beta)
    leaf = jnp.asarray(_leaf_terms(tree, r, beta, log_ref) / beta)
    arguments = (policies, leaf, jnp.asarray(tree.rho0))
    return [maximise(_return_of, start, arguments, scale=1.0) for start in starts]


def _return_of(theta, policies, leaf, rho0):
    return _soft_return(policies.log_policy(theta), leaf, jnp.float64(1.0), rho0)
