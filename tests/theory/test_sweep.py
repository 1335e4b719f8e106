"""Cells of the sweep: exact measurements, the prototype's rows, grids that are refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory.sweep
from theory.arms import TOLERANCE, Fit, fit
from theory.commands.sweep import _summary
from theory.errors import InputError
from theory.fit import ConvergenceError
from theory.grid import QUICK, Cell, load_grid, parse_grid
from theory.sweep import draw_pairs, measure, run_cell, true_reward

# N: (two-stage, its standard error, offline over all policies, its standard error).
PROTOTYPE = {
    64: (0.84, 0.08, 1.58, 0.09),
    256: (0.27, 0.04, 1.22, 0.09),
    1024: (0.058, 0.004, 0.57, 0.06),
}


def prototype_cell(n_pairs: int, arms: tuple[str, ...], replicates: int) -> Cell:
    return Cell(
        "prototype", 8, 2, 2.0, 8, n_pairs, 1.0, 2, arms,
        (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), tuple(range(replicates)),
    )  # fmt: skip


@pytest.mark.parametrize("n_pairs", PROTOTYPE)
def test_the_prototype_is_reproduced_within_three_combined_standard_errors(n_pairs: int):
    table = run_cell(prototype_cell(n_pairs, ("two_stage", "offline_all"), 8)).to_pylist()
    two, two_error, offline, offline_error = PROTOTYPE[n_pairs]
    means = {}
    for arm, value, error in (
        ("two_stage", two, two_error),
        ("offline_all", offline, offline_error),
    ):
        kl = np.array([row["kl"] for row in table if row["arm"] == arm and row["best_ridge"]])
        assert len(kl) == 8
        own = float(np.std(kl, ddof=1)) / math.sqrt(len(kl))
        assert abs(kl.mean() - value) <= 3 * math.hypot(own, error), (arm, kl.mean(), own)
        means[arm] = kl
    gap = means["offline_all"] - means["two_stage"]
    assert gap.mean() > 3 * np.std(gap, ddof=1) / math.sqrt(len(gap))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.floats(0.3, 2.0), st.floats(-3.0, 3.0))
def test_measurements_equal_their_definitions(seed: int, beta: float, shift: float):
    generator = np.random.default_rng(seed)
    reward, score = generator.normal(size=(2, 4))
    reward[1] = reward[0]
    score[3] = score[2]
    log_p = np.log(generator.dirichlet(np.ones(4)))
    star = np.exp(reward / beta) / np.exp(reward / beta).sum()
    p = np.exp(log_p)
    expected = {"kl": float((p * (log_p - np.log(star))).sum()), "regret": (star - p) @ reward}
    expected["win_rate"] = sum(
        p[i] / 4 * (1.0 if reward[i] > reward[j] else 0.5 if i == j or {i, j} == {0, 1} else 0.0)
        for i in range(4)
        for j in range(4)
    )
    loss = right = 0.0
    for i, j in itertools.permutations(range(4), 2):
        label = 1 / (1 + math.exp(reward[j] - reward[i]))
        loss += label * math.log1p(math.exp(score[j] - score[i])) / 6
        right += label * (0.5 if {i, j} == {2, 3} else float(score[i] > score[j])) / 6
    expected |= {"val_loss": loss, "val_accuracy": right}
    found = measure(*(jnp.asarray(a) for a in (log_p, score + shift, reward + shift)), beta)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12), name


def test_pairs_are_of_different_completions_and_labels_follow_bradley_terry():
    reward = true_reward(3, 2, 2.0, 0)
    pairs = draw_pairs(reward, 200_000, 0)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.zeros((8, 8))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    total = counts + counts.T
    chance = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    apart = ~np.eye(8, dtype=bool)
    z = (counts - total * chance)[apart] / np.sqrt(total * chance * (1 - chance))[apart]
    assert np.abs(z).max() < 4.5
    assert total[apart] == pytest.approx(200_000 / 28, rel=0.1)


def test_rows_carry_every_arm_ridge_and_seed():
    cell = Cell("t", 3, 2, 1.0, 3, 20, 0.5, 2, ("two_stage", "offline_matched"), (0.3, 3.0), (4, 7))
    rows = run_cell(cell).to_pylist()
    keys = [(r["arm"], r["ridge"], r["seed"]) for r in rows]
    assert keys == list(itertools.product(cell.arms, cell.ridges, cell.seeds))
    for arm in cell.arms:
        means = {
            ridge: np.mean([r["kl"] for r in rows if (r["arm"], r["ridge"]) == (arm, ridge)])
            for ridge in cell.ridges
        }
        best = {r["ridge"] for r in rows if r["arm"] == arm and r["best_ridge"]}
        assert best == {min(means, key=means.__getitem__)}
    assert all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))


def grid(**changes: object) -> dict:
    block = {
        "name": "b", "arms": ["two_stage"], "bits": 4, "degree": 2, "sharpness": 1.0,
        "horizon": 4, "n_pairs": [8, 16],
    }  # fmt: skip
    top = {"name": "g", "seeds": [0, 1], "ridges": [1], "block": [block]}
    for key, value in changes.items():
        (top if key in ("seeds", "ridges", "extra_top") else block)[key] = value
    return top


def test_lists_are_crossed_and_hashes_differ():
    cells = parse_grid(grid(degree=[1, 2])).cells
    assert [(c.degree, c.class_degree, c.n_pairs) for c in cells] == [
        (1, 1, 8), (1, 1, 16), (2, 2, 8), (2, 2, 16),
    ]  # fmt: skip
    other = parse_grid(grid(degree=[1, 2], seeds=[0, 2])).cells
    assert len({c.file_name for c in (*cells, *other)}) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"degree": 5}, "degree 5 lies outside 1..4"),
        ({"class_degree": 0}, "class_degree 0"),
        ({"beta": 0.0}, r"beta must be > 0, got 0\.0"),
        ({"beta": [1.0, -2.0]}, r"got -2\.0"),
        ({"horizon": 3}, "horizon 3 does not divide 4"),
        ({"bits": 20, "horizon": 20}, "1,048,576 leaves.*bytes"),
        ({"bits": 400, "horizon": 20}, "leaves"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"extra_top": 1}, "unknown key 'extra_top'"),
        ({"arms": ["other"]}, "arm 'other'"),
        ({"arms": []}, "arms"),
        ({"n_pairs": 2.5}, r"n_pairs must hold whole numbers, got 2\.5"),
        ({"n_pairs": 0}, "n_pairs must be > 0"),
        ({"sharpness": float("nan")}, "nan"),
        ({"ridges": [0]}, "ridges"),
        ({"seeds": []}, "seeds is an empty list"),
        ({"seeds": [1, 1]}, "twice"),
        ({"n_pairs": [8, 8]}, "twice"),
    ],
)
def test_bad_grids_are_refused_by_name(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        parse_grid(grid(**changes))


def test_a_missing_key_a_missing_file_and_broken_toml_are_named(tmp_path: Path):
    body = grid()
    del body["block"][0]["degree"]
    with pytest.raises(InputError, match="'degree' is missing"):
        parse_grid(body)
    with pytest.raises(InputError, match=r"none\.toml"):
        load_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="not TOML"):
        load_grid(tmp_path / "bad.toml")


def test_the_shipped_grid_is_valid_and_has_every_comparison():
    cells = load_grid(QUICK).cells
    assert {c.n_pairs for c in cells if c.block == "pairs"} == {64, 256, 1024}
    assert {c.degree for c in cells} >= {1, 2, 8}
    assert {c.horizon for c in cells if c.bits == 8} == {1, 2, 8}
    assert {c.bits for c in cells if c.bits == c.horizon} >= {4, 6, 8}


def test_astronomical_grids_are_refused_in_numbers():
    body = {
        "name": "g", "seeds": [0], "ridges": [1.0],
        "block": [{"name": "b", "arms": ["two_stage"], "bits": 5000, "degree": 2,
                   "sharpness": 1.0, "horizon": 1, "n_pairs": 4}],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"about 10\^1505 leaves, whose pairs take about 10\^3011"):
        parse_grid(body)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("two_stage", np.nan, r"arm two_stage, ridge 1, seed 0: KL is nan, gradient"),
        ("offline_proper", 1e-6, r"ridge 1, seed 0: two_stage and offline_proper differ by \d"),
    ],
)
def test_fits_that_cannot_be_right_are_not_stored(monkeypatch, name, change, words):
    def moved(arm, *rest):
        good = fit(arm, *rest)
        theta = good.theta + (change if arm.name == name else 0.0)
        return Fit(theta, good.gradient, good.steps)

    arms = ("two_stage", "offline_proper")
    cell = Cell("b", 3, 2, 1.0, 3, 32, 1.0, 2, arms, (1.0,), (0,))
    assert run_cell(cell).num_rows == 2
    monkeypatch.setattr(theory.sweep, "fit", moved)
    with pytest.raises(ConvergenceError, match=words):
        run_cell(cell)


def test_the_summary_counts_fits_that_did_not_converge():
    row = {"cell": "c", "arm": "a", "best_ridge": True, "kl": 1.0}
    gradients = (0.0, TOLERANCE, 2 * TOLERANCE, math.nan)
    table = _summary([row | {"gradient": g} for g in gradients])
    assert list(table.columns[3].cells) == ["2 of 4"]
