"""The theorems on finite lists in exact fractions: certificates with residual 0 and slack 0."""

from __future__ import annotations

from theory.claims.base import Claim
from theory.claims.rational import lemmas, theorem_2_2, theorem_2_3, theorem_3_1

CLAIMS: tuple[Claim, ...] = (
    lemmas.EQ_11,
    lemmas.LEMMA_2_1,
    lemmas.LEMMA_B_1,
    theorem_2_2.CLAIM,
    theorem_2_3.CLAIM,
    theorem_3_1.CLAIM,
)
