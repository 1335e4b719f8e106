"""Tempering token by token is not tempering of whole completions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import SHAPES, Drawn, random_policy, random_tree
from theory.claims.leafwise import path_sums
from theory.claims.replay import Replay
from theory.classes import local_reward
from theory.operators import temper
from theory.soft import (
    Policy,
    expected_reward,
    kl,
    leaf_log_probs,
    policy_from_leaves,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "tempering"
STATEMENT = (
    "Sampling at temperature tau is done token by token: pi_tau(a|s) = pi(a|s)^(1/tau) / z(s), "
    "z(s) = sum_a pi(a|s)^(1/tau). So P_tau(xi) = P(xi)^(1/tau) / prod_h z(s_h). Tempering the "
    "whole completion, P^(1/tau) / Z(x), is the soft optimum at beta tau of the reward whose soft "
    "optimum at beta is pi. The two differ by log Z(x) - sum_h log z(s_h), and KL(token by token "
    "|| whole) = E_x[log Z] - E[sum_h log z(s_h)]. They agree iff sum_h log z(s_h) is the same "
    "for all completions of a prompt: at horizon 1, at tau = 1, and for policies that read the "
    "place alone, if all completions have H tokens."
)
LEFT_OUT = (
    "The experiments sample at a temperature and divide logits by it in the loss, while the "
    "theory speaks of soft optima at one beta. The paper does not say that the two temperatures "
    "differ: a policy sampled at tau is not the soft optimum at beta tau, except in the cases "
    "above."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """The identities at a random policy and temperature, then the cases of agreement."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    policy = random_policy(rng, tree, scale=float(rng.uniform(0.5, 3.0)))
    tau = float(10.0 ** rng.uniform(-0.7, 0.7))
    beta = float(10.0 ** rng.uniform(-0.3, 0.3))
    token_wise = np.asarray(leaf_log_probs(tree, temper(tree, policy, tau)))
    log_p = np.asarray(leaf_log_probs(tree, policy))
    spent = path_sums(tree, state_normalisers(policy, tau))
    whole, log_z = temper_completions(tree, log_p, tau)
    mean_z = float(np.dot(tree.rho0, log_z))
    optimum = soft_value_iteration(
        tree, np.where(tree.leaf_mask, local_reward(tree, policy, beta), 0.0), beta=beta * tau
    )
    return Trial(
        (
            same(tree, NAME, "P_tau from the normalisers", token_wise, log_p / tau - spent),
            Certificate(
                NAME,
                kl(tree, token_wise, whole),
                mean_z - expected_reward(tree, token_wise, spent),
                SLACK,
                "KL(token by token || whole)",
            ),
            same(
                tree,
                NAME,
                "the whole tempered is the soft optimum at beta tau",
                whole,
                np.asarray(leaf_log_probs(tree, optimum.log_policy)),
            ),
            *_agreement(rng, tree, policy, tau),
        ),
        drawn=Drawn.of(tree),
    )


def state_normalisers(log_policy: Policy, tau: float) -> list[np.ndarray]:
    """log z(s), (P, V**h) for h = 0..H-1, nats; 0 where no state is."""
    levels = []
    for level in log_policy:
        norm = np.asarray(logsumexp(np.asarray(level) / tau, axis=2))
        levels.append(np.where(np.isneginf(norm), 0.0, norm))
    return levels


def temper_completions(
    tree: TokenTree, log_p: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """log of P^(1/tau) / Z(x), (P, L), and log Z, (P,), nats."""
    score = np.where(tree.leaf_mask, np.asarray(log_p) / tau, -np.inf)
    log_z = np.asarray(logsumexp(score, axis=1))
    return score - log_z[:, None], log_z


def _agreement(
    rng: np.random.Generator, tree: TokenTree, policy: Policy, tau: float
) -> list[Certificate]:
    """tau = 1; horizon 1; a policy that reads the place alone, on the tree without EOS."""
    found = []
    flat = TokenTree(tree.tokens, 1, tree.prompts, tree.weights)
    full = TokenTree(tree.tokens, tree.horizon, tree.prompts, tree.weights)
    rows = rng.normal(size=(full.horizon, full.n_prompts, 1, full.vocab))
    rows = rows - np.asarray(logsumexp(rows, axis=3, keepdims=True))
    place_alone = [jnp.asarray(np.repeat(row, full.vocab**h, axis=1)) for h, row in enumerate(rows)]
    for part, on, which, at in (
        ("agreement at tau = 1", tree, policy, 1.0),
        ("agreement at horizon 1", flat, random_policy(rng, flat), tau),
        ("agreement where the policy reads the place alone", full, place_alone, tau),
    ):
        token_wise = np.asarray(leaf_log_probs(on, temper(on, which, at)))
        whole, _ = temper_completions(on, np.asarray(leaf_log_probs(on, which)), at)
        found.append(same(on, NAME, part, token_wise, whole))
    return found


# --- broken twins --------------------------------------------------------------------------------


def _apart(replay: Replay) -> float:
    """KL(token by token || whole completions) of the first policy of a file, nats."""
    replay.need(policies=1)
    tree, tau = replay.tree, replay.number("tau")
    policy = policy_from_leaves(tree, replay.policies[0])
    whole, _ = temper_completions(tree, replay.policies[0], tau)
    return kl(tree, leaf_log_probs(tree, temper(tree, policy, tau)), whole)


def _soft_optimum(replay: Replay) -> float:
    """KL(the soft optimum at beta, sampled at tau || the soft optimum at beta tau), nats."""
    tree, tau = replay.tree, replay.number("tau")
    sampled = soft_value_iteration(tree, replay.reward, beta=replay.beta).log_policy
    optimum = soft_value_iteration(tree, replay.reward, beta=replay.beta * tau).log_policy
    log_p, log_q = (
        leaf_log_probs(tree, policy) for policy in (temper(tree, sampled, tau), optimum)
    )
    return kl(tree, log_p, log_q)


def _no_normaliser(replay: Replay) -> float:
    """max |log P_tau - log P / tau|: the normalisers of the states left out."""
    replay.need(policies=1)
    tree, tau = replay.tree, replay.number("tau")
    policy = policy_from_leaves(tree, replay.policies[0])
    token_wise = np.asarray(leaf_log_probs(tree, temper(tree, policy, tau)))
    return float(np.abs(token_wise - replay.policies[0] / tau)[:, tree.leaves].max())


BROKEN = (
    Broken(
        "lengths-differ",
        "the policy reads nothing (every token 1/2), but EOS makes completions of two lengths: "
        "tempering by token is taken for tempering of the whole",
        "Three completions: with two, one state has a choice, as at horizon 1.",
        _apart,
    ),
    Broken(
        "reads-the-prefix",
        "all completions have H tokens, but the policy reads the prefix",
        "Two tokens, horizon 2, nothing forbidden: at horizon 1 there is no prefix.",
        _apart,
    ),
    Broken(
        "soft-optimum",
        "the soft optimum at beta, sampled at tau, is taken for the soft optimum at beta tau",
        "Three completions: with two, one state has a choice, as at horizon 1.",
        _soft_optimum,
    ),
    Broken(
        "no-normaliser",
        "the normalisers of the states are left out: P_tau is taken for P^(1/tau)",
        "Two completions: with one, every normaliser is 1.",
        _no_normaliser,
    ),
)

CLAIM = Claim(
    NAME,
    "App. C.1.1 and C.3: sampling, and logits, at a temperature",
    STATEMENT,
    LEFT_OUT,
    trial,
    BROKEN,
    trials=16,
)
