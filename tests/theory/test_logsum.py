"""Sums of logarithms: their exact sign against whole products, and the base that decides 0."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import logsum
from theory.errors import InputError
from theory.logsum import LogSum, coprime_base

fractions = st.fractions(min_value=Fraction(1, 50), max_value=50, max_denominator=50)
small = st.integers(-4, 4)


@given(st.lists(st.tuples(small, fractions), max_size=6))
def test_the_sign_of_a_sum_of_logarithms_is_that_of_the_whole_product(terms):
    product = math.prod((q**c for c, q in terms), start=Fraction(1))
    total = LogSum.of((Fraction(c, 7), q) for c, q in terms)
    assert total.sign() == (product > 1) - (product < 1)
    assert float(total) == pytest.approx(math.log(product) / 7, rel=1e-12, abs=1e-15)


def test_equal_sums_are_told_from_nearly_equal_ones():
    zero = LogSum.of([(Fraction(1, 3), Fraction(216)), (Fraction(-1), Fraction(6))])
    assert zero.terms
    assert zero.sign() == 0
    assert float(zero) == 0.0
    near = LogSum.of([(Fraction(1), 1 + Fraction(1, 10**200))])
    assert near.sign() == 1
    assert float(near) == 1e-200
    shifted = LogSum.of([(Fraction(1, 3), Fraction(216)), (Fraction(-1), 6 + Fraction(1, 10**90))])
    assert shifted.sign() == -1
    assert shifted < zero
    assert not zero < LogSum({})


@given(st.lists(st.integers(2, 10**6), max_size=8))
def test_a_coprime_base_is_coprime_and_makes_every_number(numbers):
    base = coprime_base(numbers)
    assert all(math.gcd(a, b) == 1 for a, b in itertools.combinations(base, 2))
    for n in numbers:
        for factor in base:
            while n % factor == 0:
                n //= factor
        assert n == 1


def test_a_sum_too_long_to_be_told_from_zero_is_refused_with_its_size(monkeypatch):
    zero = LogSum.of([(Fraction(1), Fraction(6)), (Fraction(-1), Fraction(2))])
    zero = zero - LogSum.of([(Fraction(1), Fraction(3))])
    assert zero.sign() == 0
    monkeypatch.setattr(logsum, "MAX_WORK", 20)
    with pytest.raises(InputError, match=r"of 3 whole numbers with 7 bits together .* 21 .* 20"):
        zero.sign()
