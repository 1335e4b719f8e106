"""Certificates and twins: NaN never passes, the slack is what it is said to be."""

from __future__ import annotations

import math

import pytest

from theory.certificate import MIN_VIOLATION, SLACK, Certificate, Twin, rounding_bound, worst
from theory.claims.instances import FIT_SHAPES, SHAPES


@pytest.mark.parametrize(
    ("lhs", "rhs", "holds"),
    [
        (1.0, 1.0, True),
        (1.0, 1.0 + 0.5 * SLACK, True),
        (1.0, 1.0 + 2 * SLACK, False),
        (math.nan, math.nan, False),
        (math.nan, 0.0, False),
        (math.inf, math.inf, False),
        (math.inf, 0.0, False),
    ],
)
def test_a_certificate_holds_only_for_two_close_numbers(lhs, rhs, holds):
    assert Certificate("c", lhs, rhs).holds is holds


def test_nan_is_the_worst_certificate():
    good, bad = Certificate("c", 0.0, 1.0), Certificate("c", math.nan, 0.0)
    assert worst([good, bad]) is bad
    assert worst([bad, good]) is bad


@pytest.mark.parametrize(
    ("violation", "holds", "fails"),
    [
        (0.0, True, False),
        (1e-3, True, False),
        (MIN_VIOLATION, False, True),
        (math.nan, True, False),
    ],
)
def test_a_twin_fails_only_by_a_clear_margin(violation, holds, fails):
    twin = Twin("broken", violation)
    assert (twin.holds, twin.fails) == (holds, fails)


def test_the_slack_covers_the_rounding_of_every_shape_that_is_checked():
    assert 2.2e-11 < SLACK <= 1e-10
    for _, vocab, horizon in (*SHAPES, *FIT_SHAPES):
        assert rounding_bound(horizon=horizon, vocab=vocab, scale=500.0) < 1.1e-11
