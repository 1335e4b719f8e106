"""A cell: what is fitted on which pairs, what is chosen, and what must not be stored."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import theory.arms
from theory.arms.base import Candidate, Outcome
from theory.batch import Batch
from theory.complexity import generator_complexity, verifier_complexity
from theory.errors import InputError
from theory.families import Walsh
from theory.fit import ConvergenceError
from theory.sweep import Cell, parse_grid, schema
from theory.sweep.run import run_cell

ROW = tuple[str, int, int]


def cell_of(arms=("two_stage",), *, seeds=(4, 7, 9), ridges=(0.3, 3.0), **block: object) -> Cell:
    body = {"name": "t", "arms": list(arms), "bits": 3, "degree": 2, "horizon": 3, "n_pairs": 20}
    grid = {"name": "g", "seeds": list(seeds), "ridges": list(ridges), "block": [body | block]}
    return parse_grid(grid).cells[0]


class Stub:
    """An arm whose k-th candidate is `shares[k]` of the truth; it records what it was given.

    With the candidate's fate on trial and on all pairs apart, the choice can be seen.
    """

    def __init__(self, trial: np.ndarray, final: np.ndarray) -> None:
        self.shares = [trial, final]  # (K, R) each
        self.weights: list[np.ndarray] = []

    def __call__(self, batch: Batch, weights: np.ndarray) -> Outcome:
        share = self.shares[len(self.weights)]
        self.weights.append(weights)
        score = share[:, :, None, None] * batch.reward[None]
        log_p = score - np.log(np.exp(score).sum(axis=-1, keepdims=True))
        candidates = (Candidate(0.3), Candidate(0.3, 10), Candidate(3.0))
        zeros = np.zeros(share.shape)
        return Outcome(candidates, log_p, score, zeros, zeros, 5, None, converged=False)


def test_held_out_pairs_choose_for_each_replicate_and_the_fit_on_all_is_measured():
    """Trial fits point away from the truth except one a replicate; final fits tell their own KL."""
    trial = np.array([[1.0, -5.0, -5.0], [-5.0, 1.0, -5.0], [-5.0, -5.0, 1.0]])
    final = np.array([[0.5, 0.5, 0.5], [0.9, 0.9, 0.9], [0.0, 0.0, 0.0]])
    stub = Stub(trial, final)
    cell = cell_of(n_pairs=200)
    rows = run_cell(cell, {"two_stage": stub}).to_pylist()
    assert [w.sum() for w in stub.weights] == [3 * 160.0, 3 * 200.0]
    assert not stub.weights[0][:, 160:].any()
    found = {(row["candidate"], row["seed"]): row for row in rows}
    assert list(found) == list(itertools.product(range(3), cell.seeds))
    for i, seed in enumerate(cell.seeds):
        assert [found[k, seed]["chosen"] for k in range(3)] == [k == i for k in range(3)]
        assert [found[k, seed]["hindsight"] for k in range(3)] == [False, True, False]
        assert found[1, seed]["kl"] < found[0, seed]["kl"] < found[2, seed]["kl"]
        losses = [found[k, seed]["held_out_loss"] for k in range(3)]
        assert int(np.argmin(losses)) == i
    assert [found[k, 4]["stop"] for k in range(3)] == [None, 10, None]
    assert [found[k, 4]["ridge"] for k in range(3)] == [0.3, 0.3, 3.0]
    assert {row["converged"] for row in rows} == {False}
    assert {row["jacobian_rank"] for row in rows} == {None}


def test_rows_say_what_their_cell_was():
    cell = cell_of(n_pairs=40, noise=0.1, reward_class="full", beta=0.5, width=9)
    table = run_cell(cell)
    assert table.schema.equals(schema())
    row = table.to_pylist()[0]
    assert json.loads(row["settings"]) == {"bits": 3, "degree": 2, "horizon": 3, "sharpness": 2.0}
    plain = ("block", "family", "n_pairs", "noise", "reward_class", "beta", "width", "coverage")
    assert [row[name] for name in plain] == [
        "t", "walsh", 40, 0.1, "full", 0.5, 9, "uniform",
    ]  # fmt: skip
    assert (row["complexity_name"], row["complexity"], row["reward_dim"]) == ("degree", 2, 7)
    assert (row["n_held"], row["n_completions"], row["n_prompts"], row["vocab"]) == (8, 8, 1, 2)
    truths = [Walsh(bits=3, degree=2, horizon=3, seed=seed).draw() for seed in cell.seeds]
    verifier = [verifier_complexity(truth).walsh.nonzero for truth in truths]
    generator = [generator_complexity(truth, 0.5).entries for truth in truths]
    assert row["verifier_walsh"] == pytest.approx(np.mean(verifier))
    assert row["generator_entries"] == pytest.approx(np.mean(generator))


def test_a_tree_of_several_prompts_runs_and_has_no_walsh_count():
    settings = {"words": 2, "salient": 1, "prompts": 2, "horizon": 2}
    body = {"name": "t", "arms": ["two_stage"], "family": "coverage", "n_pairs": 20, **settings}
    grid = {"name": "g", "seeds": [0, 1], "ridges": [1.0], "block": [body]}
    rows = run_cell(parse_grid(grid).cells[0]).to_pylist()
    assert len(rows) == 2
    assert rows[0]["n_prompts"] == 2
    assert rows[0]["verifier_walsh"] is None
    assert math.isfinite(rows[0]["verifier_entries"])


def test_both_roads_on_a_small_cell_repeat_themselves_and_agree():
    cell = cell_of(("two_stage", "offline_proper", "offline_all"))
    table = run_cell(cell)
    assert table.equals(run_cell(cell))
    rows = table.to_pylist()
    for name in ("kl", "regret", "win_rate", "val_loss", "val_accuracy"):
        assert all(math.isfinite(row[name]) for row in rows), name
    kl = {arm: [row["kl"] for row in rows if row["arm"] == arm] for arm in cell.arms}
    np.testing.assert_allclose(kl["two_stage"], kl["offline_proper"], atol=1e-8)
    assert np.abs(np.subtract(kl["two_stage"], kl["offline_all"])).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("two_stage", np.nan, r"arm two_stage, Candidate\(ridge=0.3.*seed 4: kl is nan, gradient"),
        ("offline_proper", 1e-6, r"ridge 0.3, seed 4: two_stage and offline_proper differ by \d"),
    ],
)
def test_fits_that_cannot_be_right_are_not_stored(name: str, change: float, words: str):
    arms = dict(theory.arms.ARMS)

    def moved(batch: Batch, weights: np.ndarray) -> Outcome:
        good = theory.arms.ARMS[name](batch, weights)
        log_p = good.log_p.copy()
        log_p[0, 0, 0, 3] += change
        return Outcome(
            good.candidates, log_p, good.score, good.gradient, good.steps, good.n_parameters, None
        )

    cell = cell_of(("two_stage", "offline_proper"))
    assert run_cell(cell, arms).num_rows == 12
    arms[name] = moved
    with pytest.raises(ConvergenceError, match=words):
        run_cell(cell, arms)


def test_an_arm_that_is_not_there_is_named():
    with pytest.raises(InputError, match="there is no arm 'two_stage'"):
        run_cell(cell_of(), {})
