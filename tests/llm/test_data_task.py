"""Tasks: exact measures against brute force, draws against their distributions, strict reading."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.config import DataConfig
from llm.data.source import fingerprint, kind_of_source, load, open_tokenizer
from llm.data.task import Task
from llm.data.task_draws import leaf_examples, task_tokenizer
from llm.data.task_file import leaf_codes, parse_task, read_task
from llm.errors import InputError

SIZES = DataConfig(n_sft=50, n_pairs=60, n_validation_pairs=20)


def task_of(body: dict[str, Any]) -> Task:
    return parse_task(body, Path("task.json"), "0" * 64)


def random_log_p(task: Task, seed: int, spread: float = 2.0) -> np.ndarray:
    log_p = np.random.default_rng(seed).normal(0, spread, task.reward.shape)
    return log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))


def brute_temper(task: Task, log_p: np.ndarray, tau: float) -> np.ndarray:
    """Leaf by leaf: the product over steps of the tempered share of the chosen prefix."""
    p = np.exp(log_p)
    made = np.zeros_like(p)
    for x in range(len(task.prompts)):
        for i, leaf in enumerate(task.leaves):
            for h in range(len(leaf)):
                mass: dict[str, float] = {}
                for j, other in enumerate(task.leaves):
                    if other[:h] == leaf[:h] and len(other) > h:
                        mass[other[h]] = mass.get(other[h], 0.0) + p[x, j]
                powers = {a: (m / max(mass.values())) ** (1 / tau) for a, m in mass.items()}
                made[x, i] += math.log(powers[leaf[h]] / sum(powers.values()))
    return made


@pytest.fixture(params=["fixed", "eos"])
def task(request: pytest.FixtureRequest, small_task_file: Path, small_eos_task_file: Path) -> Task:
    return read_task(small_task_file if request.param == "fixed" else small_eos_task_file)


def test_leaves_are_lexicographic(task: Task) -> None:
    assert len(task.leaves) == (8 if task.eos is None else 15)
    ids = [tuple(task.tokens.index(token) for token in leaf) for leaf in task.leaves]
    assert ids == sorted(ids)
    assert len(set(task.leaves)) == len(task.leaves)


def test_measures_equal_sums_over_completions(task: Task) -> None:
    log_p = random_log_p(task, 1)
    p, q, r = np.exp(log_p), task.reference, task.reward
    wins = value = kl = to_reference = 0.0
    for x, weight in enumerate(task.weights):
        best = np.exp(r[x] / task.beta) / np.exp(r[x] / task.beta).sum()
        for i in range(p.shape[1]):
            value += weight * p[x, i] * r[x, i]
            kl += weight * p[x, i] * math.log(p[x, i] / best[i])
            to_reference += weight * p[x, i] * math.log(p[x, i] / q[x, i])
            for j in range(p.shape[1]):
                score = 0.5 if i == j else float(r[x, i] > r[x, j])
                wins += weight * p[x, i] * q[x, j] * score
    assert task.win_rate(log_p) == pytest.approx(wins, abs=1e-12)
    assert task.expected_reward(log_p) == pytest.approx(value, abs=1e-12)
    assert task.kl_to_optimum(log_p) == pytest.approx(kl, abs=1e-12)
    assert task.kl_to_reference(log_p) == pytest.approx(to_reference, abs=1e-12)
    assert task.kl_to_optimum(task.log_optimum) == pytest.approx(0, abs=1e-12)
    assert task.win_rate(np.log(q)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_tempering_equals_the_product_over_steps(task: Task, tau: float) -> None:
    log_p = random_log_p(task, 2)
    found = task.temper(log_p, tau)
    np.testing.assert_allclose(found, brute_temper(task, log_p, tau), atol=1e-10)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-12)
    if tau == 1.0:
        np.testing.assert_allclose(found, log_p, atol=1e-12)
    else:  # per token is not per completion
        whole = log_p / tau
        whole -= np.log(np.exp(whole).sum(axis=1, keepdims=True))
        assert np.abs(whole - found).max() > 0.01


def test_tempering_is_greedy_in_the_limit_and_keeps_zeros(task: Task) -> None:
    log_p = random_log_p(task, 3)
    log_p[:, 0] = -np.inf
    cold = np.exp(task.temper(log_p, 1e-3))
    assert (cold.max(axis=1) > 1 - 1e-9).all()
    assert (cold[:, 0] == 0).all()
    with pytest.raises(ValueError, match="temperature"):
        task.temper(log_p, 0.0)


def test_mass_outside_the_task_loses(task: Task) -> None:
    log_p = random_log_p(task, 4)
    leaky = log_p + math.log(0.6)
    np.testing.assert_allclose(task.mass(leaky), 0.6)
    assert task.win_rate(leaky) == pytest.approx(0.6 * task.win_rate(log_p))
    assert task.kl_to_optimum(leaky) == pytest.approx(task.kl_to_optimum(log_p), abs=1e-12)
    with pytest.raises(ValueError, match="sum to"):
        task.win_rate(log_p + 0.01)
    with pytest.raises(ValueError, match="NaN"):
        task.win_rate(np.where(log_p == log_p.max(), np.nan, log_p))
    with pytest.raises(ValueError, match="shape"):
        task.win_rate(log_p[:, :-1])


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-50, 50), scale=st.floats(0.1, 10), seed=st.integers(0, 10**6))
def test_win_rate_and_optimum_follow_shift_and_scale(shift: float, scale: float, seed: int) -> None:
    from tests.llm.conftest import make_task  # the factory behind the fixtures

    body = make_task(seed=seed % 7)
    moved = copy.deepcopy(body)
    moved["beta"] = scale
    for row in moved["reward"].values():
        row.update({leaf: scale * value + shift for leaf, value in row.items()})
    one, two = task_of(body), task_of(moved)
    log_p = random_log_p(one, seed)
    assert two.win_rate(log_p) == pytest.approx(one.win_rate(log_p), abs=1e-12)
    np.testing.assert_allclose(two.log_optimum, one.log_optimum, atol=1e-9)
    assert two.kl_to_optimum(log_p) == pytest.approx(one.kl_to_optimum(log_p), abs=1e-9)


def test_tied_rewards_win_half() -> None:
    from tests.llm.conftest import make_task

    body = make_task(n_prompts=1)
    for i, leaf in enumerate(body["reward"]["p0"]):
        body["reward"]["p0"][leaf] = (0.1 + 0.2 if i % 2 else 0.3) + (i // 4)  # a rounding apart
    task = task_of(body)
    q = task.reference[0]
    low = q[:4].sum()
    np.testing.assert_allclose(task.win_probability[0, :4], low / 2, atol=1e-12)
    np.testing.assert_allclose(task.win_probability[0, 4:], low + (1 - low) / 2, atol=1e-12)


# --- tokenizer and draws -------------------------------------------------------------------------


def test_tokenizer_has_an_eos_of_its_own(task: Task) -> None:
    tokenizer = task_tokenizer(task)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert len(tokenizer) == 2 + 4 + 2  # the prompts' a, b, c, d and 0, 1; never the task's EOS
    assert tokenizer.decode(tokenizer("0 1 1")["input_ids"]) == "0 1 1"
    with pytest.raises(Exception, match="UNK"):
        tokenizer("0 unheard")


def test_every_leaf_is_one_example_a_prompt(task: Task) -> None:
    examples = leaf_examples(task)
    assert [e.post_id for e in examples] == list(task.prompts)
    for example in examples:
        assert len(example.completions) == len(set(example.completion_ids)) == len(task.leaves)
        for leaf, (text, ids) in enumerate(
            zip(example.completions, example.completion_ids, strict=True)
        ):
            assert task.leaf_of(text) == leaf
            assert ids[-1] == 0
            assert 0 not in ids[:-1]
            assert len(ids) == len(text.split()) + 1
    assert task.leaf_of("0 1 1 0 1") is None
    assert task.leaf_of("0 x") is None


def test_draws_depend_on_the_seed_alone(small_task_file: Path) -> None:
    few = load(small_task_file, tokenizer=None, limits=SIZES, seed=3)
    more = DataConfig(n_sft=80, n_pairs=90, n_validation_pairs=20)
    many = load(small_task_file, tokenizer=None, limits=more, seed=3)
    other = load(small_task_file, tokenizer=None, limits=SIZES, seed=4)
    assert many.sft[:50] == few.sft
    assert many.pairs[:60] == few.pairs
    assert other.pairs != few.pairs
    assert [e.completions for e in few.pairs[:20]] != [e.completions for e in few.validation_pairs]
    assert len(few.test) == 4
    assert few.card["counts"]["pairs"] == 60
    assert few.task is not None
    json.dumps(few.card, allow_nan=False)


def test_pairs_on_a_share_of_the_prompts(small_task_file: Path) -> None:
    """Only the training pairs change; on their prompts the weights keep their ratios."""
    sizes = replace(SIZES, n_sft=200, n_pairs=4000, n_validation_pairs=200)
    whole, half = (
        load(small_task_file, tokenizer=None, limits=replace(sizes, paired_prompts=share), seed=3)
        for share in (1.0, 0.5)
    )
    for part in ("sft", "validation_pairs", "test"):
        assert getattr(half, part) == getattr(whole, part)
    prompts = {e.post_id for e in half.pairs}
    assert len(prompts) == 2 == half.card["counts"]["paired_prompts"]
    assert len({e.post_id for e in whole.pairs}) == 4 == whole.card["counts"]["paired_prompts"]
    assert prompts < {e.post_id for e in half.validation_pairs} == {e.post_id for e in half.sft}
    task = read_task(small_task_file)
    weight = {name: task.weights[task.prompts.index(name)] for name in prompts}
    for name in prompts:
        share = sum(e.post_id == name for e in half.pairs) / 4000
        assert share == pytest.approx(weight[name] / sum(weight.values()), abs=0.03)
    other = load(
        small_task_file, tokenizer=None, limits=replace(sizes, paired_prompts=0.01), seed=3
    )
    assert len({e.post_id for e in other.pairs}) == 1
    assert "1 of 4 prompts" in other.card["notes"][-1]


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="paired_prompts"):
        DataConfig(paired_prompts=share)


def test_draws_follow_reference_and_bradley_terry(small_task_file: Path) -> None:
    n = 6000
    limits = DataConfig(n_sft=n, n_pairs=n, n_validation_pairs=1)
    data = load(small_task_file, tokenizer=None, limits=limits, seed=0)
    task = data.task
    assert task is not None
    joint = task.weights[:, None] * task.reference
    counts = np.zeros_like(joint)
    for example in data.sft:
        counts[task.prompts.index(example.post_id), task.leaf_of(example.completions[0])] += 1
    assert np.abs(counts / n - joint).max() < 4.5 * math.sqrt(0.25 / n)
    surprise = expected = variance = 0.0
    for example in data.pairs:
        x = task.prompts.index(example.post_id)
        won, lost = (task.leaf_of(text) for text in example.completions)
        assert won != lost
        r = task.reward[x]
        margin = abs(r[won] - r[lost])
        surprise += r[won] > r[lost]
        share = 1 / (1 + math.exp(-margin))
        expected += share
        variance += share * (1 - share)
    assert abs(surprise - expected) < 4.5 * math.sqrt(variance)


# --- strict reading ------------------------------------------------------------------------------


def broken(change: str, body: dict[str, Any]) -> None:
    first = body["reward"]["p0"]
    match change:
        case "missing leaf":
            del first["0 1 1"]
        case "extra leaf":
            first["0 1 2"] = 1.0
        case "nan":
            first["0 1 1"] = math.nan
        case "text":
            first["0 1 1"] = "1.0"
        case "beta":
            body["beta"] = 0.0
        case "negative beta":
            body["beta"] = -1
        case "boolean beta":
            body["beta"] = True
        case "negative":
            body["reference"]["p1"].update({"0 0 0": -0.1})
        case "sum":
            body["reference"]["p1"].update({"0 0 0": 0.9, "0 0 1": 0.9})
        case "weights":
            body["prompts"]["p0"] = 0.9
        case "weight 0":
            body["prompts"]["p0"] = 0
        case "horizon":
            body["horizon"] = 0
        case "too deep":
            body["horizon"] = 60
        case "eos":
            body["eos"] = "."
        case "reserved":
            body["tokens"] = ["0", "<|endoftext|>"]
        case "same prompts":
            body["prompt_tokens"]["p1"] = body["prompt_tokens"]["p0"]
        case "prompt":
            del body["reward"]["p2"]
        case "schema":
            body["schema"] = 2
        case "no reward":
            del body["reward"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing leaf", r"reward\['p0'\] lacks the completion '0 1 1'"),
        ("extra leaf", r"reward\['p0'\]: '0 1 2' is no completion"),
        ("nan", r"reward\['p0'\]\['0 1 1'\] = nan is not finite"),
        ("text", "'1.0' is not finite"),
        ("beta", r"beta = 0.0 must be"),
        ("negative beta", r"beta = -1 must be"),
        ("boolean beta", r"beta = True must be"),
        ("negative", r"reference\['p1'\] holds the probability"),
        ("sum", r"reference\['p1'\] sums to"),
        ("weights", "weights sum to"),
        ("weight 0", r"prompts\['p0'\] = 0 must be"),
        ("horizon", "horizon = 0"),
        ("too deep", r"about 10\^18 completions a prompt.* limit is \d+ completions, \d+ bytes"),
        ("eos", "eos = '.' is none of the tokens"),
        ("reserved", "reserved"),
        ("same prompts", "same prompt_tokens"),
        ("prompt", "does not name the same prompts"),
        ("schema", "schema 2"),
        ("no reward", "lacks reward"),
    ],
)
def test_a_broken_task_is_refused(
    small_task: dict, tmp_path: Path, change: str, message: str
) -> None:
    broken(change, small_task)
    file = tmp_path / "task.json"
    file.write_text(json.dumps(small_task), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_task(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_task(tmp_path: Path, small_task: dict) -> None:
    file = tmp_path / "task.json"
    with pytest.raises(InputError, match="No such file"):
        read_task(file)
    file.write_text("{\n", encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        read_task(file)
    file.write_text(json.dumps(small_task).replace('"0 0 1"', '"0 0 0"', 1), encoding="utf-8")
    with pytest.raises(InputError, match="'0 0 0' stands twice"):
        read_task(file)


def test_sizes_and_lengths_are_checked(small_task_file: Path) -> None:
    with pytest.raises(InputError, match="give n_pairs"):
        load(small_task_file, tokenizer=None, limits=DataConfig(n_sft=3), seed=0)
    short = DataConfig(n_sft=1, n_pairs=1, n_validation_pairs=1, max_completion_tokens=3)
    with pytest.raises(InputError, match="horizon 3 with EOS exceeds max_completion_tokens = 3"):
        load(small_task_file, tokenizer=None, limits=short, seed=0)
    with pytest.raises(InputError, match="n_sft = 0"):
        DataConfig(n_sft=0)
    with pytest.raises(InputError, match="room for EOS"):
        DataConfig(max_completion_tokens=1)


def test_a_task_is_known_by_its_content(small_task_file: Path, small_task: dict) -> None:
    assert kind_of_source(small_task_file) == "task"
    before = fingerprint(small_task_file)
    small_task_file.write_text(json.dumps(small_task, indent=1), encoding="utf-8")
    assert kind_of_source(small_task_file) == "task"
    assert fingerprint(small_task_file) != before
    tokenizer = open_tokenizer(small_task_file, None)
    load(small_task_file, tokenizer=tokenizer, limits=SIZES, seed=0)
    with pytest.raises(InputError, match="its own tokenizer"):
        open_tokenizer(small_task_file, "some/tokenizer")


def test_a_prompt_whose_row_could_not_be_written_is_refused(small_task_file: Path) -> None:
    body = json.loads(small_task_file.read_text())
    for key in ("prompts", "prompt_tokens", "reward", "reference"):
        body[key] = {"file" if name == "p0" else name: v for name, v in body[key].items()}
    small_task_file.write_text(json.dumps(body))
    with pytest.raises(InputError, match="'file' cannot name a prompt"):
        read_task(small_task_file)


def test_a_foreign_tokenizer_is_refused(small_task_file: Path, small_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="not this task's own"):
        load(small_task_file, tokenizer=small_tokenizer, limits=SIZES, seed=0)


@pytest.mark.parametrize(("v", "h", "eos"), [(2, 5, None), (3, 3, 2), (3, 3, 0), (2, 6, 1)])
def test_leaf_codes_are_all_completions(v: int, h: int, eos: int | None) -> None:
    codes = leaf_codes(v, h, eos, Path("t"))
    alive = v if eos is None else v - 1
    early = 0 if eos is None else sum(alive**k for k in range(h))
    assert len(codes) == alive**h + early == len(np.unique(codes, axis=0))
    assert [tuple(row) for row in codes] == sorted(tuple(row) for row in codes)
