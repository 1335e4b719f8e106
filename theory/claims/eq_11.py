"""Eq. 11: the chain of soft-optimal tokens is the Boltzmann distribution over completions."""

from __future__ import annotations

import numpy as np
from scipy.special import log_expit, logsumexp

from theory.certificate import Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import (
    SHAPES,
    Drawn,
    random_beta,
    random_log_p,
    random_reward,
    random_tree,
)
from theory.claims.leafwise import below, close, conditionals
from theory.claims.replay import Replay
from theory.preferences import margins, sample_pairs
from theory.soft import (
    kl,
    leaf_log_probs,
    log_optimal,
    soft_value_iteration,
)
from theory.tree import TokenTree

NAME = "eq-11"
STATEMENT = (
    "Eq. 11: the policy with the largest E[r] + beta H among all policies, read token by token "
    "from soft value iteration, gives completion xi of prompt x the probability exp(r(xi) / beta) "
    "/ Z_r(x), Z_r(x) = sum over the completions of x of exp(r / beta). Every soft value is beta "
    "log of the same sum over the completions below its state. With a reference each term carries "
    "P_ref(xi). The log odds of two completions of a prompt are (r(xi1) - r(xi2)) / beta: beta "
    "times their difference is the Bradley-Terry log odds."
)
LEFT_OUT = (
    "The paper sets beta = 1 and gives no proof (it cites Ziebart 2010). The sum runs over "
    "completions, not over all strings of H tokens: with EOS or forbidden tokens these differ. "
    "With several prompts every one needs a positive weight, or its policy is free."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Backups against sums over completions: the chain, the values, the odds; with a reference."""
    tree = random_tree(rng, SHAPES[index % len(SHAPES)])
    beta = random_beta(rng)
    r = random_reward(rng, tree, 10.0 ** rng.uniform(-1.0, 1.0))
    log_ref = random_log_p(rng, tree)
    solution = soft_value_iteration(tree, r, beta=beta)
    log_p = np.asarray(leaf_log_probs(tree, solution.log_policy))
    with_ref = soft_value_iteration(
        tree, r + beta * np.where(tree.leaf_mask, log_ref, 0.0), beta=beta
    )
    chained = np.asarray(leaf_log_probs(tree, with_ref.log_policy))
    values = np.concatenate([np.asarray(v) / beta for v in solution.values], axis=1)
    sums = np.concatenate([below(tree, r / beta, h) for h in range(tree.horizon + 1)], axis=1)
    return Trial(
        (
            same(tree, NAME, "the chain of tokens", log_p, log_optimal(tree, r, beta)),
            close(NAME, "every soft value, over beta", values, sums),
            same(tree, NAME, "with a reference", chained, log_optimal(tree, r, beta, log_ref)),
            _odds(rng, tree, r, log_p, beta),
        ),
        drawn=Drawn.of(tree),
    )


def _odds(
    rng: np.random.Generator, tree: TokenTree, r: np.ndarray, log_p: np.ndarray, beta: float
) -> Certificate:
    """The equation below Eq. 11, at random pairs: BT of r, and BT of beta log P of the chain."""
    data = sample_pairs(tree, r, 32, seed=int(rng.integers(2**32)))
    read = log_expit(beta * margins(log_p, data))
    direct = log_expit(margins(r, data))
    return close(NAME, "Bradley-Terry read from the policy", read, direct)


# --- broken twins --------------------------------------------------------------------------------


def _apart(replay: Replay, log_q: np.ndarray) -> float:
    """KL(soft-optimal chain || another completion distribution), nats."""
    solution = soft_value_iteration(replay.tree, replay.reward, beta=replay.beta)
    return kl(replay.tree, leaf_log_probs(replay.tree, solution.log_policy), log_q)


def _other_beta(replay: Replay) -> float:
    beta = replay.number("target_beta")
    return _apart(replay, log_optimal(replay.tree, replay.reward, beta))


def _hard_values(replay: Replay) -> float:
    """Each token weighed by exp(best reward below it / beta): no soft backup."""
    tree = replay.tree
    scaled = np.where(tree.leaf_mask, replay.reward / replay.beta, -np.inf)
    best = [
        scaled.reshape(tree.n_prompts, tree.vocab**h, -1).max(axis=2)
        for h in range(tree.horizon + 1)
    ]
    log_q = np.zeros((tree.n_prompts, 1))
    for h, level in enumerate(conditionals(tree, best)):
        norm = np.asarray(logsumexp(level, axis=2))
        norm = np.where(np.isneginf(norm), 0.0, norm)
        log_q = (log_q[:, :, None] + level - norm[:, :, None]).reshape(-1, tree.vocab ** (h + 1))
    return _apart(replay, log_q)


def _pooled(replay: Replay) -> float:
    tree = replay.tree
    score = replay.reward / replay.beta
    return _apart(replay, score - np.asarray(logsumexp(score[:, tree.leaves])))


def _all_strings(replay: Replay) -> float:
    """Z over all V**H strings; an ended completion counts once for each continuation.

    An ended completion's reward is paid by every string that continues it.
    """
    tree, eos = replay.tree, replay.tree.eos
    total = np.zeros(tree.n_prompts)
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        left = tree.horizon - len(words) if words[-1] == eos else 0
        total += tree.vocab**left * np.exp(replay.reward[:, leaf] / replay.beta)
    return _apart(replay, replay.reward / replay.beta - np.log(total)[:, None])


BROKEN = (
    Broken(
        "other-beta",
        "Z and P* are formed with another beta (numbers.target_beta) than the RL step's",
        "Two completions: with one, P* is 1 for every beta.",
        _other_beta,
    ),
    Broken(
        "hard-values",
        "no soft backup: a token is weighed by the best completion below it, exp(max r / beta)",
        "Three completions, a choice after a choice: with two, at most one state has a choice, and "
        "below its tokens hard and soft values agree.",
        _hard_values,
    ),
    Broken(
        "pooled",
        "Z is taken over all prompts together",
        "Two prompts of one completion each: with one prompt, together and for each are the same.",
        _pooled,
    ),
    Broken(
        "all-strings",
        "Z runs over all strings of H tokens, as if nothing followed from EOS",
        "One completion, EOS after the first of two tokens: at horizon 1 every string is a "
        "completion.",
        _all_strings,
    ),
)

CLAIM = Claim(NAME, "Eq. 11 and the equation below it", STATEMENT, LEFT_OUT, trial, BROKEN, 16)
