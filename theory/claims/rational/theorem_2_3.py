"""Theorem 2.3 on finite lists, in exact fractions."""

from __future__ import annotations

import math

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
    random_policy,
    random_tree,
    realised_comparisons,
    whole_table,
)
from theory.claims.rational.replayed import check_positive, exact, miss
from theory.claims.rational.roads import (
    counted,
    offline,
    online,
    online_by_return,
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
    normalised,
    over,
    path_probabilities,
    soft_policy,
    times,
)

NAME = "theorem-2.3"
STATEMENT = (
    "Theorem 2.3 in exact fractions: for a finite list Pi, a positive reference and R = R(Pi) up "
    "to one shift a prompt, RLHF with the reference and DPO give the same SET of policies, "
    "compared fraction by fraction with residual 0, if T(pi_mle) and T^-1(pi_dpo) lie in Pi, with "
    "T(P) = P . P_ref normalised for each prompt. Planted ties, near ties and both inclusions as "
    "in 2.2. Trials where the list misses the hypothesis are vacuous; a finite list always has a "
    "maximiser."
)
LEFT_OUT = (
    "The hypothesis speaks of the optima over all policies, which are one point or infinitely "
    "many; T(pi_mle) in Pi and T^-1(pi_dpo) in Pi is what suffices. Eq. 14 as printed drops the "
    "prompt term log sum P_mle P_ref; with the term it holds exactly, without it a twin misses."
)
DRAWS = 12  # of a list, until it meets the hypothesis


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Every second list is planted to meet the hypothesis; the others are drawn until they do."""
    tree, beta = random_tree(rng, index), random_beta(rng)
    reference = random_policy(rng, tree)
    found: list[Certificate] = []
    for _ in range(DRAWS):
        tables = [random_distribution(rng, tree) for _ in range(3)]
        if index % 2 == 0:
            ideal = whole_table(rng, tree)
            pairs = realised_comparisons(rng, tree, ideal, beta)
            tables[0] = normalised(ideal)
        else:
            pairs = random_comparisons(rng, tree, KINDS[index // 2 % len(KINDS)])
        planted = planted_list(rng, tree, pairs, tables, beta=beta, distributions=True).tables
        images = [mixture(table, path_probabilities(tree, reference)) for table in planted]
        both = [*planted, *images]
        policies = [soft_policy(tree, both[i]) for i in rng.permutation(len(both))]
        found.append(_moved(tree, policies, reference, pairs, beta))
        listed = _roads(rng, tree, policies, reference, pairs, beta)
        if listed:
            return Trial((*found, *listed))
    return Trial(tuple(found), vacuous=True)


def mixture(table: Table, reference: Table) -> Table:
    """T(P) = P . P_ref, normalised for each prompt."""
    return normalised(times(table, reference))


def _moved(
    tree: ExactTree,
    policies: list[ExactPolicy],
    reference: ExactPolicy,
    pairs: tuple[Comparison, ...],
    beta: int,
) -> Certificate:
    """T carries the likelihood of Eq. 9 to DPO's, for every policy, hypothesis or not."""
    wrong = 0
    for policy in policies:
        table = mixture(path_probabilities(tree, policy), path_probabilities(tree, reference))
        image = soft_policy(tree, table)
        moved = policy_likelihood(tree, image, pairs, beta=beta, reference=reference)
        wrong += moved != policy_likelihood(tree, policy, pairs, beta=beta)
    return counted(NAME, "the DPO likelihood of T(P) is the likelihood of P", wrong)


def _roads(
    rng: np.random.Generator,
    tree: ExactTree,
    policies: list[ExactPolicy],
    reference: ExactPolicy,
    pairs: tuple[Comparison, ...],
    beta: int,
) -> list[Certificate]:
    """Both roads over the list; no certificates if it misses the hypothesis."""
    members = [path_probabilities(tree, policy) for policy in policies]
    ref = path_probabilities(tree, reference)
    mle = [members[i] for i in offline(tree, policies, pairs, beta=beta)]
    chosen = offline(tree, policies, pairs, beta=beta, reference=reference)
    dpo = [members[i] for i in chosen]
    into = [mixture(table, ref) for table in mle]
    back = [normalised(over(table, ref)) for table in dpo]
    known = set(members)
    if not (known.issuperset(into) and known.issuperset(back)):
        return []
    rewards = [prompt_shift(rng, tree, members[i]) for i in rng.permutation(len(members))]
    reached = online(tree, rewards, members, pairs, beta=beta, reference=ref)
    by_return = online_by_return(tree, rewards, members, pairs, beta=beta, reference=ref)
    rlhf = [members[i] for i in reached]
    return [
        subset(NAME, "every RLHF policy is a DPO policy", rlhf, dpo),
        subset(NAME, "every DPO policy is an RLHF policy", dpo, rlhf),
        same_places(NAME, "the sets as places in the list", reached, chosen),
        same_places(NAME, "largest return less KL, smallest reverse KL", by_return, reached),
        subset(NAME, "every RLHF policy is T(pi_mle)", rlhf, into),
        subset(NAME, "every T(pi_mle) is an RLHF policy", into, rlhf),
        _equation_14(mle, dpo, ref),
    ]


def _equation_14(mle: list[Table], dpo: list[Table], ref: Table) -> Certificate:
    """P_dpo sum(P_mle P_ref) = P_mle P_ref for a partner of each P_dpo."""
    products = [times(table, ref) for table in mle]
    partners = 0
    for table in dpo:
        scaled = [
            tuple(
                tuple(sum(row) * value for value in mine)
                for row, mine in zip(product, table, strict=True)
            )
            for product in products
        ]
        partners += any(a == b for a, b in zip(scaled, products, strict=True))
    return counted(NAME, "Eq. 14 with its prompt term", len(dpo) - partners)


# --- broken twins --------------------------------------------------------------------------------


def _printed(replay: Replay) -> float:
    """The least |log P_dpo - log P_mle - log P_ref| over the optima and completions, nats."""
    file = exact(replay)
    check_positive(file.tree, (*file.policies, file.given_reference), "a probability")
    policies = [soft_policy(file.tree, table) for table in file.policies]
    reference = soft_policy(file.tree, file.given_reference)
    mle = offline(file.tree, policies, file.pairs, beta=file.beta)
    dpo = offline(file.tree, policies, file.pairs, beta=file.beta, reference=reference)
    gaps = [
        abs(math.log(value))
        for i in dpo
        for j in mle
        for row in over(file.policies[i], times(file.policies[j], file.given_reference))
        for value in row
    ]
    return min(gaps)


def _outside(replay: Replay, *, image: bool) -> float:
    """Both roads over one list. NaN unless R = R(Pi) and the other half of the condition holds.

    image: T(pi_mle) is the half that may lie outside Pi; otherwise T^-1(pi_dpo).
    """
    file = exact(replay)
    ref = file.given_reference
    if file.rewards != file.policies:
        return math.nan
    policies = [soft_policy(file.tree, table) for table in file.policies]
    reference = soft_policy(file.tree, ref) if image else None
    chosen = offline(file.tree, policies, file.pairs, beta=file.beta, reference=reference)
    for i in chosen:
        table = file.policies[i]
        other = normalised(over(table, ref)) if image else mixture(table, ref)
        if other not in file.policies:
            return math.nan
    return miss(file)


BROKEN = (
    Broken(
        "exact-outside",
        "T(pi_mle) lies outside Pi (T^-1(pi_dpo) is in it)",
        "Three policies. Of two, T^-1(pi_dpo) and pi_dpo, if pi_mle is the first T(pi_mle) is in "
        "Pi; if the second, soft RL aims past it along a line and still takes it.",
        lambda replay: _outside(replay, image=True),
    ),
    Broken(
        "exact-back-outside",
        "T^-1(pi_dpo) lies outside Pi (T(pi_mle) is in it)",
        "two completions and two policies are the least with a choice",
        lambda replay: _outside(replay, image=False),
    ),
    Broken(
        "exact-printed",
        "Eq. 14 as printed, without its prompt term",
        "two completions; pi_mle and T(pi_mle) are the least that the equation compares",
        _printed,
    ),
    Broken(
        "exact-uncovered",
        "P_ref is 0 on a completion that is not compared",
        "two completions are compared and a third is not; two policies differ there alone",
        lambda replay: miss(exact(replay)),
    ),
    Broken(
        "exact-reward-missing",
        "R is not R(Pi): it lacks the local reward of pi_mle",
        "two policies of two completions; the reference is uniform, so that T changes nothing",
        lambda replay: miss(exact(replay)),
    ),
)
CLAIM = Claim(NAME, "Theorem 2.3, proof in App. B.3", STATEMENT, LEFT_OUT, trial, BROKEN, trials=40)
