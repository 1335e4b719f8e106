"""Walsh features against their definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.walsh import all_bits, features, random_coefficients, subsets


def test_bits_are_in_lexicographic_order_with_the_first_bit_most_significant():
    assert [tuple(row) for row in all_bits(3)] == list(itertools.product((0, 1), repeat=3))


@pytest.mark.parametrize("n_bits", [1, 3, 5])
def test_features_are_orthogonal_and_equal_the_product_definition(n_bits: int):
    terms = subsets(n_bits, n_bits)
    assert len(terms) == 2**n_bits - 1
    table = features(all_bits(n_bits), terms)
    np.testing.assert_array_equal(table.T @ table, 2**n_bits * np.eye(len(terms)))
    for row, bits in zip(table, all_bits(n_bits), strict=True):
        for value, term in zip(row, terms, strict=True):
            assert value == math.prod(-1 if bits[i] else 1 for i in term)


@given(st.integers(0, 2**31), st.integers(1, 4), st.floats(0.1, 9.0))
def test_sharpness_is_the_standard_deviation(seed: int, degree: int, sharpness: float):
    terms = subsets(4, degree)
    coefficients = random_coefficients(np.random.default_rng(seed), len(terms), sharpness)
    reward = features(all_bits(4), terms) @ coefficients
    assert np.mean(reward) == pytest.approx(0.0, abs=1e-12 * sharpness)
    assert np.std(reward) == pytest.approx(sharpness)


@given(st.integers(0, 15), st.integers(0, 2**31))
def test_flipping_bits_flips_the_sign_of_odd_overlaps(flip: int, seed: int):
    terms, bits = subsets(4, 2), all_bits(4)
    pattern = bits[flip]
    signs = np.array([(-1.0) ** sum(pattern[i] for i in term) for term in terms])
    theta = np.random.default_rng(seed).standard_normal(len(terms))
    np.testing.assert_allclose(
        features(bits ^ pattern, terms) @ theta, features(bits, terms) @ (signs * theta)
    )


@pytest.mark.parametrize(("n_bits", "degree", "word"), [(4, 5, "5"), (4, 0, "0"), (0, 1, "bits")])
def test_a_bad_degree_is_named(n_bits: int, degree: int, word: str):
    with pytest.raises(InputError, match=word):
        subsets(n_bits, degree)
