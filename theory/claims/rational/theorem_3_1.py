"""Theorem 3.1 on finite lists, in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
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
    random_table,
    random_tree,
)
from theory.claims.rational.replayed import exact, miss
from theory.claims.rational.roads import (
    counted,
    offline,
    online,
    online_by_return,
    optimum,
    policy_likelihood,
    same_places,
    subset,
)
from theory.claims.replay import Replay
from theory.rational import (
    Comparison,
    ExactPolicy,
    ExactTree,
    Table,
    likelihood,
    nearest,
    path_probabilities,
    soft_policy,
)

NAME = "theorem-3.1"
STATEMENT = (
    "Theorem 3.1 in exact fractions: if the soft-optimal policy of every reward of a finite list "
    "R_sim (over ALL policies) lies in a finite list Pi, then RLHF over R_sim and maximum "
    "likelihood over Pi(R_sim) give the same SET, compared fraction by fraction with residual 0; "
    "planted ties, near ties and both inclusions as in 2.2. In half of the trials the three drawn "
    "rewards of R_sim are linear in two features, with exp(theta / beta) from a grid; the planted "
    "ones beside them need not be. Isomorphic classes imply the hypothesis, checked with R = "
    "R(Pi); not conversely: it is checked where Pi holds three more policies than the optima of "
    "R_sim."
)
LEFT_OUT = (
    "The proof shows that every RLHF policy is in pi_sim and uses 'r_pi in R_sim', which is true "
    "up to a shift a prompt that Bradley-Terry does not see: the likelihood of each policy of "
    "Pi(R_sim) is compared with that of its reward. The other inclusion is checked too. "
    "pi*_r is read over all policies: over Pi the hypothesis would be empty."
)
GRID = tuple(Fraction(a, b) for a, b in ((1, 3), (1, 2), (1, 1), (2, 1), (3, 1)))


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Both roads over R_sim and a Pi that holds its optima beside three other policies."""
    tree, beta = random_tree(rng, index), random_beta(rng)
    pairs = random_comparisons(rng, tree, KINDS[index % len(KINDS)])
    linear = index // len(KINDS) % 2 == 0
    drawn = _linear(rng, tree) if linear else [random_table(rng, tree) for _ in range(3)]
    rewards = planted_list(rng, tree, pairs, drawn, beta=beta, distributions=False).tables
    targets = [optimum(tree, y) for y in rewards]
    listed = [*targets, *_others(rng, tree, targets)]
    policies = [soft_policy(tree, listed[i]) for i in rng.permutation(len(listed))]
    members = [path_probabilities(tree, policy) for policy in policies]
    reached = online(tree, rewards, members, pairs, beta=beta)
    by_return = online_by_return(tree, rewards, members, pairs, beta=beta)
    simple = simple_places(tree, rewards, members)
    best = offline(tree, [policies[i] for i in simple], pairs, beta=beta)
    chosen = [simple[i] for i in best]
    rlhf, sim = [members[i] for i in reached], [members[i] for i in chosen]
    return Trial(
        (
            subset(NAME, "the hypothesis: every soft-optimal policy is in Pi", targets, members),
            subset(NAME, "every RLHF policy is in pi_sim", rlhf, sim),
            subset(NAME, "every pi_sim policy is an RLHF policy", sim, rlhf),
            same_places(NAME, "the sets as places in the list", reached, chosen),
            same_places(NAME, "largest soft return, smallest reverse KL", by_return, reached),
            _shift_unseen(tree, rewards, policies, pairs, beta),
            _isomorphic(rng, tree, members),
        )
    )


def simple_places(
    tree: ExactTree, rewards: Sequence[Table], members: Sequence[Table]
) -> tuple[int, ...]:
    """Pi(R_sim): places of the reverse-KL projections onto Pi of every P*_r."""
    kept: set[int] = set()
    for y in rewards:
        kept.update(nearest(tree, members, optimum(tree, y)))
    return tuple(sorted(kept))


def _linear(rng: np.random.Generator, tree: ExactTree) -> list[Table]:
    """y = prod_k t_k**phi_k: features phi in {-1, 0, 1}, t = exp(theta / beta) from GRID; three."""
    shape = (tree.tree.n_prompts, len(tree.completions), 2)
    phi = rng.integers(-1, 2, size=shape).tolist()
    found = []
    for _ in range(3):
        t = [GRID[int(i)] for i in rng.integers(0, len(GRID), size=2)]
        found.append(tree.table([[t[0] ** a * t[1] ** b for a, b in row] for row in phi]))
    return found


def _others(rng: np.random.Generator, tree: ExactTree, targets: Sequence[Table]) -> list[Table]:
    """Three policies that are soft-optimal for no reward of R_sim."""
    found: list[Table] = []
    while len(found) < 3:
        table = random_distribution(rng, tree)
        if table not in targets:
            found.append(table)
    return found


def _shift_unseen(
    tree: ExactTree,
    rewards: Sequence[Table],
    policies: Sequence[ExactPolicy],
    pairs: Sequence[Comparison],
    beta: int,
) -> Certificate:
    """Eq. 9 of each projection of P*_r is Eq. 6 of r: r_pi and r differ by prompt shifts at most.

    Eq. 9 is multiplied out token by token, Eq. 6 is that of the reward table.
    """
    members, wrong = [path_probabilities(tree, policy) for policy in policies], 0
    for y in rewards:
        value = likelihood(y, pairs, beta=beta)
        for i in nearest(tree, members, optimum(tree, y)):
            wrong += policy_likelihood(tree, policies[i], pairs, beta=beta) != value
    return counted(NAME, "r_pi of pi in Pi(R_sim) has the likelihood of its reward", wrong)


def _isomorphic(rng: np.random.Generator, tree: ExactTree, members: Sequence[Table]) -> Certificate:
    """The soft optimum of each policy's local reward, shifted a prompt, is that policy."""
    wrong = sum(optimum(tree, prompt_shift(rng, tree, table)) != table for table in members)
    return counted(NAME, "isomorphic classes imply the hypothesis", wrong)


# --- broken twins --------------------------------------------------------------------------------


def _restricted(replay: Replay) -> float:
    """How far RLHF is from maximum likelihood over Pi(R_sim), nats."""
    file = exact(replay)
    kept = simple_places(file.tree, file.rewards, file.policies)
    return miss(file, offline_policies=[file.policies[i] for i in kept])


BROKEN = (
    Broken(
        "exact-outside",
        "one soft-optimal policy lies outside Pi",
        "two completions, two rewards and two policies are the least with a choice on both roads",
        _restricted,
    ),
    Broken(
        "exact-all-of-pi",
        "maximum likelihood runs over all of Pi, not over Pi(R_sim)",
        "two completions, one reward; one policy beside its optimum",
        lambda replay: miss(exact(replay)),
    ),
)
CLAIM = Claim(NAME, "Theorem 3.1, proof in App. B.4", STATEMENT, LEFT_OUT, trial, BROKEN, trials=40)
