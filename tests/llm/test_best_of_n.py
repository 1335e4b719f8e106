"""Best-of-N: the estimator against all subsets, exact values against enumeration."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from llm import tables
from llm.data.task_file import read_task
from llm.errors import InputError
from llm.stages import best_of_n
from llm.stages.best_of_n import accuracy_on_pairs, best_of_each, best_of_leaves, best_weights

SCORES = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=6)


def _by_subsets(scores: list[float], values: list[float | None], n: int) -> float | None:
    """The mean over all subsets of n and over the tied best of each, known values alone."""
    total = weight = 0.0
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        best = [i for i in subset if scores[i] == top]
        for i in best:
            value = values[i]
            if value is not None:
                total += value / len(best)
                weight += 1 / len(best)
    return total / weight if weight else None


@given(scores=SCORES, seed=st.integers(0, 1000), missing=st.booleans())
def test_the_estimator_is_the_mean_over_all_subsets(
    scores: list[float], seed: int, missing: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = [
        None if missing and rng.random() < 0.4 else float(value)
        for value in rng.random(len(scores))
    ]
    found = best_of_each(scores, values)
    for n in range(1, len(scores) + 1):
        expected = _by_subsets(scores, values, n)
        assert (found[n - 1] is None) == (expected is None)
        if expected is not None:
            assert found[n - 1] == pytest.approx(expected)


@given(scores=SCORES, shift=st.floats(-3, 3), scale=st.floats(0.5, 4))
def test_weights_are_shares_and_follow_the_order_alone(
    scores: list[float], shift: float, scale: float
) -> None:
    one = best_weights(np.array(scores))
    assert one.sum(axis=1) == pytest.approx(np.ones(len(scores)))
    assert one[0] == pytest.approx(np.full(len(scores), 1 / len(scores)))  # N = 1: any of them
    assert np.allclose(one, best_weights(scale * np.array(scores) + shift))
    assert np.allclose(one[:, ::-1], best_weights(np.array(scores)[::-1]))


def test_the_estimator_is_unbiased_for_fresh_draws() -> None:
    rng = np.random.default_rng(0)
    p, score, worth = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), [0.2, 0.9, 0.4]
    truth = best_of_leaves(p[None], score[None], 3)[0] @ worth
    runs = []
    for _ in range(4000):
        drawn = rng.choice(3, size=6, p=p)
        runs.append(best_of_each(score[drawn], [worth[i] for i in drawn])[2])
    error = np.std(runs) / math.sqrt(len(runs))
    assert abs(np.mean(runs) - truth) < 4.5 * error


@given(seed=st.integers(0, 1000), n=st.integers(1, 4))
def test_exact_best_of_n_is_what_enumeration_gives(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4))
    p[3] = 0.0
    p = p / p.sum()
    scores = rng.integers(0, 3, 4).astype(float)
    expected = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        top = max(scores[i] for i in draws)
        best = [i for i in draws if scores[i] == top]
        for i in best:
            expected[i] += math.prod(p[j] for j in draws) / len(best)
    found = best_of_leaves(p[None], scores[None], n)[0]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found.sum() == pytest.approx(1.0)


def test_accuracy_on_pairs_by_enumeration(shared_task_file: Path) -> None:
    task = read_task(shared_task_file)
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(len(task.leaves)), len(task.prompts))
    scores = rng.integers(0, 3, p.shape).astype(float)
    expected = 0.0
    for x, weight in enumerate(task.weights):
        for i, j in itertools.product(range(p.shape[1]), repeat=2):
            first = expit(task.reward[x, i] - task.reward[x, j])
            for winner, loser, chance in ((i, j, first), (j, i, 1 - first)):
                margin = scores[x, winner] - scores[x, loser]
                correct = 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
                expected += weight * p[x, i] * p[x, j] * chance * correct
    assert accuracy_on_pairs(task, p, scores) == pytest.approx(expected)
    assert accuracy_on_pairs(task, p, np.zeros_like(p)) == pytest.approx(0.5)


def test_a_pool_of_another_size_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt_id": "test/0", "sample_index": i} for i in range(3)]
    tables.write_rows(tmp_path / "samples.parquet", rows)
    with pytest.raises(InputError, match="test/0 has 3 samples, not 25"):
        best_of_n.read_pools(tmp_path, 25)


def test_every_evaluation_of_a_branch_has_one_length() -> None:
    """One length of generated text for all methods of a comparison, whatever made the policy."""
    from llm.config import FIGURES
    from llm.protocol.graph import build
    from llm.protocol.presets import PRESETS, preset

    for name, kind in itertools.product(PRESETS, ("task", "text")):
        config = preset(name, kind)
        config = replace(config, judge=replace(config.judge, model="judge"))
        figures = [f for f in FIGURES if f != "fig4" or len(config.models) > 1]
        own = ("", "two_word", "ranked", "few_prompts")[: 4 if kind == "task" else 2]
        data: dict[str, dict] = {branch: {} for branch in own}
        tokens: dict[str, set[int]] = {}
        for stage in build(figures, (0, 1), config, data):
            if stage.kind in ("eval_policy", "pool", "online_pairs", "made_pairs"):
                tokens.setdefault(stage.branch, set()).add(stage.settings["tokens"])
        assert set(tokens) >= {"", "two_word"}
        for branch, found in tokens.items():
            assert found == {config.limits(branch).max_completion_tokens}, json.dumps(branch)
