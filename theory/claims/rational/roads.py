"""The two roads over finite lists in exact arithmetic, on separate code paths, and their sets.

Online: the exact likelihood of reward tables, then soft RL over the list, once as the largest soft
return and once as the smallest reverse KL. Offline: the exact likelihood of each policy, multiplied
out token by token along the paths. Finite lists always have a maximiser, separable data included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from theory.certificate import Certificate
from theory.rational import (
    Comparison,
    ExactPolicy,
    ExactTree,
    Table,
    argmax,
    kl,
    likelihood,
    nearest,
    path_probabilities,
    soft_policy,
    soft_return,
    times,
)


def best_rewards(rewards: Sequence[Table], pairs: Sequence[Comparison], beta: int) -> list[Table]:
    """argmax of Eq. 6 over a list of y = exp(r / beta)."""
    return [rewards[i] for i in argmax([likelihood(y, pairs, beta=beta) for y in rewards])]


def online(
    tree: ExactTree,
    rewards: Sequence[Table],
    members: Sequence[Table],
    pairs: Sequence[Comparison],
    *,
    beta: int,
    reference: Table | None = None,
) -> tuple[int, ...]:
    """Places in Pi nearest in reverse KL to the soft optimum of a best reward (Lemma 2.1, B.1)."""
    chosen: set[int] = set()
    for y in best_rewards(rewards, pairs, beta):
        chosen.update(nearest(tree, members, optimum(tree, y, reference)))
    return tuple(sorted(chosen))


def online_by_return(
    tree: ExactTree,
    rewards: Sequence[Table],
    members: Sequence[Table],
    pairs: Sequence[Comparison],
    *,
    beta: int,
    reference: Table | None = None,
) -> tuple[int, ...]:
    """The same road as the theorems state it: the largest E[r] + beta H (or - beta KL to P_ref)."""
    chosen: set[int] = set()
    for y in best_rewards(rewards, pairs, beta):
        score = y if reference is None else times(y, reference)
        chosen.update(argmax([soft_return(tree, p, score) for p in members]))
    return tuple(sorted(chosen))


def optimum(tree: ExactTree, y: Table, reference: Table | None = None) -> Table:
    """The completion distribution of soft RL over ALL policies, by exact soft value iteration."""
    score = y if reference is None else times(y, reference)
    return path_probabilities(tree, soft_policy(tree, score))


def offline(
    tree: ExactTree,
    policies: Sequence[ExactPolicy],
    pairs: Sequence[Comparison],
    *,
    beta: int,
    reference: ExactPolicy | None = None,
) -> tuple[int, ...]:
    """Places of argmax over Pi of Eq. 9, or of the DPO likelihood if a reference is given."""
    values = [policy_likelihood(tree, pi, pairs, beta=beta, reference=reference) for pi in policies]
    return argmax(values)


def policy_likelihood(
    tree: ExactTree,
    policy: ExactPolicy,
    pairs: Sequence[Comparison],
    *,
    beta: int,
    reference: ExactPolicy | None = None,
) -> Fraction:
    """prod sigmoid(beta sum_h log pi / pi_ref of the winner, less the loser's), token by token."""
    value = Fraction(1)
    for pair in pairs:
        sides = []
        for place in (pair.winner, pair.loser):
            words, side = tree.completions[place], Fraction(1)
            for h, token in enumerate(words):
                side *= policy[pair.prompt][words[:h]][token]
                if reference is not None:
                    side /= reference[pair.prompt][words[:h]][token]
            sides.append(side**beta)
        value *= (sides[0] / (sides[0] + sides[1])) ** pair.count
    return value


# --- certificates: residual 0, slack 0 -----------------------------------------------------------


def counted(claim: str, part: str, mismatches: int) -> Certificate:
    """Certificate that a number of mismatches is 0."""
    return Certificate(claim, float(mismatches), 0.0, 0.0, part)


def subset(claim: str, part: str, left: Sequence[Table], right: Sequence[Table]) -> Certificate:
    """Certificate that each distribution of `left` is, fraction by fraction, one of `right`."""
    if not left or not right:
        raise ValueError(f"{part}: a set of optima of a list is never empty")
    known = set(right)
    return counted(claim, part, sum(table not in known for table in left))


def same_places(claim: str, part: str, left: Iterable[int], right: Iterable[int]) -> Certificate:
    """Certificate that two sets of places in a list are equal, as whole numbers sum of 2**place."""
    codes = [sum(2**place for place in places) for places in (left, right)]
    return Certificate(claim, float(codes[0]), float(codes[1]), 0.0, part)


def ties_together(
    claim: str, part: str, chosen: Iterable[int], ties: Iterable[tuple[int, int]]
) -> Certificate:
    """Certificate that a set holds both sides of each planted tie, or none."""
    held = set(chosen)
    return counted(claim, part, sum((a in held) != (b in held) for a, b in ties))


# --- how far a broken twin misses ----------------------------------------------------------------


def distance(tree: ExactTree, left: Sequence[Table], right: Sequence[Table]) -> float:
    """How far two sets of distributions are apart, nats; 0.0 exactly if they are equal.

    The largest, over the members of either set, of the least KL from a member of the other set to
    it, among those where it is finite; every KL is a sum of logarithms of fractions.
    """
    found = [0.0]
    for ones, others in ((left, right), (right, left)):
        for one in ones:
            if one not in set(others):
                found.append(min(float(kl(tree, other, one)) for other in others))
    return max(found)
