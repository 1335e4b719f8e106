"""What the sliders of the explorer may say about each family, and the settings they stand for.

Trees are kept small enough that both roads are fitted and drawn while a slider moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from theory.errors import InputError
from theory.families import Automata, Coverage, Family, Lookup, Rouge, Sat, Walsh

WORDS = 5  # of the coverage family
RATIO = 4.26  # clauses a variable
SIZES = (4, 6, 8)  # bits of a completion


@dataclass(frozen=True)
class Choice:
    """One family's sliders. complexity: its lowest, default and highest value; None: it has none.

    bits: sizes of a completion; () where completions are not bits. horizons: where they are not.
    """

    title: str
    complexity_name: str
    complexity: tuple[int, int, int] | None
    bits: tuple[int, ...] = ()
    horizons: tuple[int, ...] = ()

    def horizons_of(self, bits: int | None) -> tuple[int, ...]:
        """The horizons that are possible: divisors of the bits, or a plain range."""
        if bits is None:
            return self.horizons
        return tuple(h for h in range(1, bits + 1) if bits % h == 0)

    def reward_classes(self) -> tuple[str, ...]:
        """Names for `Question.reward_class`, simplest first; R_sim of the family leads."""
        degrees = tuple(f"degree-{k}" for k in range(1, min(self.bits) + 1)) if self.bits else ()
        return ("true", *degrees, "full")


CHOICES = {
    "walsh": Choice("Walsh polynomial", "degree", (1, 2, 4), SIZES),
    "automaton": Choice("sum modulo S", "states S", (2, 3, 9), (), tuple(range(3, 9))),
    "coverage": Choice("coverage of salient words", "salient words", (1, 2, WORDS), (), (1, 2, 3)),
    "sat": Choice("k-SAT clauses satisfied", "variables a clause", (1, 3, 4), SIZES),
    "lookup": Choice("lookup table", "bits", None, SIZES),
    "rouge": Choice("ROUGE-L", "reference length", (1, 2, 4), (), (1, 2, 3, 4)),
}


def spec_for(
    family: str,
    *,
    bits: int | None,
    horizon: int,
    complexity: int | None,
    sharpness: float,
    seed: int,
) -> Family:
    """The settings of a family at these sliders. Raises InputError, in one sentence, if none are.

    bits: for families of bits only. complexity: for all but the lookup table.
    """
    if family not in CHOICES:
        raise InputError(f"family {family!r} is none of {', '.join(CHOICES)}")
    choice = CHOICES[family]
    if (bits is None) == bool(choice.bits) or (complexity is None) != (choice.complexity is None):
        raise InputError(
            f"family {family!r}: bits {bits!r}, {choice.complexity_name} {complexity!r}"
        )
    common = {"horizon": horizon, "sharpness": sharpness, "seed": seed}
    size, level = bits or 0, complexity or 0
    if family == "walsh":
        return Walsh(bits=size, degree=level, **common)
    if family == "automaton":
        return Automata(states=level, **common)
    if family == "coverage":
        prompts = min(3, math.comb(WORDS, level))
        return Coverage(words=WORDS, salient=level, prompts=prompts, **common)
    if family == "sat":
        return Sat(bits=size, degree=level, clauses=round(RATIO * size), **common)
    if family == "lookup":
        return Lookup(bits=size, **common)
    return Rouge(words=3, reference=level, prompts=2, **common)
