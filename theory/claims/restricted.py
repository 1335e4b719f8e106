"""Theorem 2.2 (c): a differentiable class smaller than all policies, log-linear in bigrams.

P*_{r_pi} = P_pi for every pi, so soft RL that reaches KL 0 certifies the RL step alone. Here the
reward side is fitted apart: rewards of R(Pi) are written in the probabilities of a bigram table,
p = eta^2 / sum eta^2, in numpy with its own gradient, and the policies in logits, in JAX.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from theory.certificate import SLACK, Certificate
from theory.claims.base import same
from theory.claims.instances import two_way_pairs
from theory.classes import bigram_policies
from theory.fit_policy import PolicyFit, fit_policy
from theory.preferences import PairData, bt_log_likelihood
from theory.projection import soft_rl
from theory.soft import kl, log_optimal
from theory.tree import TokenTree

STARTS = 5
REACHED = 1e-6  # nats of soft return below the best run: the run reached its optimum


def restricted(rng: np.random.Generator, beta: float, claim: str) -> list[Certificate]:
    """Both roads inside the bigram class on a complete binary tree of depth 3, two prompts."""
    tree = TokenTree(("a", "b"), 3, ("x0", "x1"), (0.4, 0.6))
    data = two_way_pairs(rng, tree, connected=True)
    policies = bigram_policies(tree)
    starts = rng.normal(size=(STARTS, policies.dimension))
    mle = _best([fit_policy(policies, data, start, beta=beta) for start in starts])
    r = fit_bigram_reward(tree, data, beta, np.exp(0.3 * rng.normal(size=starts.shape)))
    target = log_optimal(tree, r, beta)
    runs = soft_rl(tree, policies, r, rng.normal(size=starts.shape), beta=beta)
    likelihood = bt_log_likelihood(r, data)
    found = [Certificate(claim, mle.value, likelihood, SLACK, "(c) equal likelihood")]
    top = _best(runs).value
    for rlhf in runs:
        if rlhf.value < top - REACHED:
            continue  # this ascent drifted away or stopped at a lower optimum
        found += [
            Certificate(claim, kl(tree, rlhf.log_p, target), 0.0, SLACK, "(c) the RL step at KL 0"),
            same(tree, claim, "(c) the RLHF policy is the MLE policy", rlhf.log_p, mle.log_p),
        ]
    return found


def _best(fits: list[PolicyFit]) -> PolicyFit:
    return max(fits, key=lambda fit: fit.value)


def fit_bigram_reward(
    tree: TokenTree, data: PairData, beta: float, starts: np.ndarray
) -> np.ndarray:
    """The best of R(Pi) on the pairs, (P, L) reward units: r = beta (bigram counts) . log p.

    starts: (S, D) positive eta. BFGS, then Newton with differences of the gradient.
    """
    counts = _bigram_counts(tree)
    vocab = tree.vocab
    d = counts[data.winner] - counts[data.loser]

    def slope(eta: np.ndarray) -> tuple[float, np.ndarray]:
        rows = eta.reshape(vocab + 1, vocab)
        mass = (rows**2).sum(axis=1, keepdims=True)
        log_p = (np.log(rows**2) - np.log(mass)).reshape(-1)
        margin = beta * (d @ log_p)
        outer = -(beta / data.total) * (d.T @ (data.count * expit(-margin)))
        outer = outer.reshape(rows.shape)
        inner = 2 * outer / rows - 2 * rows * outer.sum(axis=1, keepdims=True) / mass
        return float(np.dot(data.count, np.logaddexp(0.0, -margin))) / data.total, inner.reshape(-1)

    found = []
    for start in starts:
        eta = minimize(slope, start, jac=True, method="BFGS", options={"gtol": 1e-7}).x
        eta = _newton_by_differences(slope, eta)
        found.append((slope(eta)[0], eta))
    eta = min(found, key=lambda pair: pair[0])[1].reshape(vocab + 1, vocab)
    log_p = np.log(eta**2 / (eta**2).sum(axis=1, keepdims=True)).reshape(-1)
    return np.tile(beta * (counts @ log_p), (tree.n_prompts, 1))


def _newton_by_differences(slope, eta: np.ndarray) -> np.ndarray:
    """Lower the gradient to rounding; the Hessian comes from central differences of it."""
    for _ in range(12):
        g, step = slope(eta)[1], 1e-5
        columns = [
            (slope(eta + step * e)[1] - slope(eta - step * e)[1]) / (2 * step)
            for e in np.eye(len(eta))
        ]
        trial = eta - np.linalg.pinv(np.asarray(columns), rcond=1e-7) @ g
        if not np.linalg.norm(slope(trial)[1]) < np.linalg.norm(g):
            break
        eta = trial
    return eta


def _bigram_counts(tree: TokenTree) -> np.ndarray:
    """(L, (V + 1) V): how often each (previous token or start, token) occurs in a completion."""
    vocab, counts = tree.vocab, np.zeros((tree.n_leaves, (tree.vocab + 1) * tree.vocab))
    for leaf in range(tree.n_leaves):
        previous = vocab
        for word in tree.leaf_tokens(leaf):
            token = tree.tokens.index(word)
            counts[leaf, previous * vocab + token] += 1.0
            previous = token
    return counts
