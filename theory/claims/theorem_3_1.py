"""Theorem 3.1: RLHF over simple rewards is maximum likelihood over their soft-optimal policies."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from theory.certificate import MIN_VIOLATION, SLACK, Certificate
from theory.claims.base import Claim, Trial, attains, included, refused, same, stationary, violation
from theory.claims.instances import (
    LINEAR_SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_policy,
    random_reward,
    random_tree,
    two_way_pairs,
)
from theory.claims.roads import offline, online, restricted_class
from theory.claims.theorem_3_1_twins import BROKEN
from theory.classes import (
    FinitePolicies,
    FiniteRewards,
    LinearRewards,
    SoftOptimalPolicies,
    chain,
    local_reward,
)
from theory.fit import LinearOptima, fit_linear
from theory.fit_policy import fit_policy
from theory.preferences import PairData
from theory.soft import (
    Policy,
    leaf_log_probs,
    log_optimal,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "theorem-3.1"
STATEMENT = (
    "Theorem 3.1: if the soft-optimal policy of every r in R_sim (over ALL policies) lies in Pi, "
    "then RLHF over R_sim and maximum likelihood over Pi(R_sim) give the same SET. Both "
    "inclusions, for lists with planted ties and for linear rewards; and the remark after the "
    "proof: isomorphic classes imply the hypothesis, and it does not imply them."
)
LEFT_OUT = (
    "pi*_r must be read as the optimum over all policies: over Pi the hypothesis says nothing. The "
    "proof shows one inclusion and uses 'r_pi in R_sim', which is true up to a shift a prompt that "
    "Bradley-Terry does not see."
)
FEATURES = 3
DRAWS = 100  # most draws of one policy that must not be a soft-optimal one
LAST = ("seen", "seen", "unseen", "flat")  # what the last feature does
HYPOTHESIS = "a list: the hypothesis, every soft-optimal policy is in Pi"


def trial(rng: np.random.Generator, index: int) -> Trial:
    """A list, a linear class, and the remark after the proof, on one random tree."""
    tree = random_tree(rng, LINEAR_SHAPES[index % len(LINEAR_SHAPES)])
    beta = random_beta(rng)
    found = [*_finite(rng, tree, beta), _isomorphic(rng, tree, beta)]
    linear, data = _draw_linear(rng, tree, LAST[index % 4], separable=index // 4 % 4 == 3)
    optima = fit_linear(tree, linear, data)
    if optima.theta is None:
        policies = SoftOptimalPolicies.of(tree, linear, beta)
        found.append(refused(NAME, "linear: no policy is returned either", policies, data))
    else:
        found += _linear(rng, tree, linear, data, optima, beta)
    drawn = Drawn.of(tree, data, exists=not optima.empty)
    return Trial(tuple(found), optima.empty, drawn)


# --- lists ---------------------------------------------------------------------------------------


def _finite(rng: np.random.Generator, tree: TokenTree, beta: float) -> list[Certificate]:
    """Five rewards, two planted ties of the best, their policies in Pi beside three others."""
    data = two_way_pairs(rng, tree, connected=False)
    tables = [random_reward(rng, tree, 1.0) for _ in range(5)]
    seen = np.concatenate([data.winner[data.prompt == 0], data.loser[data.prompt == 0]])
    free = np.setdiff1d(tree.leaves, seen)
    for table in list(tables):
        other = table + rng.normal()  # the same policy
        tables.append(other)
        raised = table.copy()
        raised[0, free] += 1.0  # another policy of equal likelihood
        tables.append(raised)
    rewards = FiniteRewards.of(tree, list(tables))
    optimal = [soft_value_iteration(tree, r, beta=beta).log_policy for r in tables]
    targets = [log_optimal(tree, r, beta) for r in tables]
    extra = [_other_policy(rng, tree, targets) for _ in range(3)]
    listed = [*optimal, *extra]
    policies = FinitePolicies(tuple(listed[i] for i in rng.permutation(len(listed))))
    rlhf = policies.log_probs(tree)[online(tree, rewards, policies, data, beta=beta)]
    simple = restricted_class(tree, rewards, policies, beta)
    sim = simple.log_probs(tree)[offline(tree, simple, data, beta=beta)]
    apart = min(_nearest(tree, pi, targets) for pi in extra)
    optima = np.stack(targets)
    return [
        included(tree, NAME, HYPOTHESIS, optima, policies.log_probs(tree)),
        included(tree, NAME, "a list: every RLHF policy is in pi_sim", rlhf, sim),
        included(tree, NAME, "a list: every pi_sim policy is an RLHF policy", sim, rlhf),
        Certificate(
            NAME,
            float(apart >= MIN_VIOLATION),
            1.0,
            SLACK,
            "a list: the classes are not isomorphic",
        ),
    ]


def _other_policy(rng: np.random.Generator, tree: TokenTree, targets: list[np.ndarray]) -> Policy:
    """A policy clear of every target: drawn again, at most DRAWS times, while it is near one.

    The last draw is returned as it is; the certificate that the classes differ then says so.
    """
    for _ in range(DRAWS):
        policy = random_policy(rng, tree)
        if _nearest(tree, policy, targets) >= MIN_VIOLATION:
            break
    return policy


def _nearest(tree: TokenTree, policy: Policy, targets: list[np.ndarray]) -> float:
    """How far a policy is from the nearest of the targets (P, L), nats."""
    log_p = np.asarray(leaf_log_probs(tree, policy))[None]
    return min(violation(tree, log_p, target[None]) for target in targets)


def _isomorphic(rng: np.random.Generator, tree: TokenTree, beta: float) -> Certificate:
    """If R = R(Pi), the soft-optimal policy of each reward is in Pi."""
    policy = policy_from_leaves(tree, random_log_p(rng, tree))
    shift = rng.normal(size=(tree.n_prompts, 1))
    r = local_reward(tree, policy, beta) + shift
    solved = soft_value_iteration(tree, np.where(tree.leaf_mask, r, 0.0), beta=beta).log_policy
    part = "isomorphic classes imply the hypothesis"
    left, right = leaf_log_probs(tree, solved), leaf_log_probs(tree, policy)
    return same(tree, NAME, part, np.asarray(left), np.asarray(right))


# --- linear rewards ------------------------------------------------------------------------------


def _draw_linear(
    rng: np.random.Generator, tree: TokenTree, last: str, *, separable: bool
) -> tuple[LinearRewards, PairData]:
    """Features, and planted pairs, or the same pairs each won by the side with more reward.

    last: what the last feature does. "unseen" moves only completions that no pair compares (the
    set of policies has dimension 1 more), "flat" is constant on each prompt (no policy sees it).
    """
    data = two_way_pairs(rng, tree, connected=False)
    phi = rng.normal(size=(tree.n_prompts, tree.n_leaves, FEATURES))
    if last == "flat":
        phi[..., -1] = rng.normal(size=(tree.n_prompts, 1))
    if last == "unseen":
        used = np.zeros(phi.shape[:2], dtype=bool)
        used[data.prompt, data.winner] = used[data.prompt, data.loser] = True
        phi[used, -1] = 0.0
    rewards = LinearRewards(phi)
    if separable:
        r = rewards.reward(rng.normal(size=FEATURES))
        won = r[data.prompt, data.winner] > r[data.prompt, data.loser]
        rows = (data.prompt[won], data.winner[won], data.loser[won], data.count[won])
        data = PairData.of(tree, zip(*(row.tolist() for row in rows), strict=True))
    return rewards, data


def _linear(
    rng: np.random.Generator,
    tree: TokenTree,
    rewards: LinearRewards,
    data: PairData,
    optima: LinearOptima,
    beta: float,
) -> list[Certificate]:
    """Both inclusions over theta + ker D, the dimension, and 'r_pi in R_sim' up to a shift."""
    assert optima.theta is not None
    policies = SoftOptimalPolicies.of(tree, rewards, beta)
    sim = fit_policy(policies, data, rng.normal(size=FEATURES), beta=beta)
    along = optima.kernel @ (optima.kernel.T @ (sim.theta - optima.theta))
    reached = _optimum(tree, rewards.reward(optima.theta + along), beta)
    theta = optima.theta + optima.kernel @ rng.normal(size=optima.kernel.shape[1])
    rlhf = _optimum(tree, rewards.reward(theta), beta)
    kept = fit_policy(policies, data, theta, beta=beta)
    best = optima.log_likelihood if optima.log_likelihood is not None else math.nan
    jacobian = np.asarray(_jacobian(jnp.asarray(sim.theta), policies))[:, tree.leaves]
    rank = np.linalg.matrix_rank(jacobian.reshape(-1, FEATURES), rtol=1e-9)
    dimension = float(sim.nullity - (FEATURES - rank))
    kept_part = "linear: every RLHF policy is in pi_sim"
    local = np.where(tree.leaf_mask, beta * rlhf - rewards.reward(theta), 0.0)
    shift = np.where(tree.leaf_mask, local[:, tree.leaves[:1]], 0.0)
    return [
        same(tree, NAME, "linear: r_pi is in R_sim up to a shift a prompt", local, shift),
        stationary(NAME, "linear: the pi_sim policy", sim),
        stationary(NAME, kept_part, kept),
        attains(NAME, kept_part, rlhf, data, sim.value, beta=beta),
        same(tree, NAME, "linear: every pi_sim policy is an RLHF policy", sim.log_p, reached),
        same(tree, NAME, kept_part, rlhf, kept.log_p),
        Certificate(NAME, sim.value, best, SLACK, "linear: equal likelihood"),
        Certificate(
            NAME, dimension, float(optima.policy_dimension), SLACK, "linear: dimension of the set"
        ),
    ]


@jax.jit
def _jacobian(theta: jax.Array, policies: SoftOptimalPolicies) -> jax.Array:
    """Derivative of every completion's log-probability in theta, (P, L, D)."""
    return jax.jacfwd(lambda t: chain(policies.log_policy(t)))(theta)


def _optimum(tree: TokenTree, r: np.ndarray, beta: float) -> np.ndarray:
    return np.asarray(leaf_log_probs(tree, soft_value_iteration(tree, r, beta=beta).log_policy))


CLAIM = Claim(NAME, "Theorem 3.1, proof in App. B.4", STATEMENT, LEFT_OUT, trial, BROKEN, trials=14)
