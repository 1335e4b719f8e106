"""The numbers of a twin's file as fractions, and how far its two roads are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.claims.rational.roads import distance, offline, online
from theory.claims.replay import Replay
from theory.errors import InputError
from theory.rational import (
    Comparison,
    ExactTree,
    Table,
    check_whole_beta,
    comparisons,
    soft_policy,
)

LARGEST = 10**6  # denominator of a probability in a file
NEAR = 1e-13  # a probability in a file is a fraction up to this; two fractions are 1e-12 apart


@dataclass(frozen=True)
class Exact:
    """One twin in fractions. numbers.policies says how many of the file's policies are Pi.

    The others, if any, stand for the rewards of R: each is y = exp(r / beta), which Bradley-Terry
    and soft RL see only up to a factor a prompt, normalised. If there are none, R = R(Pi).
    """

    tree: ExactTree
    pairs: tuple[Comparison, ...]
    beta: int
    policies: tuple[Table, ...]  # Pi
    rewards: tuple[Table, ...]  # R
    reference: Table | None

    @property
    def given_reference(self) -> Table:
        """The reference. Raises InputError if the file has none."""
        if self.reference is None:
            raise InputError("this twin needs instance.reference")
        return self.reference


def exact(replay: Replay) -> Exact:
    """Reads a file's numbers as fractions with denominators up to LARGEST.

    Raises InputError naming the twin and the place of a number that is no such fraction, a row that
    does not sum to 1 exactly, a count that is not whole, or 0 at a compared completion.
    """
    tree, place = ExactTree(replay.instance.tree), f"twin {replay.twin!r} of {replay.claim}"
    pairs = _pairs(tree, replay)
    tables = [
        fractions(tree, log_p, f"{place}: policies[{i}]") for i, log_p in enumerate(replay.policies)
    ]
    count = replay.number("policies")
    if count not in range(1, len(tables) + 1):
        raise InputError(
            f"{place}: numbers.policies must be a whole number from 1 to {len(tables)}, the "
            f"policies of the file, got {count!r}"
        )
    pi, rewards = tuple(tables[: int(count)]), tuple(tables[int(count) :])
    log_ref = replay.instance.log_ref
    reference = None if log_ref is None else fractions(tree, log_ref, f"{place}: reference")
    for table in tables if reference is None else (*tables, reference):
        for pair in pairs:
            for side in (pair.winner, pair.loser):
                if not table[pair.prompt][side]:
                    words = " ".join(tree.completions[side])
                    raise InputError(f"{place}: {words!r} is compared, and its probability is 0")
    beta = check_whole_beta(replay.beta)
    return Exact(tree, pairs, beta, pi, rewards or pi, reference)


def _pairs(tree: ExactTree, replay: Replay) -> tuple[Comparison, ...]:
    """The comparisons of a file; none if it has no preferences."""
    data = replay.instance.data
    if data is None:
        return ()
    columns = (data.prompt, data.winner, data.loser, data.count)
    return comparisons(tree, zip(*(column.tolist() for column in columns), strict=True))


def fractions(tree: ExactTree, log_p: np.ndarray, place: str) -> Table:
    """Log-probabilities (P, L) as the fractions that they were before their logarithm was taken."""
    found = []
    for prompt, row in zip(tree.tree.prompts, log_p, strict=True):
        values = [math.exp(row[leaf]) for leaf in tree.tree.leaves]
        close = [Fraction(value).limit_denominator(LARGEST) for value in values]
        for words, value, fraction in zip(tree.completions, values, close, strict=True):
            if abs(float(fraction) - value) > NEAR:
                raise InputError(
                    f"{place}: prompt {prompt!r}, completion {' '.join(words)!r}: {value!r} is no "
                    f"fraction with a denominator up to {LARGEST:,}"
                )
        if sum(close) != 1:
            raise InputError(f"{place}: prompt {prompt!r}: the fractions sum to {sum(close)}")
        found.append(tuple(close))
    return tuple(found)


def miss(
    file: Exact, *, offline_policies: Sequence[Table] | None = None, offline_beta: int | None = None
) -> float:
    """How far RLHF over Pi with R is from the offline road (DPO with a reference), nats.

    The offline road runs over Pi at the file's beta unless it is given another list or beta.
    """
    tree, reference = file.tree, file.reference
    others = file.policies if offline_policies is None else tuple(offline_policies)
    rlhf = online(
        tree, file.rewards, file.policies, file.pairs, beta=file.beta, reference=reference
    )
    mle = offline(
        tree,
        [soft_policy(tree, table) for table in others],
        file.pairs,
        beta=file.beta if offline_beta is None else check_whole_beta(offline_beta),
        reference=None if reference is None else soft_policy(tree, reference),
    )
    return distance(tree, [file.policies[i] for i in rlhf], [others[i] for i in mle])
