"""Judges: the gold reward through texts equals the exact one; ROUGE-L against its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.example import Example
from llm.data.task_draws import leaf_examples
from llm.data.task_file import read_task
from llm.judge import GoldJudge, Judge, RougeLJudge, invalid, outcomes, win_rate

SCORES = st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=1, max_size=20)


def example_of(prompt: str, reference: str) -> Example:
    return Example("e", "p", prompt, (2,), (reference,), ((3, 0),))


@pytest.mark.parametrize("eos", [False, True])
def test_gold_scores_are_the_tasks_rewards(
    small_task_file: Path, small_eos_task_file: Path, eos: bool
) -> None:
    task = read_task(small_eos_task_file if eos else small_task_file)
    judge: Judge = GoldJudge(task)
    for prompt, example in enumerate(leaf_examples(task)):
        n = len(task.leaves)
        found = judge.scores([example] * n, [f" {text} " for text in example.completions])
        np.testing.assert_array_equal(found, task.reward[prompt])


def test_gold_judging_of_samples_agrees_with_the_exact_win_rate(small_task_file: Path) -> None:
    task = read_task(small_task_file)
    rng = np.random.default_rng(0)
    n = 4000
    log_p = task.temper(np.log(task.reference), 0.5)
    prompts = rng.choice(len(task.prompts), size=n, p=task.weights)
    examples = [example_of(task.prompt_text(x), "") for x in prompts]

    def draws(p: np.ndarray) -> list[str]:
        cells = [rng.choice(p.shape[1], p=p[x]) for x in prompts]
        return [task.completion_text(int(i)) for i in cells]

    judge = GoldJudge(task)
    policy = judge.scores(examples, draws(np.exp(log_p)))
    reference = judge.scores(examples, draws(task.reference))
    measured = win_rate(policy, reference)
    assert measured is not None
    assert abs(measured - task.win_rate(log_p)) < 4.5 * math.sqrt(0.25 / n)


def test_what_is_no_completion_is_invalid_and_loses(small_task_file: Path) -> None:
    task = read_task(small_task_file)
    judge = GoldJudge(task)
    prompt = task.prompt_text(0)
    texts = ["0 1", "0 1 1 0", "0 1 <|padding|>", "", "0 1 1"]
    scores = judge.scores([example_of(prompt, "")] * 5, texts)
    assert scores[:4] == [None] * 4
    assert scores[4] is not None
    assert invalid(scores) == 4
    assert win_rate(scores, [-1e9] * 5) == pytest.approx(1 / 5)
    assert win_rate([None], [None]) == 0.5
    with pytest.raises(ValueError, match="no prompt of the task"):
        judge.scores([example_of("z z", "")], ["0 1 1"])
    with pytest.raises(ValueError, match="zip"):
        judge.scores([example_of(prompt, "")], texts)


@settings(deadline=None)
@given(a=SCORES, data=st.data())
def test_win_rates_of_two_sides_sum_to_one(a: list, data: st.DataObject) -> None:
    b = data.draw(st.permutations(a))
    forth, back = win_rate(a, b), win_rate(b, a)
    assert forth is not None
    assert back is not None
    assert forth + back == pytest.approx(1)
    assert win_rate(a, a) == 0.5
    assert set(outcomes(a, b)) <= {0.0, 0.5, 1.0}


def test_win_rate_counts_ties_half_and_nothing_is_none() -> None:
    assert win_rate([1.0, 2.0, 3.0], [1.0 + 1e-12, 3.0, 2.0]) == pytest.approx(0.5)
    assert win_rate([1.0, 2.0], [0.0, 2.0]) == 0.75
    assert win_rate([], []) is None
    with pytest.raises(ValueError, match="zip"):
        win_rate([1.0], [1.0, 2.0])


def lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + lcs(a[:-1], b[:-1])
    return max(lcs(a[:-1], b), lcs(a, b[:-1]))


@settings(deadline=None)
@given(
    a=st.lists(st.sampled_from("abcd"), max_size=7),
    b=st.lists(st.sampled_from("abcd"), min_size=1, max_size=7),
)
def test_rouge_l_is_its_definition(a: list[str], b: list[str]) -> None:
    shared = lcs(a, b)
    expected = 2 * shared / (len(a) + len(b)) if shared else 0.0
    (found,) = RougeLJudge().scores([example_of("x", " ".join(b))], [" ".join(a)])
    assert found == pytest.approx(expected, abs=1e-12)


def test_rouge_l_stems_and_ignores_case() -> None:
    judge = RougeLJudge()
    assert judge.scores([example_of("x", "Dogs were barking")], ["dog were barked!"]) == [1.0]
    assert "stemmed" in judge.name
