"""Which samples become a pair."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llm.online import best_and_worst, pools


@dataclass(frozen=True)
class _Example:
    example_id: str
    prompt: str
    prompt_ids: tuple[int, ...]


def test_best_against_worst():
    samples = [(1,), (2,), (3,)]
    assert best_and_worst(samples, [0.5, 2.0, -1.0], 1) == [(1, 2)]


def test_further_rows_take_the_next_worst_distinct_sample():
    samples = [(1,), (2,), (3,), (3,), (4,)]
    scores = [3.0, 2.0, 0.0, 0.0, 1.0]
    assert best_and_worst(samples, scores, 5) == [(0, 2), (0, 4), (0, 1), (0, 2), (0, 4)]


def test_identical_samples_make_no_pair():
    assert best_and_worst([(1, 2)] * 8, [0.3] * 8, 3) == []


def test_equal_scores_keep_the_order_of_the_draw():
    assert best_and_worst([(5,), (4,)], [1.0, 1.0], 1) == [(0, 1)]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-3, 3)), min_size=1, max_size=12))
def test_against_plain_maximum_and_minimum(drawn):
    reward: dict[int, float] = {}
    for token, value in drawn:
        reward.setdefault(token, value)  # a text has one reward
    samples = [(token,) for token, _ in drawn]
    scores = [reward[token] for token, _ in drawn]
    pairs = best_and_worst(samples, scores, 1)
    if len(reward) == 1:
        assert pairs == []
        return
    ((best, worst),) = pairs
    assert samples[best] != samples[worst]
    assert scores[best] == max(scores)
    assert scores[worst] == min(scores)


def test_pools_by_row_and_by_prompt():
    examples = [_Example(f"e{i}", "p", (i % 2,)) for i in range(5)]
    assert [pool.rows for pool in pools(examples, "row")] == [1] * 5
    assert [(pool.prompt_ids, pool.rows) for pool in pools(examples, "prompt")] == [
        ((0,), 3),
        ((1,), 2),
    ]
