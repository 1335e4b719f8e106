"""Walsh polynomials: rewards whose complexity is one number, the degree.

chi_S(b) = prod over i in S of (-1)^b_i for bits b in {0, 1}^n. Over uniform bits the chi_S are
orthonormal, so a polynomial without constant has standard deviation |coefficients|.
The constant is left out throughout: Bradley-Terry is blind to it (Eq. 4).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from theory.errors import InputError

Subset = tuple[int, ...]


def subsets(n_bits: int, degree: int) -> tuple[Subset, ...]:
    """Every non-empty set of at most `degree` of the bits 0..n_bits-1, by size, then in order.

    Raises InputError for n_bits < 1 or a degree outside 1..n_bits.
    """
    if n_bits < 1:
        raise InputError(f"bits must be at least 1, got {n_bits}")
    if not 1 <= degree <= n_bits:
        raise InputError(f"degree must lie in 1..{n_bits} (the number of bits), got {degree}")
    return tuple(s for size in range(1, degree + 1) for s in combinations(range(n_bits), size))


def all_bits(n_bits: int) -> Int[np.ndarray, "L n"]:
    """The bits of 0..2**n_bits-1, one row a number, most significant bit first."""
    numbers = np.arange(2**n_bits)[:, None]
    return (numbers >> np.arange(n_bits - 1, -1, -1)[None, :]) & 1


def features(bits: Int[np.ndarray, "L n"], terms: tuple[Subset, ...]) -> Float[np.ndarray, "L d"]:
    """chi_S of every row of bits for every S in terms: +1 or -1."""
    signs = 1.0 - 2.0 * bits
    columns = [np.prod(signs[:, list(term)], axis=1) for term in terms]
    return np.stack(columns, axis=1) if columns else np.zeros((len(bits), 0))


def random_coefficients(
    generator: np.random.Generator, n_terms: int, sharpness: float
) -> Float[np.ndarray, " d"]:
    """A direction uniform on the sphere, scaled to norm `sharpness`.

    sharpness: the standard deviation of the polynomial over uniform bits, reward units.
    """
    draw = generator.standard_normal(n_terms)
    return draw * (sharpness / np.linalg.norm(draw))
