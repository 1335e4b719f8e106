"""Which samples become a pair, by whose numbers, and on which prompts."""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import tables
from llm.config import OnlineConfig
from llm.data.config import DataConfig
from llm.data.tokenize import load_tokenizer
from llm.models.build import load_policy, load_reward_model
from llm.models.forward import completion_logps, completion_rewards
from llm.sampling.sampler import Sample
from llm.stages import evaluate, online
from llm.stages.online import added_pools, best_and_worst, pools
from llm.training.train import score
from tests.llm.small_stages import data_stage, random_policy, random_reward_model, work_of


@dataclass(frozen=True)
class _Example:
    example_id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    post_id: str = ""


def test_best_against_worst():
    samples = [(1,), (2,), (3,)]
    assert best_and_worst(samples, [0.5, 2.0, -1.0], 1) == [(1, 2)]


def test_further_rows_take_the_next_worst_distinct_sample():
    samples = [(1,), (2,), (3,), (3,), (4,)]
    scores = [3.0, 2.0, 0.0, 0.0, 1.0]
    assert best_and_worst(samples, scores, 5) == [(0, 2), (0, 4), (0, 1), (0, 2), (0, 4)]


def test_identical_samples_make_no_pair():
    assert best_and_worst([(1, 2)] * 8, [0.3] * 8, 3) == []


def test_of_one_text_in_several_encodings_the_worst_loses():
    """Unless another encoding of it wins: a pair is of two texts."""
    assert best_and_worst(["a", "b", "b", "c"], [3.0, 0.5, 0.0, 1.0], 3) == [(0, 2), (0, 3), (0, 2)]
    assert best_and_worst(["b", "b", "c"], [0.0, 2.0, 1.0], 2) == [(1, 2), (1, 2)]


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


def test_added_pools_are_of_posts_without_preferences():
    """SFT rows in their order, at most so many; a post counts, not how its text was cut."""
    rows = [_Example(f"pairs/{i}", "p", (i,), f"post {i % 3}") for i in range(5)]
    more = [_Example(f"sft/{i}", "p", (9, i // 2), f"post {i}") for i in range(9)]
    assert [p.prompt_id for p in added_pools(rows, more, None, "row")] == [
        f"sft/{i}" for i in range(3, 9)
    ]
    assert [p.prompt_id for p in added_pools(rows, more, 2, "row")] == ["sft/3", "sft/4"]
    assert [(p.prompt_id, p.rows) for p in added_pools(rows, more, 3, "prompt")] == [
        ("sft/3", 1),
        ("sft/4", 2),
    ]


@pytest.fixture
def stages(small_tldr, small_tokenizer_file, tmp_path):
    """Folders of a data stage, a policy and a reward model."""
    limits = DataConfig(n_sft=8, n_pairs=12, n_validation_pairs=6, n_test=4)
    data = data_stage(tmp_path / "data", small_tldr, limits, small_tokenizer_file)
    words = json.loads((data / "vocabulary.json").read_text())
    return {
        "data": data,
        "policy": random_policy(tmp_path / "policy", words),
        "global_rm": random_reward_model(tmp_path / "reward", words),
    }


def test_pairs_hold_the_trainers_numbers(stages, tmp_path):
    """Scores by the reward model, log-probs by the trainer's forward at the temperature."""
    settings = asdict(OnlineConfig(samples=4, temperature=0.5, batch_prompts=3))
    work = work_of(tmp_path, stages, 7, online=settings)
    metrics = online.make(work)
    rows = tables.read_rows(work.folder / "pairs.parquet")
    assert metrics["pairs"] == len(rows) == 12
    assert (metrics["pairs_asked_added"], metrics["rows_factor"]) == (0, 1.0)
    words = work.vocabulary
    ids = [(tuple(row["prompt_ids"]), (row["chosen_ids"], row["rejected_ids"])) for row in rows]
    policy, rewards = load_policy(stages["policy"]), load_reward_model(stages["global_rm"])
    measure = partial(completion_logps, policy, temperature=0.5)
    for row, logps in zip(rows, score(measure, ids, pad=words["pad"], tokens=60), strict=True):
        assert (row["chosen_logp"], row["rejected_logp"]) == pytest.approx(logps, abs=1e-4)
    closed = [
        (p, [[*c] + [words["eos"]] * (c[-1] != words["eos"]) for c in pair]) for p, pair in ids
    ]
    measure = partial(completion_rewards, rewards)
    for row, values in zip(rows, score(measure, closed, pad=words["pad"], tokens=60), strict=True):
        assert (row["chosen_score"], row["rejected_score"]) == pytest.approx(values, abs=1e-5)
        assert row["chosen_score"] >= row["rejected_score"]
    assert len(online.read_pairs(work.folder)) == 12


def test_no_pass_scores_more_tokens_than_the_machine_allows(stages, tmp_path, monkeypatch):
    """K samples of many prompts would not fit a GPU at once."""
    most = []

    def counted(measure, rows, *, tokens, **settings):
        def seen(batch):
            most.append(int((batch.segment >= 0).sum()))
            return measure(batch)

        return score(seen, rows, tokens=tokens, **settings)

    monkeypatch.setattr(evaluate, "score", counted)
    settings = asdict(OnlineConfig(samples=4, temperature=1.0))
    work = work_of(tmp_path, stages, 7, online=settings)
    online.make(replace(work, runtime=replace(work.runtime, micro_tokens=125)))
    assert len(most) > 4
    assert max(most) <= 125


def test_two_encodings_of_one_text_are_no_pair(stages, tmp_path, monkeypatch):
    """Pools of two texts in two encodings each, the first of one text only."""
    work = work_of(tmp_path, stages, 7)
    tokenizer = load_tokenizer(stages["data"] / "tokenizer")
    eos, texts = work.vocabulary["eos"], ("letter", "work")
    words = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    letters = [tokenizer.convert_tokens_to_ids(list(text)) for text in texts]
    assert all(len(a) < len(b) for a, b in zip(words, letters, strict=True))
    ids = [way for ways in zip(words, letters, strict=True) for way in ways]

    def drawn(work, prompts, **settings):
        samples = [Sample((*one, eos), True) for one in ids]
        return [2 * samples[:2], *([samples] * (len(prompts) - 1))]

    monkeypatch.setattr(online, "draw", drawn)
    metrics = online.make(work)
    assert metrics["pools_dropped_all_identical"] == 1
    assert metrics["pairs"] == 11
    for row in tables.read_rows(work.folder / "pairs.parquet"):
        pair = [tokenizer.decode(row[name][:-1]) for name in ("chosen_ids", "rejected_ids")]
        assert sorted(pair) == ["letter", "work"]


@pytest.mark.parametrize("broken", ["completion_rewards", "completion_logps"])
def test_a_score_that_is_no_number_is_an_error(stages, tmp_path, monkeypatch, broken):
    work, measure = work_of(tmp_path, stages, 7), getattr(online, broken)
    monkeypatch.setattr(online, broken, lambda *a, **k: measure(*a, **k) * math.nan)
    with pytest.raises(ValueError, match="a score of row 0 is not finite"):
        online.make(work)
    assert not (work.folder / "pairs.parquet").exists()


def test_more_prompts_are_the_sft_posts_without_pairs(stages, tmp_path):
    settings = OnlineConfig(samples=2, temperature=1.0)
    work = work_of(tmp_path / "all", stages, 0, online=asdict(settings), more_prompts=True)
    metrics = online.make(work)
    known = {example.post_id for example in work.examples("pairs")}
    others = [e.prompt_ids for e in work.examples("sft") if e.post_id not in known]
    rows = [tuple(row["prompt_ids"]) for row in tables.read_rows(work.folder / "pairs.parquet")]
    assert 0 < len(others) < 8
    assert rows[12:] == others
    assert metrics["pairs_asked_added"] == len(others)
    assert metrics["rows_factor"] == (12 + len(others)) / 12
    few = asdict(replace(settings, more_prompts=1))
    work = work_of(tmp_path / "one", stages, 0, online=few, more_prompts=True)
    assert online.make(work)["pairs_asked_added"] == 1
