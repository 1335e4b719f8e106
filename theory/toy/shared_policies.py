"""Policies that share between prompts and prefixes: logits are polynomials in all bits seen."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theory.walsh import all_bits, features, subsets


def policy_basis(
    prompt_bits: int, completion_bits: int, degree: int
) -> Float[np.ndarray, "P S 2 d"]:
    """Walsh functions of at most `degree` bits of prompt, prefix and token, the token among them.

    States of level 0 come first, one bit a token; every level has its own coefficients. Terms
    without the token do not change a policy and are left out.
    """
    rows, levels = 2**prompt_bits, []
    for h in range(completion_bits):
        seen = prompt_bits + h + 1
        terms = tuple(term for term in subsets(seen, min(degree, seen)) if term[-1] == seen - 1)
        levels.append(features(all_bits(seen), terms).reshape(rows, 2**h, 2, -1))
    width = sum(level.shape[3] for level in levels)
    out = np.zeros((rows, 2**completion_bits - 1, 2, width))
    state = column = 0
    for level in levels:
        _, count, _, own = level.shape
        out[:, state : state + count, :, column : column + own] = level
        state, column = state + count, column + own
    return out
