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
    MAX_BITS,
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

    @property
    def finite_rewards(self) -> tuple[Table, ...]:
        """R. Raises InputError if exp(r / beta) is 0 somewhere, which is no finite reward."""
        check_positive(self.tree, self.rewards, "a reward's exp(r / beta)")
        return self.rewards


def check_positive(tree: ExactTree, tables: Sequence[Table], what: str) -> None:
    """Raises InputError naming prompt and completion where a table is 0."""
    for table in tables:
        for prompt, row in zip(tree.tree.prompts, table, strict=True):
            for words, value in zip(tree.completions, row, strict=True):
                if not value:
                    place = f"prompt {prompt!r}, completion {' '.join(words)!r}"
                    raise InputError(f"{what} must be > 0, got 0 at {place}")


def exact(replay: Replay) -> Exact:
    """Reads a file's numbers as fractions with denominators up to LARGEST.

    Raises InputError naming the twin and the place of a number that is no such fraction, a row that
    does not sum to 1 exactly, a count that is not whole, 0 at a compared completion, or numbers
    whose powers would be longer than MAX_BITS.
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
    check_positive(tree, rewards, f"{place}: a reward's exp(r / beta)")
    log_ref = replay.instance.log_ref
    reference = None if log_ref is None else fractions(tree, log_ref, f"{place}: reference")
    for table in tables if reference is None else (*tables, reference):
        for pair in pairs:
            for side in (pair.winner, pair.loser):
                if not table[pair.prompt][side]:
                    words = " ".join(tree.completions[side])
                    raise InputError(f"{place}: {words!r} is compared, and its probability is 0")
    beta = check_whole_beta(replay.beta)
    size = replay.beta * max(_length(table, reference, pairs) for table in tables)
    if size > MAX_BITS:
        raise InputError(
            f"{place}: its powers at beta {replay.beta:g} with the counts of its preferences take "
            f"up to {size:.3g} bits; the limit is {MAX_BITS:,}"
        )
    return Exact(tree, pairs, beta, pi, rewards or pi, reference)


def _length(table: Table, reference: Table | None, pairs: Sequence[Comparison]) -> float:
    """Bits of a table's likelihood, and of the sum of its rows, at beta = 1; at beta, beta times.

    A float, as counts may be of any size.
    """
    bits = [[_bits(value) for value in row] for row in table]
    given = bits if reference is None else [[_bits(value) for value in row] for row in reference]
    total = float(sum(map(sum, bits)))
    for pair in pairs:
        sides = (pair.winner, pair.loser)
        total += float(pair.count) * sum(
            bits[pair.prompt][side] + given[pair.prompt][side] for side in sides
        )
    return total


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


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
