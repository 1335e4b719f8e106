"""Measuring stages run in order on a small task and on small texts, and what they write."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm import tables
from llm.config import StudyConfig
from llm.data.task_file import read_task
from llm.errors import InputError
from llm.models.build import load_policy
from llm.protocol.graph import ancestors, build
from llm.stages import best_of_n, evaluate
from llm.stages.kinds import KINDS
from llm.stages.work import Work

SCRIPT = Path(__file__).with_name("small_study.py")
spec = importlib.util.spec_from_file_location("small_study", SCRIPT)
assert spec is not None
assert spec.loader is not None
small_study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small_study)

Ran = dict[str, tuple[Work, dict[str, Any]]]


def _run(
    root: Path, config: StudyConfig, source: Path, tokenizer: str | None, *, last: str | None = None
) -> Ran:
    """Every stage of Fig. 10 at one seed (or what `last` rests on): {id: (its work, metrics)}."""
    identity = {"split_seed": 0}
    data = {branch: identity for branch in ("", "ranked") if not branch or config.kind == "task"}
    ran: Ran = {}
    stages = build(("fig10",), (0,), config, data)
    for number, stage in enumerate(stages if last is None else ancestors(last, stages)):
        folder = root / "stages" / f"{number}"
        folder.mkdir(parents=True)
        inputs = {role: ran[name][0].folder for role, name in stage.inputs}
        work = Work(stage, inputs, folder, str(source), tokenizer)
        ran[stage.id] = (work, dict(KINDS[stage.kind](work).metrics))
    return ran


@pytest.fixture(scope="module")
def task_ran(tmp_path_factory: pytest.TempPathFactory, shared_task_file: Path) -> Ran:
    task = read_task(shared_task_file)
    config = small_study.small("task")
    data = replace(config.data, max_completion_tokens=task.horizon + 1, n_sft=2048)
    models = {"less": config.models["less"]}
    sft = replace(config.sft, fixed_rate=1e-2, save_steps=100)  # it must write completions
    config = replace(config, data=data, models=models, sft=sft)
    return _run(tmp_path_factory.mktemp("task"), config, shared_task_file, None)


def _again(ran: Ran, stage_id: str, folder: Path, **inputs: Path) -> Work:
    """A stage that ran, to be run again into another folder."""
    work = ran[stage_id][0]
    folder.mkdir(parents=True, exist_ok=True)
    return replace(work, folder=folder, inputs={**work.inputs, **inputs})


# --- a task --------------------------------------------------------------------------------------


def test_a_pool_and_its_curves_on_a_task(task_ran: Ran, shared_task_file: Path) -> None:
    task = read_task(shared_task_file)
    work, metrics = task_ran["pool_sft"]
    rows = tables.read_rows(work.folder / "samples.parquet")
    assert metrics["samples"] == len(rows) == 25 * len(task.prompts)
    assert [row["sample_index"] for row in rows[:25]] == list(range(25))
    assert len({row["sample"] for row in rows[:25]}) > 1  # K different draws
    for name in ("bon_dpo_global_rm[0]", "bon_sft_local_rm[0]", "bon_dpo_dpo_rm[0]"):
        work, metrics = task_ran[name]
        table = tables.read_rows(work.folder / "scores.parquet")
        assert len(table) == 25 * len(task.prompts)
        at_five = {row["id"]: row["win_rate"] for row in table if row["n"] == 5}
        mean = sum(w * at_five[p] for w, p in zip(task.weights, task.prompts, strict=True))
        assert metrics["win_rate@5"] == pytest.approx(mean)
        assert metrics["win_rate"] == metrics["win_rate@25"]
        assert 0 <= metrics["sampled_win_rate"] <= 1
        assert metrics["mean_tokens"] == pytest.approx(task.horizon + 1)
        assert ("val_accuracy_on_dpo_pairs" in metrics) == name.startswith("bon_dpo")


def test_at_n_one_every_reward_model_gives_the_policy_itself(task_ran: Ran) -> None:
    names = ("bon_dpo_global_rm[0]", "bon_dpo_local_rm[0]", "bon_dpo_dpo_rm[0]")
    found = [task_ran[name][1]["win_rate@1"] for name in names]
    assert found == pytest.approx([found[0]] * 3)


def test_what_pools_say_is_near_what_is_exact(task_ran: Ran) -> None:
    for name, (_, metrics) in task_ran.items():
        if name.startswith("bon_"):
            assert metrics["mass_on_task"] > 0.9  # the exact numbers are given a completion
            for n in (1, 5):
                gap = abs(metrics[f"sampled_win_rate@{n}"] - metrics[f"win_rate@{n}"])
                assert gap < 0.2, name


def test_the_dpo_reward_is_a_log_ratio(
    task_ran: Ran, shared_task_file: Path, tmp_path: Path
) -> None:
    """With itself as its anchor it says nothing."""
    rows = evaluate.leaf_rows(read_task(shared_task_file))
    work = task_ran["bon_dpo_dpo_rm[0]"][0]
    scores = best_of_n._scores(work, rows)
    assert np.ptp(scores) > 0
    same = _again(task_ran, "bon_dpo_dpo_rm[0]", tmp_path, anchor=work.inputs["reward_model"])
    assert np.ptp(best_of_n._scores(same, rows)) == 0
    logps = [
        evaluate.leaf_logps(work, load_policy(work.inputs[role]), read_task(shared_task_file))
        for role in ("reward_model", "anchor")
    ]
    assert scores == pytest.approx(work.settings["beta"] * (logps[0] - logps[1]))


def test_scores_are_in_the_studys_precision(task_ran: Ran, shared_task_file: Path) -> None:
    task, work = read_task(shared_task_file), task_ran["bon_sft_local_rm[0]"][0]
    model = load_policy(work.inputs["policy"])
    half = replace(work.stage, settings={**work.settings, "precision": "bf16"})
    exact, rounded = (
        evaluate.leaf_logps(each, model, task) for each in (work, replace(work, stage=half))
    )
    assert np.abs(exact - rounded).max() > 1e-4
    assert rounded == pytest.approx(exact, abs=0.3)
    sampling = {"sampling": {"precision": "bf16"}}
    assert evaluate.precision(replace(work, stage=replace(half, settings=sampling))) == "bf16"


def test_a_score_that_is_no_number_is_an_error(
    task_ran: Ran, shared_task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = evaluate.leaf_rows(read_task(shared_task_file))
    for bad in (math.nan, math.inf):
        monkeypatch.setattr(evaluate, "score", lambda *a, bad=bad, **k: [(0.0,), (bad, 0.0)])
        for name in ("bon_sft_local_rm[0]", "bon_sft_global_rm[0]"):
            with pytest.raises(ValueError, match="a score of row 1 is not finite"):
                best_of_n._scores(task_ran[name][0], rows)


def test_rouge_of_a_task_is_its_reward_over_the_scale(
    shared_task_file: Path, tmp_path: Path
) -> None:
    task = read_task(shared_task_file)
    assert evaluate.rouge_f1(task) is None
    reward = np.abs(task.reward) / np.abs(task.reward).max()
    rouge = replace(task, family="rouge", reward=3.0 * reward, parameters={"rouge_scale": 3.0})
    found = evaluate.rouge_f1(rouge)
    assert found is not None
    assert found == pytest.approx(reward)
    for scale in (None, 0.0, math.nan):
        with pytest.raises(InputError, match="needs rouge_scale"):
            evaluate.rouge_f1(replace(rouge, parameters={"rouge_scale": scale}))
    with pytest.raises(InputError, match="no ROUGE-L F1"):
        evaluate.rouge_f1(replace(rouge, parameters={"rouge_scale": 2.0}))


# --- text ----------------------------------------------------------------------------------------


@pytest.fixture
def text_ran(tmp_path: Path, small_tldr: Path, small_tokenizer_file: Path) -> Callable[..., Ran]:
    def ran(last: str) -> Ran:
        config = small_study.small("text")
        config = replace(config, models={"less": config.models["less"]})
        data = replace(config.data, max_completion_tokens=30, n_validation_pairs=15)
        config = replace(config, data=data)
        tokenizer = str(small_tokenizer_file)
        return _run(tmp_path / "run", config, small_tldr, tokenizer, last=last)

    return ran


def test_a_pool_on_text_counts_rouge_and_the_judges_verdicts(
    text_ran: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = text_ran("bon_sft_global_rm[0]")
    metrics = ran["bon_sft_global_rm[0]"][1]
    assert "win_rate" not in metrics
    assert metrics["rouge_l"] == metrics["rouge_l@8"]
    pool = tables.read_rows(ran["pool_sft"][0].folder / "samples.parquet")
    assert metrics["rouge_l@1"] == pytest.approx(np.mean([row["score"] for row in pool]))
    assert metrics["mean_tokens@1"] == pytest.approx(np.mean([row["tokens"] for row in pool]))
    assert all(row["reference_tokens"] > 1 for row in pool)
    rows = [
        {
            "id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "win_rate": None if row["sample_index"] == 3 else float(row["sample_index"] % 2),
        }
        for row in pool
    ]
    verdicts = tmp_path / "verdicts"
    verdicts.mkdir()
    tables.write_rows(verdicts / "scores.parquet", rows)
    work = _again(ran, "bon_sft_global_rm[0]", tmp_path / "curve", verdicts=verdicts)
    judged = best_of_n.curve(work)
    assert judged["win_rate@1"] == pytest.approx(3 / 7)  # the sample without a verdict is left out
    assert judged["rouge_l"] == metrics["rouge_l"]
    assert judged["unjudged_samples"] == len(pool) / 8


def test_fig6_on_text_asks_prompts_of_validation_pairs(
    text_ran: Callable[..., Ran], tmp_path: Path
) -> None:
    """App. C.4: ROUGE-L against preferred completions; the same prompts for every arm."""
    ran = text_ran("pool_sft")
    work = ran["pool_sft"][0]
    settings = {**work.settings, "part": "validation_pairs"}
    asked = replace(work, stage=replace(work.stage, settings=settings), folder=tmp_path / "eval")
    asked.folder.mkdir()
    examples = evaluate.asked_examples(asked)
    assert len(examples) == len(work.examples("test")) == 4
    pairs = tables.read_examples(work.inputs["data"] / "validation_pairs.parquet")
    preferred = {e.prompt_ids: e.completions[0] for e in reversed(pairs)}
    assert all(preferred[e.prompt_ids] == e.completions[0] for e in examples)
    assert len({e.prompt_ids for e in examples}) == len(examples)
    assert examples == evaluate.asked_examples(asked)
    metrics = evaluate.policy(asked)
    rows = tables.read_rows(asked.folder / "samples.parquet")
    assert [row["reference"] for row in rows] == [e.completions[0] for e in examples]
    assert metrics["rouge_l"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert metrics["ended_rate"] == pytest.approx(np.mean([row["ended"] for row in rows]))
    other = replace(work, stage=replace(work.stage, settings={**settings, "part": "sft"}))
    with pytest.raises(InputError, match="no part 'sft'"):
        evaluate.asked_examples(other)
