"""Certificates and twins: NaN never passes, the slack is what it is said to be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from theory.certificate import (
    MIN_VIOLATION,
    SLACK,
    Certificate,
    Twin,
    fit_bound,
    rounding_bound,
    worst,
)
from theory.claims.instances import (
    FIT_SHAPES,
    KINDS,
    LINEAR_SHAPES,
    SHAPES,
    random_tree,
    two_way_pairs,
)
from theory.fit import fit_tabular
from theory.preferences import bt_probability


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
    assert 6e-11 < SLACK <= 1e-10
    for _, vocab, horizon in (*SHAPES, *FIT_SHAPES):
        assert rounding_bound(horizon=horizon, vocab=vocab, scale=500.0) < 2e-11


def test_the_shapes_cover_what_is_promised():
    """V 2 to 6, H 1 to 6, 1 to 5 prompts; each shape of a fit meets each kind of data."""
    prompts, vocab, horizon = (set(column) for column in zip(*SHAPES, strict=True))
    assert prompts == {1, 2, 3, 4, 5}
    assert vocab == {2, 3, 4, 5, 6}
    assert horizon == {1, 2, 3, 4, 5, 6}
    for shapes in (FIT_SHAPES, LINEAR_SHAPES):
        assert math.gcd(len(shapes), len(KINDS)) == 1
    for n_prompts, v, h in FIT_SHAPES:
        assert n_prompts * sum(v ** (k + 1) for k in range(h)) <= 130


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("shape", FIT_SHAPES)
def test_the_fits_of_planted_pairs_stay_inside_their_bound(shape, connected):
    """n, the curvature at the maximiser and the bound at the smallest beta, on real instances."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tree = random_tree(rng, shape)
        data = two_way_pairs(rng, tree, connected=connected)
        optima = fit_tabular(tree, data)
        p = bt_probability(optima.r, data)
        d = np.zeros((data.size, tree.n_prompts * tree.n_leaves))
        d[np.arange(data.size), data.prompt * tree.n_leaves + data.winner] = 1.0
        d[np.arange(data.size), data.prompt * tree.n_leaves + data.loser] -= 1.0
        curvatures = np.linalg.eigvalsh((d * (data.count * p * (1 - p))[:, None]).T @ d)
        least = float(curvatures[curvatures > 1e-9].min())
        assert data.total <= 780
        assert least >= 0.19
        assert fit_bound(comparisons=data.total, curvature=least, beta=0.1) < 3.7e-11
