"""Pairs needed for a stated KL on curves whose answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.efficiency import COLUMNS, Curve, crossing, data_efficiency, efficiency_rows
from theory.errors import InputError

NS = (64, 256, 1024)


def power_law(scale: float, slope: float, noise: float = 0.0, count: int = 50) -> Curve:
    """Mean KL = scale * N^-slope exactly; replicates around it, the same for every curve."""
    factor = np.random.default_rng(7).lognormal(0.0, 1.0, size=count)
    factor = 1.0 + noise * (factor / factor.mean() - 1.0)
    mean = scale * np.array(NS, dtype=float) ** -slope
    return Curve(NS, mean[:, None] * factor[None, :])


@given(st.floats(0.3, 1.5), st.floats(1.1, 3.0))
def test_two_power_laws_have_the_ratio_of_their_scales(slope: float, factor: float):
    online, offline = power_law(1.0, slope), power_law(factor**slope, slope)
    target = 1.5 * offline.kl[-1, 0]
    found = data_efficiency(offline, online, target)
    assert found is not None
    if found.bound == "none":
        assert found.ratio == pytest.approx(factor)
        assert found.n_offline == pytest.approx(1024 / 1.5 ** (1 / slope))
        assert (found.low, found.high) == (pytest.approx(factor), pytest.approx(factor))
    else:
        assert found.n_online is None
        assert found.n_offline == pytest.approx(1024 / 1.5 ** (1 / slope))
        assert found.ratio <= factor * (1 + 1e-12)


def test_the_crossing_interpolates_logarithms_and_takes_the_first():
    means = np.array([[1.0, 0.1, 0.01], [1.0, 0.1, 0.5], [0.1, 0.1, 0.1], [2.0, 2.0, 2.0]])
    n = (10, 100, 1000)
    target = np.full(4, math.sqrt(0.1))
    np.testing.assert_allclose(
        crossing(n, means, target), [math.sqrt(1000), math.sqrt(1000), 0.0, math.inf]
    )
    np.testing.assert_allclose(crossing(n, means[:1], np.array([0.1])), [100.0])


@pytest.mark.parametrize(
    ("offline", "online", "target", "bound", "ratio", "known"),
    [
        ([4, 2, 1], [2, 1, 0.5], 1.0, "none", 4.0, (256, 1024)),
        ([4, 3, 2], [2, 1, 0.5], 1.0, "ratio is at least", 4.0, (256, None)),
        ([4, 1, 0.5], [1, 0.5, 0.2], 1.0, "ratio is at least", 4.0, (None, 256)),
        ([4, 3, 2], [0.5, 0.3, 0.2], 1.0, "ratio is at least", 16.0, (None, None)),
        ([2, 1, 0.5], [4, 3, 2], 1.0, "ratio is at most", 0.25, (None, 256)),
        ([0.5, 0.4, 0.3], [4, 1, 0.5], 1.0, "ratio is at most", 0.25, (256, None)),
        ([0.5, 0.4, 0.3], [4, 3, 2], 1.0, "ratio is at most", 1 / 16, (None, None)),
        ([4, 3, 2], [4, 3, 2], 1.0, "neither arm reaches it", None, (None, None)),
    ],
)
def test_what_lies_outside_the_curves_is_a_bound(offline, online, target, bound, ratio, known):
    first, second = (
        Curve(NS, np.repeat(np.array(k, float)[:, None], 3, 1)) for k in (offline, online)
    )
    found = data_efficiency(first, second, target)
    assert found is not None
    assert found.bound == bound
    assert found.ratio == (None if ratio is None else pytest.approx(ratio))
    for value, wanted in zip((found.n_online, found.n_offline), known, strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted))
    if bound != "none":
        assert (found.low, found.high) == (None, None)


def test_a_target_that_both_reach_at_once_says_nothing():
    curve = power_law(1.0, 0.5)
    assert data_efficiency(curve, curve, 1.0) is None


def test_the_last_target_is_what_offline_reaches_with_all_its_pairs():
    offline, online = power_law(3.0, 0.5, noise=0.8), power_law(1.5, 0.5, noise=0.8)
    found = data_efficiency(offline, online, None)
    assert found is not None
    assert found.target_kl == pytest.approx(offline.kl[-1].mean())
    assert found.n_offline == pytest.approx(1024.0)
    assert found.ratio == pytest.approx(4.0)
    assert found.low is not None
    assert found.high is not None
    # both roads share the replicates, whose common factor cancels
    assert (found.low, found.high) == (pytest.approx(4.0), pytest.approx(4.0))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    mean = {"offline": (4.0, 2.0, 1.0), "online": (2.0, 1.0, 0.5)}
    hits, trials = 0, 100
    for trial in range(trials):
        curves = {
            arm: Curve(NS, np.array(means)[:, None] * generator.gamma(4.0, 0.25, size=(3, 60)))
            for arm, means in mean.items()
        }
        found = data_efficiency(curves["offline"], curves["online"], 1.5, resamples=300, seed=trial)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 4.0 <= found.high
    assert 85 <= hits <= 100


def test_an_interval_that_runs_out_of_the_curve_is_open():
    generator = np.random.default_rng(1)
    offline = Curve(
        NS, np.array([4.0, 2.0, 1.0])[:, None] * generator.gamma(1.0, 1.0, size=(3, 40))
    )
    target = float(offline.kl[-1].mean()) * 1.01
    found = data_efficiency(offline, power_law(64.0, 0.7, count=40), target)
    assert found is not None
    assert found.bound == "none"
    assert found.low is not None
    assert found.high is None


def test_bad_curves_and_targets_are_refused():
    good = power_law(1.0, 0.5)
    for n, kl in (((64, 64), np.ones((2, 3))), ((64,), np.ones((2, 3))), ((64,), np.zeros((1, 3)))):
        with pytest.raises(InputError):
            Curve(n, kl)
    with pytest.raises(InputError, match="finite"):
        Curve((64,), np.full((1, 2), np.nan))
    with pytest.raises(InputError, match="target must be > 0 nats, got -1"):
        data_efficiency(good, good, -1.0)
    with pytest.raises(InputError, match="50 and 3 replicates are not paired"):
        data_efficiency(good, Curve(NS, np.ones((3, 3))), 0.5)


def rows_of(curves: dict[str, Curve], **fixed: object) -> dict[str, np.ndarray]:
    """The columns of a sweep: one candidate an arm, chosen, and another that is not."""
    held = {
        "family": "walsh", "settings": '{"degree": 2}', "complexity_name": "degree",
        "complexity": 2, "sharpness": 2.0, "horizon": 8, "coverage": "uniform", "noise": 0.0,
        "reference_share": 0.0, "beta": 1.0, "reward_class": "true", "width": 32,
    } | fixed  # fmt: skip
    rows = []
    for arm, curve in curves.items():
        for n, values in zip(curve.n_pairs, curve.kl, strict=True):
            for seed, kl in enumerate(values):
                for right in (True, False):
                    row = held | {"arm": arm, "n_pairs": n, "seed": seed, "chosen": right}
                    rows.append(row | {"hindsight": right, "kl": kl if right else 99.0})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_records_carry_their_setting_and_stand_for_every_pair_of_roads():
    curves = {"offline_all": power_law(4.0, 0.5), "two_stage": power_law(2.0, 0.5)}
    found = efficiency_rows(rows_of(curves), targets=(0.2,))
    assert [tuple(row) for row in found] == [COLUMNS] * len(found)
    assert [(row["choice"], row["target_kl"]) for row in found] == [
        ("chosen", 0.2), ("chosen", pytest.approx(0.125)),
        ("hindsight", 0.2), ("hindsight", pytest.approx(0.125)),
    ]  # fmt: skip
    assert found[0]["ratio"] == pytest.approx(4.0)
    assert (found[0]["offline_arm"], found[0]["online_arm"]) == ("offline_all", "two_stage")
    assert found[0]["replicates"] == 50
    setting = json.loads(found[0]["setting"])
    assert setting["degree"] == 2
    assert setting["noise"] == 0.0
    assert "n_pairs" not in setting


def test_settings_are_kept_apart_and_single_cells_have_no_record():
    curves = {"offline_all": power_law(4.0, 0.5), "two_stage": power_law(2.0, 0.5)}
    both = [rows_of(curves), rows_of(curves, noise=0.1)]
    joined = {name: np.concatenate([rows[name] for rows in both]) for name in both[0]}
    noises = [json.loads(row["setting"])["noise"] for row in efficiency_rows(joined)]
    assert sorted(set(noises)) == [0.0, 0.1]
    single = {arm: Curve(NS[:1], curve.kl[:1]) for arm, curve in curves.items()}
    assert efficiency_rows(rows_of(single)) == []
    assert efficiency_rows(rows_of({"two_stage": curves["two_stage"]})) == []
