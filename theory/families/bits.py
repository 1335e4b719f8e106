"""Completions that are n bits, cut into tokens: the tree and the polynomials on it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.families.base import check_size
from theory.tree import TokenTree
from theory.walsh import all_bits, features, subsets

MAX_TOKEN_BITS = 12


def check_bits(bits: int, horizon: int, degree: int) -> None:
    """Raise InputError unless the horizon divides the bits and the polynomials fit."""
    if bits % horizon:
        raise InputError(f"horizon {horizon} does not divide {bits} bits")
    width = bits // horizon
    if width > MAX_TOKEN_BITS:
        raise InputError(
            f"horizon {horizon} cuts {bits} bits into tokens of {width}: {2**width:,} tokens, at "
            f"most {2**MAX_TOKEN_BITS:,}"
        )
    check_size(2, bits, 1, sum(math.comb(bits, j) for j in range(1, degree + 1)))


@lru_cache(maxsize=32)
def bit_tree(bits: int, horizon: int) -> TokenTree:
    """All settings of the bits under one prompt; a token is bits / horizon of them.

    Leaf i is the number i, most significant bit first, whatever the horizon.
    """
    width = bits // horizon
    tokens = tuple(format(i, f"0{width}b") for i in range(2**width))
    return TokenTree(tokens, horizon, ("x",), (1.0,))


@lru_cache(maxsize=32)
def polynomials(bits: int, degree: int) -> Float[np.ndarray, "L D"]:
    """Every non-constant Walsh function of at most this degree; orthonormal as it is."""
    table = features(all_bits(bits), subsets(bits, degree))
    table.setflags(write=False)
    return table
