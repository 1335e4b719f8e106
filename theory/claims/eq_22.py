"""Eq. 22: rewards, soft-optimal policies and soft Q-functions are three forms of one thing."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from theory.certificate import Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import (
    SHAPES,
    Drawn,
    random_beta,
    random_policy,
    random_reward,
    random_tree,
)
from theory.claims.leafwise import below, close, cumulative
from theory.claims.replay import Replay
from theory.classes import local_reward, masked_log_softmax
from theory.soft import Policy, SoftSolution, kl, leaf_log_probs, soft_value_iteration
from theory.tree import TokenTree

NAME = "eq-22"
STATEMENT = (
    "Eq. 22, R <-> Pi*_R <-> Q*_R. At every completion beta sum_h log pi*_r(a_h|s_h) = r - V(x). "
    "Given that r is paid at the end, Q* is fixed by pi* up to one shift a PROMPT: Q*(s_h, a_h) = "
    "V(x) + beta sum of log pi* up to and with a_h, which is also beta log of the sum of exp(r / "
    "beta) over the completions below. Every positive policy is soft-optimal for its own local "
    "reward. Logits give the policy back after any shift a STATE."
)
LEFT_OUT = (
    "App. D says that the logits of a softmax policy are precisely its soft Q-function, and later "
    "that they are so up to a shift a state. A policy class is blind to that shift, so logits are "
    "Q* only if their soft backups close: V(s.a) = Q(s, a) takes away all shifts but one a "
    "prompt. The three-way map is one to one on rewards that differ by more than a shift a "
    "prompt. The paper sets beta = 1."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """From a reward to policy and Q and back; from a policy to its reward and back."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 1.0))
    solution = soft_value_iteration(tree, r, beta=beta)
    return Trial(
        (
            *_from_reward(tree, r, solution, beta),
            _any_logits(rng, tree, solution, beta),
            _from_policy(tree, random_policy(rng, tree), beta),
        ),
        drawn=Drawn.of(tree),
    )


def _from_reward(
    tree: TokenTree, r: np.ndarray, solution: SoftSolution, beta: float
) -> list[Certificate]:
    """r from pi; Q from pi; Q from sums over completions. All over beta, nats."""
    log_z = np.asarray(solution.log_z)[:, None]
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    reached = cumulative(solution.log_policy)
    levels = range(1, tree.horizon + 1)
    q = np.concatenate([np.asarray(solution.values[h]) / beta for h in levels], axis=1)
    read = np.concatenate([log_z + reached[h] for h in levels], axis=1)
    sums = np.concatenate([below(tree, r / beta, h) for h in levels], axis=1)
    leaves = tree.leaves
    return [
        close(NAME, "beta log P = r - V(x)", log_p[:, leaves], r[:, leaves] / beta - log_z),
        close(NAME, "Q read from the policy", read, q),
        close(NAME, "Q as a sum over completions", read, sums),
    ]


def _any_logits(
    rng: np.random.Generator, tree: TokenTree, solution: SoftSolution, beta: float
) -> Certificate:
    """The softmax of (Q + a random shift a state) / beta is the policy."""
    levels = []
    for h, mask in enumerate(tree.allowed_levels):
        q = np.asarray(solution.values[h + 1]).reshape(tree.n_prompts, *mask.shape)
        logits = np.where(mask, q, 0.0) / beta + rng.normal(size=(*q.shape[:2], 1))
        levels.append(masked_log_softmax(jnp.asarray(logits), jnp.asarray(mask)))
    read, log_p = (leaf_log_probs(tree, policy) for policy in (levels, solution.log_policy))
    return same(
        tree, NAME, "logits shifted a state give the policy", np.asarray(read), np.asarray(log_p)
    )


def _from_policy(tree: TokenTree, policy: Policy, beta: float) -> Certificate:
    """Every policy is soft-optimal for its local reward, token by token."""
    back = soft_value_iteration(
        tree, np.where(tree.leaf_mask, local_reward(tree, policy, beta), 0.0), beta=beta
    ).log_policy
    flat = [
        np.concatenate([np.asarray(level).reshape(-1) for level in levels])
        for levels in (policy, back)
    ]
    return close(NAME, "a policy is soft-optimal for its local reward", flat[0], flat[1])


# --- broken twins --------------------------------------------------------------------------------


def _state_shift(replay: Replay) -> float:
    """Logits with a shift at every state but the root, their last ones read as Q, that is as r.

    The shift (numbers.shift) is one for each token that the state already has. The violation is
    the KL of the policy from the soft-optimal policy of the reward read off.
    """
    tree, beta = replay.tree, replay.beta
    solution = soft_value_iteration(tree, replay.reward, beta=beta)
    read = np.asarray(replay.reward, dtype=np.float64).copy()
    for leaf in tree.leaves:
        before = len(tree.leaf_tokens(int(leaf))) - 1
        read[:, leaf] += replay.number("shift") * before
    other = soft_value_iteration(tree, read, beta=beta)
    log_p, log_q = (leaf_log_probs(tree, s.log_policy) for s in (solution, other))
    return kl(tree, log_p, log_q)


def _no_value(replay: Replay) -> float:
    """max |beta log P - r| / beta: the local reward read as the reward itself."""
    tree, beta = replay.tree, replay.beta
    solution = soft_value_iteration(tree, replay.reward, beta=beta)
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    return float(np.abs(log_p - replay.reward / beta)[:, tree.leaves].max())


def _one_shift(replay: Replay) -> float:
    """max |Q read - Q| / beta if every prompt is given the V of the first."""
    tree, beta = replay.tree, replay.beta
    solution = soft_value_iteration(tree, replay.reward, beta=beta)
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    read = log_p + float(solution.log_z[0])
    return float(np.abs(read - replay.reward / beta)[:, tree.leaves].max())


def _unscaled(replay: Replay) -> float:
    """max |numbers.scale log P - (r - V)|, reward units; scale is beta in the claim."""
    tree, beta = replay.tree, replay.beta
    solution = soft_value_iteration(tree, replay.reward, beta=beta)
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    value = beta * np.asarray(solution.log_z)[:, None]
    miss = replay.number("scale") * log_p - (replay.reward - value)
    return float(np.abs(miss)[:, tree.leaves].max())


BROKEN = (
    Broken(
        "state-shift",
        "logits that are shifted state by state are read as Q",
        "Two completions, one of them two tokens long: at horizon 1 each prompt has one state, and "
        "a shift of it is a shift of the prompt.",
        _state_shift,
    ),
    Broken(
        "no-value",
        "the local reward beta log P is read as r itself, without V(x)",
        "One completion, of reward 1: V(x) is 1. Nothing is smaller.",
        _no_value,
    ),
    Broken(
        "one-shift",
        "Q is read with one shift for all prompts (the first one's V)",
        "Two prompts of one completion each: one prompt has one shift.",
        _one_shift,
    ),
    Broken(
        "unscaled",
        "the sum of log pi is left unscaled (numbers.scale = 1) at another beta",
        "Two completions: with one, log pi is 0 at every scale.",
        _unscaled,
    ),
)

CLAIM = Claim(NAME, "Eq. 22, App. D", STATEMENT, LEFT_OUT, trial, BROKEN, trials=16)
