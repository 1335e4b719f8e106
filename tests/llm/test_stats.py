"""Intervals: against closed forms, their coverage, their symmetries, and what is no interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.results.stats import (
    equivalence,
    over_prompts,
    paired_bootstrap,
    prompts_to_decide,
    seeds_to_decide,
    t_interval,
)

VALUES = st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=8)


def test_t_interval_of_known_numbers() -> None:
    found = t_interval([1.0, 2.0, 3.0])
    assert found is not None
    half = 4.302652729911275 / math.sqrt(3)  # t table, 2 degrees of freedom, 97.5%
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert found.kind == "95% t interval over 3 seeds"


def test_fewer_than_two_seeds_or_prompts_give_none() -> None:
    assert t_interval([]) is None
    assert t_interval([0.3]) is None
    assert paired_bootstrap([0.3], [0.1], seed=0) is None
    assert seeds_to_decide([0.3]) is None


def test_t_interval_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n = 2000
    covered = 0
    for _ in range(n):
        found = t_interval(rng.normal(1.0, 2.0, 3).tolist(), level=0.9)
        assert found is not None
        covered += found.low < 1.0 < found.high
    assert abs(covered / n - 0.9) < 4.5 * math.sqrt(0.9 * 0.1 / n)


@settings(deadline=None)
@given(values=VALUES, shift=st.floats(-3, 3), scale=st.floats(0.1, 4))
def test_t_interval_follows_shift_and_scale(values: list, shift: float, scale: float) -> None:
    one, two = t_interval(values), t_interval([scale * v + shift for v in values])
    assert one is not None
    assert two is not None
    expected = (scale * one.low + shift, scale * one.high + shift)
    assert (two.low, two.high) == pytest.approx(expected, abs=1e-9)


def test_paired_bootstrap_is_seeded_paired_and_near_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(0, 10, 600)
    a, b = common + rng.normal(0.5, 1, 600), common
    found = paired_bootstrap(a.tolist(), b.tolist(), seed=3)
    assert found is not None
    assert found == paired_bootstrap(a.tolist(), b.tolist(), seed=3)
    assert found != paired_bootstrap(a.tolist(), b.tolist(), seed=4)
    d = a - b
    half = 1.96 * d.std(ddof=1) / math.sqrt(600)
    assert found.low == pytest.approx(d.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(d.mean() + half, abs=0.1 * half)
    shuffled = paired_bootstrap(a.tolist(), rng.permutation(b).tolist(), seed=3)
    assert shuffled is not None
    assert shuffled.high - shuffled.low > 5 * (found.high - found.low)
    assert "paired bootstrap over 600 prompts within a seed" in found.kind


def test_paired_bootstrap_turns_round_with_its_sides() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(50).tolist(), rng.random(50).tolist()
    one, two = paired_bootstrap(a, b, seed=0), paired_bootstrap(b, a, seed=0)
    assert one is not None
    assert two is not None
    assert (two.low, two.high) == pytest.approx((-one.high, -one.low))
    with pytest.raises(ValueError, match="not paired: 50 and 49"):
        paired_bootstrap(a, b[:-1], seed=0)


@settings(deadline=None)
@given(values=VALUES)
def test_the_advised_number_of_seeds_is_the_first_that_decides(values: list) -> None:
    from scipy import stats

    n = seeds_to_decide(values)
    mean, sd = abs(np.mean(values)), np.std(values, ddof=1)

    def half(k: int) -> float:
        return float(stats.t.ppf(0.975, k - 1) * sd / math.sqrt(k))

    if n is None:
        assert half(10_000) >= mean
    else:
        assert half(n) < mean
        assert n == 2 or half(n - 1) >= mean
        interval = t_interval(values)
        assert interval is not None
        undecided = interval.low < -1e-12 and interval.high > 1e-12
        assert not undecided or n > len(values)


def test_seeds_for_an_equivalence() -> None:
    values = [0.01, -0.01, 0.02, 0.0]
    n = seeds_to_decide(values, margin=0.02)
    assert n is not None
    assert n > 2
    assert seeds_to_decide([0.5, 0.5], margin=0.5) is None  # on the boundary: never decided
    assert seeds_to_decide([1.0, -1.0]) is None  # no mean to tell from 0


@pytest.mark.parametrize("bad", [[0.1, math.nan], [math.inf, 1.0]])
def test_values_that_are_no_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        t_interval(bad)
    with pytest.raises(ValueError, match="not a finite number"):
        paired_bootstrap(bad, [0.0, 0.0], seed=0)
    with pytest.raises(ValueError, match="level"):
        t_interval([0.0, 1.0], level=95)


# --- equivalence ---------------------------------------------------------------------------------


@given(values=VALUES, margin=st.floats(0.01, 3))
def test_the_two_one_sided_tests_say_what_the_interval_says(values: list, margin: float) -> None:
    from scipy import stats

    found, interval = equivalence(values, margin), t_interval(values)
    assert found is not None
    assert interval is not None
    assert found.interval == interval
    assert found.holds == (-margin < interval.low and interval.high < margin)
    if np.std(values) > 1e-9:
        tests = [
            stats.ttest_1samp(values, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(values, margin, alternative="less").pvalue,
        ]
        assert found.p == pytest.approx(max(tests), abs=1e-9)
        assert found.holds == (found.p < 0.025) or found.p == pytest.approx(0.025, abs=1e-9)


def test_no_difference_found_is_no_equivalence() -> None:
    wide, close = [-0.3, 0.3, 0.0], [-0.001, 0.001, 0.0005]
    interval = t_interval(wide)
    assert interval is not None
    assert interval.low < 0 < interval.high
    for values, holds in ((wide, False), (close, True), ([0.0, 0.0], True), ([1.0, 1.0], False)):
        found = equivalence(values, 0.02)
        assert found is not None
        assert found.holds is holds
    assert equivalence([0.0], 0.02) is None
    for margin in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="margin"):
            equivalence(close, margin)


def test_equivalence_is_wrongly_found_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    n, wrong = 2000, 0
    for _ in range(n):
        found = equivalence(rng.normal(0.5, 0.1, 4).tolist(), 0.5)  # at the margin: not inside
        assert found is not None
        wrong += found.holds
    assert wrong / n == pytest.approx(0.025, abs=4.5 * math.sqrt(0.025 * 0.975 / n))


# --- what would decide ---------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), margin=st.sampled_from([None, 0.1, 2.0]))
def test_the_advised_prompts_are_the_first_that_decide(seed: int, margin: float | None) -> None:
    from scipy import stats

    rng = np.random.default_rng(seed)
    training, noise, prompts = 0.1 * rng.random(), rng.random(), 30
    table = rng.normal(0, 0.5, prompts) + rng.normal(0.3, training, (3, 1))
    table = table + rng.normal(0, noise, (3, prompts))
    n = prompts_to_decide(table.tolist(), margin=margin)
    means = table.mean(axis=1)
    rest = table - table.mean(axis=0) - means[:, None] + table.mean()
    within = (rest**2).sum() / (2 * (prompts - 1))
    between = max(0.0, means.var(ddof=1) - within / prompts)
    distance = abs(means.mean()) if margin is None else abs(margin - abs(means.mean()))

    def half(k: float) -> float:
        return float(stats.t.ppf(0.975, 2) * math.sqrt((between + within / k) / 3))

    if n is None:
        assert half(1_000_000) >= distance
    else:
        assert half(n) < distance
        assert n == 2 or half(n - 1) >= distance


def test_prompts_that_all_seeds_share_are_no_spread_and_one_seed_says_nothing() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0.2, 5.0, 50)  # hard and easy prompts, alike for every seed
    apart = np.array([[0.2], [0.201], [0.199]])
    assert prompts_to_decide((shared + apart).tolist()) == 2
    far = shared + np.array([[2.0], [-2.0], [0.1]])  # seeds differ: no prompts help
    assert prompts_to_decide(far.tolist()) is None
    assert prompts_to_decide([shared.tolist()]) is None
    with pytest.raises(ValueError, match="not paired"):
        prompts_to_decide([[0.1, 0.2], [0.1]])


def test_the_interval_over_prompts_is_students_of_the_mean_over_seeds() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    shared = rng.normal(0.0, 0.4, size=50)  # what prompts do to every seed alike
    table = (shared + 0.01 * rng.normal(size=(3, 50))).tolist()
    mean = np.mean(table, axis=0)
    low, high = over_prompts(float(mean.mean()), [table]) or (0.0, 0.0)
    expected = stats.t.interval(0.95, 49, loc=mean.mean(), scale=mean.std(ddof=1) / math.sqrt(50))
    assert (low, high) == pytest.approx(expected)
    seeds = t_interval([float(np.mean(row)) for row in table])
    assert seeds is not None
    assert seeds.high - seeds.low < 0.2 * (high - low)  # the seeds alone would call it decided
    wider = over_prompts(0.0, [table, table]) or (0.0, 0.0)
    assert wider[1] == pytest.approx(math.sqrt(2) * (high - low) / 2)
    assert over_prompts(0.0, [table, [[0.1]] * 3]) is None
    assert over_prompts(0.0, [[[], []]]) is None


def test_the_bootstrap_of_very_many_prompts_draws_fewer_resamples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = [0.1 * i for i in range(100)], [0.0] * 100
    whole = paired_bootstrap(a, b, seed=0, resamples=1000)
    monkeypatch.setattr("llm.results.stats.DRAWS", 1)
    assert paired_bootstrap(a, b, seed=0) == whole
