"""Ridge maximum likelihood of one data set in plain numpy: nothing is compiled, nothing shared.

All fits minimise, over theta,

    sum over pairs of -log sigmoid(score(winner) - score(loser)) + ridge / 2 |theta|^2,

with winner and loser as flat leaf numbers x L + leaf. No code in common with `theory.arms`: each is
a check of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from theory.tree import TokenTree

NEWTON_STEPS = 60
POLISHED = 700  # coordinates up to which a policy fit ends with Newton steps
COARSE, MIDDLE, FINE = 1e-3, 1e-5, 1e-8  # largest entry of the gradient, nats a unit of theta

Levels = list[np.ndarray]  # one (P, V**h, V) array a level, root first
Pairs = Int[np.ndarray, "N 2"]  # winner, loser


@dataclass(frozen=True, eq=False)
class Fitted:
    """Where a fit ended. gradient: its largest entry there, nats a unit of theta."""

    theta: Float[np.ndarray, " d"]
    gradient: float


# --- the tree -------------------------------------------------------------------------------------


def soft_policy(tree: TokenTree, reward: Float[np.ndarray, "P L"], beta: float) -> Levels:
    """log pi of the soft optimum, V(s) = beta log sum_a exp(V(s.a) / beta); -inf where no token is.

    reward: reward units; read at completions only. With beta = 1 and log P it gives the
    conditionals of any distribution over completions.
    """
    below = np.where(tree.leaf_mask, reward / beta, -np.inf)
    levels: Levels = []
    for h in reversed(range(tree.horizon)):
        q = below.reshape(tree.n_prompts, tree.vocab**h, tree.vocab)
        below = _log_sum(q)
        levels.insert(0, q - np.where(np.isfinite(below), below, 0.0)[:, :, None])
    return levels


def chain(levels: Levels) -> Float[np.ndarray, "P L"]:
    """log P(xi | x), the sum of log pi along every completion; -inf at other slots."""
    total = np.zeros((levels[0].shape[0], 1))
    for level in levels:
        total = (total[:, :, None] + level).reshape(len(total), -1)
    return total


def node_sums(tree: TokenTree, leaf: Float[np.ndarray, "P L"]) -> Levels:
    """What lies on the leaves below every s.a, summed: (P, V**h, V) a level."""
    return [
        leaf.reshape(len(leaf), tree.vocab**h, tree.vocab, -1).sum(axis=3)
        for h in range(tree.horizon)
    ]


def softmax_levels(tree: TokenTree, logits: Float[np.ndarray, " E"]) -> Levels:
    """log pi of logits, one a (level, prompt, state, token) in this order; -inf if not allowed."""
    levels, start = [], 0
    for h in range(tree.horizon):
        shape = (tree.n_prompts, tree.vocab**h, tree.vocab)
        size = int(np.prod(shape))
        level = logits[start : start + size].reshape(shape)
        level = np.where(tree.allowed(h)[None], level, -np.inf)
        normaliser = _log_sum(level)[:, :, None]
        levels.append(level - np.where(np.isfinite(normaliser), normaliser, 0.0))
        start += size
    return levels


def _log_sum(q: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis; -inf where every entry is."""
    top = q.max(axis=-1)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return safe + np.log(np.exp(q - safe[..., None]).sum(axis=-1))


# --- Bradley-Terry --------------------------------------------------------------------------------


def pair_loss(score: Float[np.ndarray, " M"], pairs: Pairs) -> tuple[float, np.ndarray]:
    """Summed -log sigmoid(margin), nats, and its gradient in the score of every leaf (M,)."""
    winner, loser = pairs[:, 0], pairs[:, 1]
    margin = score[winner] - score[loser]
    slope = expit(-margin)
    gradient = np.bincount(loser, slope, len(score)) - np.bincount(winner, slope, len(score))
    return float(np.logaddexp(0.0, -margin).sum()), gradient


def fit_linear_reward(phi: Float[np.ndarray, "M D"], pairs: Pairs, ridge: float) -> Fitted:
    """Newton with halved steps for score = phi @ theta, from theta = 0 down to rounding."""
    differences = phi[pairs[:, 0]] - phi[pairs[:, 1]]

    def value(theta: np.ndarray) -> float:
        loss = np.logaddexp(0.0, -(differences @ theta)).sum()
        return float(loss) + 0.5 * ridge * float(theta @ theta)

    def slope(theta: np.ndarray) -> np.ndarray:
        return ridge * theta - differences.T @ expit(-(differences @ theta))

    def hessian(theta: np.ndarray) -> np.ndarray:
        p = expit(differences @ theta)
        root = np.sqrt(p * (1.0 - p))[:, None] * differences
        return root.T @ root + ridge * np.eye(len(theta))

    return _newton(value, slope, hessian, np.zeros(phi.shape[1]))


def _newton(
    value: Callable[[np.ndarray], float],
    slope: Callable[[np.ndarray], np.ndarray],
    hessian: Callable[[np.ndarray], np.ndarray],
    theta: np.ndarray,
) -> Fitted:
    """Newton steps that lower the value, then full ones while the gradient halves."""
    gradient = slope(theta)
    for _ in range(NEWTON_STEPS):
        try:
            direction = cho_solve(cho_factor(hessian(theta)), gradient)
        except np.linalg.LinAlgError:  # not convex here: stay
            break
        step, here = 1.0, value(theta)
        while step > 1e-4 and not value(theta - step * direction) < here:
            step /= 2.0
        moved = theta - (step if step > 1e-4 else 1.0) * direction
        there = slope(moved)
        if step <= 1e-4 and not np.abs(there).max() < 0.5 * np.abs(gradient).max():
            break
        theta, gradient = moved, there
    return Fitted(theta, float(np.abs(gradient).max(initial=0.0)))


# --- policies -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolicyClass:
    """Policies whose logits, one a (level, prompt, state, token), are `basis @ theta`."""

    tree: TokenTree
    beta: float  # score = beta log P (Eq. 1)
    basis: Any  # (E, d), dense or scipy.sparse

    @property
    def n_parameters(self) -> int:
        """d."""
        return self.basis.shape[1]

    def levels(self, theta: np.ndarray) -> Levels:
        """log pi(a|s)."""
        return softmax_levels(self.tree, self.basis @ theta)

    def objective(
        self, theta: np.ndarray, pairs: Pairs, ridge: float
    ) -> tuple[float, Float[np.ndarray, " d"]]:
        """The objective of this module and its gradient."""
        levels = self.levels(theta)
        log_p = np.where(self.tree.leaf_mask, chain(levels), 0.0)
        loss, at_leaf = pair_loss(self.beta * log_p.reshape(-1), pairs)
        flows = node_sums(self.tree, self.beta * at_leaf.reshape(log_p.shape))
        parts = [
            (flow - np.exp(level) * flow.sum(axis=2, keepdims=True)).reshape(-1)
            for flow, level in zip(flows, levels, strict=True)
        ]
        gradient = self.basis.T @ np.concatenate(parts) + ridge * theta
        return loss + 0.5 * ridge * float(theta @ theta), gradient

    def jacobian(self, theta: np.ndarray, leaves: Int[np.ndarray, " m"]) -> np.ndarray:
        """d log P / d logits at flat leaf numbers, (m, E): 1 on the path, less pi along it."""
        tree, levels = self.tree, self.levels(theta)
        prompt, leaf = np.divmod(leaves, tree.n_leaves)
        out, start = np.zeros((len(leaves), self.basis.shape[0])), 0
        rows = np.arange(len(leaves))
        for h, level in enumerate(levels):
            node = leaf // tree.vocab ** (tree.horizon - h - 1)
            state = prompt * tree.vocab**h + node // tree.vocab
            first = start + state * tree.vocab
            columns = first[:, None] + np.arange(tree.vocab)[None, :]
            out[rows[:, None], columns] = -np.exp(level.reshape(-1, tree.vocab)[state])
            out[rows, first + node % tree.vocab] += 1.0
            start += level.size
        return out

    def hessian(self, theta: np.ndarray, pairs: Pairs, ridge: float) -> np.ndarray:
        """The exact second derivative of the objective, (d, d)."""
        tree, levels = self.tree, self.levels(theta)
        log_p = np.where(tree.leaf_mask, chain(levels), 0.0).reshape(-1)
        slopes = self.beta * (self.jacobian(theta, pairs[:, 0]) - self.jacobian(theta, pairs[:, 1]))
        slopes = slopes @ self.basis
        p = expit(self.beta * (log_p[pairs[:, 0]] - log_p[pairs[:, 1]]))
        total = slopes.T @ ((p * (1.0 - p))[:, None] * slopes) + ridge * np.eye(len(theta))
        flows = node_sums(tree, self.beta * pair_loss(self.beta * log_p, pairs)[1].reshape(
            tree.n_prompts, -1
        ))  # fmt: skip
        start, basis = 0, self.basis.toarray() if isinstance(self.basis, csr_array) else self.basis
        for flow, level in zip(flows, levels, strict=True):
            rows = basis[start : start + level.size].reshape(-1, tree.vocab, basis.shape[1])
            pi = np.exp(level).reshape(-1, tree.vocab)
            through = flow.sum(axis=2).reshape(-1)
            mean = np.einsum("sv,svd->sd", pi, rows)
            flat = (through[:, None] * pi).reshape(-1, 1) * rows.reshape(-1, basis.shape[1])
            total -= rows.reshape(-1, basis.shape[1]).T @ flat
            total += mean.T @ (through[:, None] * mean)
            start += level.size
        return total


def fit_policy_class(
    policies: PolicyClass, pairs: Pairs, ridge: float, *, polish: bool = True
) -> Fitted:
    """L-BFGS-B from theta = 0; then, if asked and the class is small, Newton down to rounding.

    The objective is not convex in theta: Newton is tried again from a nearer point where the
    Hessian is not positive definite.
    Without polish the gradient ends at COARSE, near enough for a picture.
    """
    theta, exact = np.zeros(policies.n_parameters), policies.n_parameters <= POLISHED

    def both(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return policies.objective(theta, pairs, ridge)

    for tolerance in (COARSE, MIDDLE, FINE) if exact and polish else (FINE if polish else COARSE,):
        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 0.0, "gtol": tolerance}
        theta = minimize(both, theta, jac=True, method="L-BFGS-B", options=options).x
        if not (exact and polish):
            break
        polished = _newton(
            lambda t: both(t)[0],
            lambda t: both(t)[1],
            lambda t: policies.hessian(t, pairs, ridge),
            theta,
        )
        if polished.gradient <= FINE:
            return polished
    return Fitted(theta, float(np.abs(both(theta)[1]).max(initial=0.0)))
