"""The paper's claims, one file each: statement, check over random trees, broken twins."""

from __future__ import annotations

from theory.claims import (
    beta_limits,
    bt_shift,
    coverage,
    eq_11,
    eq_22,
    eqs_2_3,
    lemma_2_1,
    lemma_b_1,
    sampler_invariance,
    tempering,
    theorem_2_2,
    theorem_2_3,
    theorem_3_1,
)
from theory.claims.base import Claim
from theory.errors import InputError

CLAIMS: tuple[Claim, ...] = (
    lemma_2_1.CLAIM,
    lemma_b_1.CLAIM,
    theorem_2_2.CLAIM,
    theorem_2_3.CLAIM,
    theorem_3_1.CLAIM,
    eq_11.CLAIM,
    bt_shift.CLAIM,
    eq_22.CLAIM,
    eqs_2_3.CLAIM,
    sampler_invariance.CLAIM,
    coverage.CLAIM,
    tempering.CLAIM,
    beta_limits.CLAIM,
)


def find(name: str, claims: tuple[Claim, ...] = CLAIMS) -> Claim:
    """The claim of that name. Raises InputError that lists the known ones."""
    for claim in claims:
        if claim.name == name:
            return claim
    raise InputError(f"unknown claim {name!r}; known: {', '.join(c.name for c in claims)}")
