"""Batched Bradley-Terry fits against a general optimiser, and the symmetries they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from theory.bradley_terry import fit_counts, fit_many
from theory.errors import InputError

seeds = st.integers(0, 10**6)


def problems(seed, replicates=3, pairs=40, dimension=3):
    """Each pair is seen in both directions, so a maximiser exists."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(replicates, pairs, dimension))
    return np.concatenate([half, -half], axis=1), rng.exponential(size=(replicates, 2 * pairs)), rng


def wins_of(seed, replicates=3, items=5):
    rng = np.random.default_rng(seed)
    wins = rng.integers(1, 6, size=(replicates, items, items)).astype(float)
    wins[:, np.arange(items), np.arange(items)] = 0.0
    return wins, rng


@given(seeds, st.sampled_from([0.0, 0.3]))
def test_fit_many_equals_an_independent_optimiser(seed, ridge):
    d, w, _ = problems(seed)
    theta, norm = (np.asarray(x) for x in fit_many(d, w, ridge))
    assert (norm <= 1e-10 * w.sum(axis=1)).all()
    for features, weight, found in zip(d, w, theta, strict=True):

        def loss(t, x=features, c=weight):
            value = c @ np.logaddexp(0.0, -x @ t) + 0.5 * ridge * t @ t
            return value, ridge * t - x.T @ (c * expit(-x @ t))

        solved = minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(found, solved.x, atol=1e-7)
        assert loss(found)[0] <= solved.fun + 1e-12 * w.sum()


@given(seeds, st.floats(0.1, 10.0))
def test_features_scale_and_pairs_permute(seed, scale):
    d, w, rng = problems(seed)
    order = rng.permutation(d.shape[1])
    one, two = (np.asarray(fit_many(*x)[0]) for x in ((d, w), (scale * d[:, order], w[:, order])))
    np.testing.assert_allclose(one, scale * two, atol=1e-8)


def test_weights_count_repeats_and_zero_pads():
    d, _, _ = problems(1)
    twice = np.concatenate([d, d[:, :10]], axis=1)
    weighted = np.ones(d.shape[:2])
    weighted[:, :10] = 2.0
    expected = np.asarray(fit_many(twice, np.ones(twice.shape[:2]))[0])
    np.testing.assert_allclose(np.asarray(fit_many(d, weighted)[0]), expected, atol=1e-9)
    padded = np.concatenate([d, np.full((3, 5, 3), 7.0)], axis=1)
    padding = np.concatenate([weighted, np.zeros((3, 5))], axis=1)
    np.testing.assert_allclose(np.asarray(fit_many(padded, padding)[0]), expected, atol=1e-9)


def test_many_replicates_are_their_own_problems():
    d, w, _ = problems(2, replicates=67)
    every = np.asarray(fit_many(d, w)[0])
    for r in (0, 33, 34, 66):
        alone = np.asarray(fit_many(d[r : r + 1], w[r : r + 1])[0])[0]
        np.testing.assert_allclose(every[r], alone, atol=1e-9)


def test_steep_data_needs_shorter_steps_and_still_arrives():
    d = np.asarray([[[100.0], [-1.0], [0.01]]])
    w = np.asarray([[1.0, 1e-3, 5.0]])
    theta, norm = fit_many(d, w)
    assert float(norm[0]) < 1e-9
    assert float(theta[0, 0]) > 0


@given(seeds)
def test_counts_equal_the_expanded_pairs(seed):
    wins, _ = wins_of(seed)
    items = wins.shape[1]
    i, j = np.nonzero(~np.eye(items, dtype=bool))
    features = np.eye(items)[i] - np.eye(items)[j]
    d = np.broadcast_to(features[:, 1:], (3, len(i), items - 1))  # item 0 has strength 0
    theta = np.asarray(fit_many(d, wins[:, i, j])[0])
    theta = np.concatenate([np.zeros((3, 1)), theta], axis=1)
    found = np.asarray(fit_counts(wins)[0])
    np.testing.assert_allclose(found, theta - theta.mean(axis=1, keepdims=True), atol=1e-8)


@given(seeds, st.floats(0.01, 100.0))
def test_counts_scale_and_items_permute(seed, scale):
    wins, rng = wins_of(seed)
    order = rng.permutation(wins.shape[1])
    one, two = (np.asarray(fit_counts(x)[0]) for x in (wins, scale * wins[:, order][:, :, order]))
    np.testing.assert_allclose(one[:, order], two, atol=1e-8)
    np.testing.assert_allclose(one.sum(axis=1), 0.0, atol=1e-12)


def test_two_items_have_the_log_odds():
    wins = np.asarray([[[0.0, 8.0], [2.0, 0.0]]])
    half = 0.5 * math.log(4.0)
    np.testing.assert_allclose(np.asarray(fit_counts(wins)[0]), [[half, -half]], atol=1e-9)


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"weight at \(0, 1\)"):
        fit_many(np.ones((1, 2, 1)), np.asarray([[1.0, -1.0]]))
    with pytest.raises(InputError, match=r"difference at \(0, 1, 0\)"):
        fit_many(np.asarray([[[1.0], [np.nan]]]), np.ones((1, 2)))
    with pytest.raises(InputError, match="ridge"):
        fit_many(np.ones((1, 2, 1)), np.ones((1, 2)), -1.0)
    unchecked = getattr(fit_many, "__wrapped__", fit_many)  # without the tests' shape checks
    with pytest.raises(InputError, match=r"\(1, 2, 1\) with weights \(1, 3\)"):
        unchecked(np.ones((1, 2, 1)), np.ones((1, 3)))
    with pytest.raises(InputError, match=r"count at \(0, 0, 1\)"):
        fit_counts(np.asarray([[[0.0, np.inf], [1.0, 0.0]]]))
    with pytest.raises(InputError, match="item 1 of replicate 0"):
        fit_counts(np.asarray([[[0.0, 1.0], [1.0, 3.0]]]))


@pytest.mark.parametrize("items", [2, 5, 12])
@pytest.mark.parametrize("odds", [3.0, 1e6, 1e10])
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_a_chain_has_the_log_odds_of_its_links(items, odds, unit):
    """Neighbours alone are compared: each link is its own problem, and steps are log(odds)."""
    upper = np.eye(items, k=1)
    wins = unit * (odds * upper + upper.T)[None]
    steps = math.log(odds) * np.arange(items)[::-1]
    theta, norm = (np.asarray(x)[0] for x in fit_counts(wins))
    np.testing.assert_allclose(theta, steps - steps.mean(), rtol=1e-8, atol=1e-8)
    assert norm <= 1e-8 * unit
    i, j = np.nonzero(wins[0])
    d = (np.eye(items)[i] - np.eye(items)[j])[None, :, 1:]
    theta, norm = (np.asarray(x)[0] for x in fit_many(d, wins[:, i, j]))
    np.testing.assert_allclose(theta, steps[1:] - steps[0], rtol=1e-8, atol=1e-8)
    assert norm <= 1e-8 * unit


def test_links_of_different_weight_all_arrive():
    odds, unit = np.asarray([1e6, 2.0, 1e3, 5.0]), np.asarray([1.0, 1e-3, 10.0, 1e-2])
    wins = (np.diag(odds * unit, k=1) + np.diag(unit, k=-1))[None]
    theta = np.asarray(fit_counts(wins)[0])[0]
    np.testing.assert_allclose(theta[:-1] - theta[1:], np.log(odds), atol=1e-8)


def test_counts_without_a_unique_maximiser_are_refused():
    good = np.ones((3, 3)) - np.eye(3)
    never_loses, apart = good.copy(), good.copy()
    never_loses[:, 2] = 0.0
    apart[2], apart[:, 2] = 0.0, 0.0
    for bad in (never_loses, apart):
        with pytest.raises(InputError, match="replicate 1: items 0 and 2 are not linked"):
            fit_counts(np.stack([good, bad, good]))
    np.testing.assert_array_equal(np.asarray(fit_counts(good[None])[0]), np.zeros((1, 3)))


@given(seeds, st.integers(1, 6), st.floats(0.1, 0.9))
def test_a_fit_exists_where_scipy_finds_one_strong_component(seed, items, density):
    wins = np.random.default_rng(seed).random((4, items, items)) < density
    wins &= ~np.eye(items, dtype=bool)
    for one in wins.astype(float):
        parts, _ = connected_components(one, directed=True, connection="strong")
        if parts > 1:
            with pytest.raises(InputError, match="replicate 0: items 0 and"):
                fit_counts(one[None])
        else:
            assert float(fit_counts(one[None])[1][0]) < 1e-9


def test_counts_too_far_apart_are_refused():
    wins = np.asarray([[[0.0, 1e11], [1.0, 0.0]]])
    with pytest.raises(InputError, match=r"counts of replicate 0 span 1.0 to 1000\d+"):
        fit_counts(wins)
    d, w = np.asarray([[[1.0], [-1.0]]]), np.asarray([[1e11, 1.0]])
    with pytest.raises(InputError, match="weights of replicate 0 span"):
        fit_many(d, w)
    assert float(fit_many(d, w, 1.0)[0][0, 0]) > 10.0


def test_the_norm_tells_where_there_is_no_minimiser_to_reach():
    flat = np.asarray([[[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]]])  # a column that is never seen
    _, norm = fit_many(flat, np.ones((1, 3)))
    assert float(norm[0]) > 0.5
