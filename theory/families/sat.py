"""Random k-SAT: the reward is the number of clauses that a completion satisfies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.families.base import GroundTruth, ground_truth, require_scale, require_whole, sharpen
from theory.families.bits import bit_tree, check_bits, polynomials
from theory.walsh import all_bits

Clause = tuple[tuple[int, int], ...]  # (variable, the bit that satisfies it), k of them


@dataclass(frozen=True)
class Sat:
    """Different random clauses of k different variables each, drawn uniformly.

    A clause is a polynomial of degree k in the bits, so R_sim is all polynomials of degree k (the
    span of all clauses). The seed draws the clauses.
    """

    family: ClassVar[str] = "sat"
    fixed_features: ClassVar[bool] = True
    bits: int = 8
    """Variables; a completion sets them in order."""
    degree: int = 3
    """k, variables of a clause."""
    clauses: int = 34
    """Number of clauses; 4.26 a variable is where large random 3-SAT stops being satisfiable."""
    horizon: int = 8
    """H, divides bits: a completion is H tokens of bits / H bits."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "bits", 1, 27)
        require_whole(self, "degree", 1, self.bits)
        require_whole(self, "horizon", 1, self.bits)
        require_scale(self)
        check_bits(self.bits, self.horizon, self.degree)
        require_whole(self, "clauses", 1)
        different = 2**self.degree * math.comb(self.bits, self.degree)
        if self.clauses > different:
            raise InputError(
                f"clauses must be at most {different:,} (all there are), got {self.clauses:,}"
            )

    def draw(self) -> GroundTruth:
        """The reward of this seed. Raises InputError where all completions satisfy as many."""
        tree = bit_tree(self.bits, self.horizon)
        reward = sharpen(tree, satisfied(self.bits, self.draw_clauses())[None], self)
        return ground_truth(
            self, tree, reward, polynomials(self.bits, self.degree)[None], self.degree
        )

    def draw_clauses(self) -> tuple[Clause, ...]:
        """The clauses of this seed."""
        generator = np.random.default_rng([self.seed, self.bits, self.degree, self.clauses, 3])
        variables = list(combinations(range(self.bits), self.degree))
        signs = 2**self.degree
        picks = generator.choice(len(variables) * signs, size=self.clauses, replace=False)
        return tuple(
            tuple((i, int(pick) % signs >> j & 1) for j, i in enumerate(variables[pick // signs]))
            for pick in picks
        )


def satisfied(bits: int, clauses: tuple[Clause, ...]) -> Float[np.ndarray, " L"]:
    """How many of the clauses each setting of the bits satisfies."""
    table = all_bits(bits)
    total = np.zeros(len(table))
    for clause in clauses:
        variables, wanted = (list(part) for part in zip(*clause, strict=True))
        total += (table[:, variables] == np.array(wanted)[None, :]).any(axis=1)
    return total
