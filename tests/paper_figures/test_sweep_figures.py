"""The sweep's statistics against hand computation, and its panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paper_figures.sweep import gaps, mean_of, points, setting_words, sweep_picture, sweep_rows
from paper_figures.tables import SweepRecord, load_sweep

FIXED = {"family": "walsh", "degree": 2, "sharpness": 2.0, "horizon": 8, "bits": 8, "beta": 1.0}


def record(rows: list[tuple[int, str, float, int, float]]) -> SweepRecord:
    """A sweep in one setting from (N, arm, ridge, seed, kl) rows."""
    n, arm, ridge, seed, kl = zip(*rows, strict=True)
    columns = {key: np.array([value] * len(rows)) for key, value in FIXED.items()}
    columns |= {"n_pairs": np.array(n), "arm": np.array(arm, dtype=object)}
    columns |= {"ridge": np.array(ridge), "seed": np.array(seed), "kl": np.array(kl)}
    return SweepRecord({}, columns, 1)


def test_mean_of_by_hand() -> None:
    mean = mean_of(np.array([1.0, 2.0, 6.0]))
    assert mean.value == pytest.approx(3.0)
    assert mean.half == pytest.approx(4.30265273 * np.sqrt(7.0) / np.sqrt(3.0))
    assert mean_of(np.array([5.0])).half is None


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.floats(-10, 10), st.floats(0.1, 9))
def test_mean_of_moves_and_scales_with_its_data(
    values: list[float], shift: float, scale: float
) -> None:
    plain, moved = mean_of(np.array(values)), mean_of(scale * np.array(values) + shift)
    assert plain.half is not None
    assert moved.half is not None
    assert moved.value == pytest.approx(scale * plain.value + shift, abs=1e-9)
    assert moved.half == pytest.approx(scale * plain.half, abs=1e-7)


def test_the_best_ridge_is_chosen_by_the_mean_and_the_gap_is_paired() -> None:
    rows = [
        (64, "two_stage", 0.1, 0, 1.0), (64, "two_stage", 0.1, 1, 2.0),
        (64, "two_stage", 1.0, 0, 0.1), (64, "two_stage", 1.0, 1, 5.0),
        (64, "offline_all", 0.1, 1, 3.0), (64, "offline_all", 0.1, 0, 1.5),
    ]  # fmt: skip
    found = points(record(rows))
    best = {p.arm: p for p in found}
    assert best["two_stage"].ridge == 0.1
    assert best["offline_all"].kl.tolist() == [1.5, 3.0]  # by seed, whatever the order of the rows
    ((_, n, arm),) = gaps(found)
    gap = next(iter(gaps(found).values()))
    assert (n, arm) == (64, "offline_all")
    assert gap.value == pytest.approx(0.75)
    half = stats.t.ppf(0.975, 1) * np.std([0.5, 1.0], ddof=1) / np.sqrt(2)
    assert gap.half == pytest.approx(half)


def test_no_gap_without_both_arms() -> None:
    assert gaps(points(record([(64, "two_stage", 0.1, 0, 1.0)]))) == {}


def test_panels_of_the_whole_sweep(demo: Path) -> None:
    sweep = load_sweep(demo / "sweep")
    names = [panel.name for panel in sweep_picture(sweep).panels]
    assert sum(name.startswith("sweep-kl-") for name in names) == 3
    assert sum(name.startswith("sweep-gap-degree-") for name in names) == 1
    assert sum(name.startswith("sweep-gap-horizon-") for name in names) == 1
    assert len(set(names)) == len(names)
    rows = sweep_rows(sweep)
    assert len(rows) == 6 * 3
    assert rows[0]["setting"] == "k = 2, H = 4"


def joined(*records: SweepRecord, **columns: list) -> SweepRecord:
    """Rows of several records one after the other, with more columns."""
    names = records[0].columns
    both = {name: np.concatenate([part.columns[name] for part in records]) for name in names}
    extra = {name: np.array(values) for name, values in columns.items()}
    return SweepRecord({}, both | extra, len(records))


TWO_ARMS = [
    (64, arm, 0.1, seed, kl + seed)
    for arm, kl in (("two_stage", 1.0), ("offline_all", 3.0))
    for seed in (0, 1)
]


def test_a_cell_that_two_blocks_share_counts_once() -> None:
    part = record(TWO_ARMS)
    twice = joined(part, part, block=["a"] * 4 + ["b"] * 4)
    assert [p.kl.tolist() for p in points(twice)] == [p.kl.tolist() for p in points(part)]
    assert next(iter(gaps(points(twice)).values())).n == 2


def test_a_class_of_another_degree_is_another_setting() -> None:
    part = record(TWO_ARMS)
    found = points(joined(part, part, class_degree=[2] * 4 + [8] * 4))
    assert len(found) == 4
    assert len(gaps(found)) == 2
    words = {setting_words(p.setting) for p in found}
    assert sum("class k = 8" in text for text in words) == 1


def test_the_two_readings_of_a_shorter_horizon_are_two_panels() -> None:
    larger = record(TWO_ARMS)
    larger.columns["horizon"] = np.array([4] * 4)
    fewer = record(TWO_ARMS)
    fewer.columns["horizon"], fewer.columns["bits"] = np.array([4] * 4), np.array([4] * 4)
    panels = sweep_picture(joined(record(TWO_ARMS), larger, fewer)).panels
    alts = [panel.alt for panel in panels]
    assert len(alts) == 2
    assert "bits = 8" in alts[0]
    assert "bits a token = 1" in alts[1]
    assert all("horizon 4: +2.000" in alt and "horizon 8: +2.000" in alt for alt in alts)


def test_setting_words() -> None:
    assert setting_words(tuple(FIXED.items()), leave_out=("beta",)) == (
        "walsh, k = 2, s = 2, H = 8, bits = 8"
    )
