"""Theorem 2.2 on finite lists, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from theory.certificate import Certificate
from theory.claims.base import Broken, Claim, Trial
from theory.claims.rational.instances import (
    KINDS,
    planted_list,
    prompt_shift,
    random_beta,
    random_comparisons,
    random_distribution,
    random_tree,
    realised_comparisons,
    whole_table,
)
from theory.claims.rational.replayed import exact, miss
from theory.claims.rational.roads import (
    counted,
    offline,
    online,
    online_by_return,
    same_places,
    subset,
    ties_together,
)
from theory.rational import (
    Comparison,
    ExactTree,
    Table,
    likelihood,
    normalised,
    path_probabilities,
    soft_policy,
    tree_maximiser,
)

NAME = "theorem-2.2"
STATEMENT = (
    "Theorem 2.2 in exact fractions: for a finite list Pi and R = R(Pi) up to one shift a prompt, "
    "RLHF and maximum likelihood give the same SET of policies, compared fraction by fraction with "
    "residual 0. Beside each drawn policy a list holds an exact tie on the data that differs "
    "elsewhere (an equal policy where the data leave nothing free), and beside the likeliest one "
    "that differs from it in the 20th digit. beta is a whole number, y = exp(r / beta) a "
    "fraction. A finite list always has a maximiser, on separable and disconnected data too, so no "
    "trial is vacuous."
)
LEFT_OUT = (
    "The sets are compared on lists: over all policies a maximiser need not exist, and it is a "
    "fraction only at beta = 1 where the comparisons form a forest, or where wins are in the ratio "
    "of odds; there it is planted in the list."
)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Both roads over a list with planted ties; the comparisons are of each kind in turn."""
    tree, beta = random_tree(rng, index), random_beta(rng)
    tables = [random_distribution(rng, tree) for _ in range(4)]
    kind = (*KINDS, "realised")[index % 5]
    if kind == "connected":
        beta = 1  # where the maximiser over all rewards is a fraction
    if kind == "realised":
        ideal = whole_table(rng, tree)
        pairs = realised_comparisons(rng, tree, ideal, beta)
    else:
        pairs = random_comparisons(rng, tree, kind)
        ideal = tree_maximiser(tree, pairs).y if kind == "connected" else None
    if ideal is not None:
        tables[-1] = normalised(ideal)
    planted = planted_list(rng, tree, pairs, tables, beta=beta, distributions=True)
    policies = [soft_policy(tree, table) for table in planted.tables]
    members = [path_probabilities(tree, policy) for policy in policies]
    order = rng.permutation(len(members))
    rewards = [prompt_shift(rng, tree, members[i]) for i in order]
    rlhf = online(tree, rewards, members, pairs, beta=beta)
    mle = offline(tree, policies, pairs, beta=beta)
    by_return = online_by_return(tree, rewards, members, pairs, beta=beta)
    left, right = [members[i] for i in rlhf], [members[i] for i in mle]
    found = [
        subset(NAME, "every RLHF policy is an MLE policy", left, right),
        subset(NAME, "every MLE policy is an RLHF policy", right, left),
        same_places(NAME, "the sets as places in the list", rlhf, mle),
        same_places(NAME, "largest soft return, smallest reverse KL", by_return, rlhf),
        ties_together(NAME, "planted ties stay together", mle, planted.ties),
    ]
    if ideal is not None:
        found += _unrestricted(tree, pairs, ideal, beta, right)
    return Trial(tuple(found))


def _unrestricted(
    tree: ExactTree, pairs: tuple[Comparison, ...], ideal: Table, beta: int, mle: list[Table]
) -> list[Certificate]:
    """The maximiser over ALL rewards: its gradient is 0, and its policy is in the set."""
    best = likelihood(ideal, pairs, beta=beta)
    apart = sum(likelihood(table, pairs, beta=beta) != best for table in mle)
    slopes = [value != 0 for row in gradient(tree, pairs, ideal, beta) for value in row]
    return [
        counted(NAME, "the maximiser over all rewards is stationary", sum(slopes)),
        subset(NAME, "its policy is an MLE policy", [normalised(ideal)], mle),
        counted(NAME, "every MLE policy of the list attains its likelihood", apart),
    ]


def gradient(tree: ExactTree, pairs: tuple[Comparison, ...], y: Table, beta: int) -> Table:
    """Gradient of the log-likelihood in the reward of every completion: fractions."""
    slope = [[Fraction(0)] * len(tree.completions) for _ in tree.tree.prompts]
    for pair in pairs:
        odds = (y[pair.prompt][pair.winner] / y[pair.prompt][pair.loser]) ** beta
        slope[pair.prompt][pair.winner] += pair.count / (1 + odds)
        slope[pair.prompt][pair.loser] -= pair.count / (1 + odds)
    return tuple(tuple(row) for row in slope)


# --- broken twins --------------------------------------------------------------------------------


BROKEN = (
    Broken(
        "exact-reward-missing",
        "R is not R(Pi): it lacks the local reward of the policy that the data favour",
        "one policy alone leaves nothing to choose; with two, R keeps one reward, whose optimum "
        "is the other policy",
        lambda replay: miss(exact(replay)),
    ),
    Broken(
        "exact-reward-extra",
        "R is not R(Pi): it holds one more reward, whose optimum is not in Pi",
        "two policies are the least among which the wrong one can be nearest",
        lambda replay: miss(exact(replay)),
    ),
    Broken(
        "exact-unscaled",
        "the local reward is left unscaled (sum log pi) while soft RL uses beta = 2",
        "one comparison of two completions, two policies, the smallest whole beta but 1",
        lambda replay: miss(exact(replay), offline_beta=1),
    ),
    Broken(
        "exact-shift-completion",
        "the rewards of R are shifted on one completion, not on a whole prompt",
        "two completions and two policies are the least with a choice",
        lambda replay: miss(exact(replay)),
    ),
)
CLAIM = Claim(NAME, "Theorem 2.2, proof in App. B.2", STATEMENT, LEFT_OUT, trial, BROKEN, trials=40)
