"""Policies and reward models, measured: exactly on a task, by samples on text."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from llm import judge, tables
from llm.config import EvalConfig
from llm.data.task import Task
from llm.data.task_draws import leaf_examples
from llm.data.task_file import read_task
from llm.data.tokenize import load_tokenizer
from llm.forward import completion_logps, completion_rewards
from llm.models import RewardModel
from llm.sample import TransformersSampler
from llm.train import score
from llm.work import Work

Metrics = dict[str, float | int | None]


def policy(work: Work, model: Any) -> Metrics:
    """Samples at the evaluation temperature with their scores; on a task also exact numbers.

    Writes samples.parquet and scores.parquet (one row a prompt), on a task leaf_logprobs.npz.
    """
    task_file = work.inputs["data"] / "task.json"
    if not task_file.exists():
        return _sampled(work, model, judge.RougeLJudge(), "rouge_l")
    task = read_task(task_file)
    sampled = _sampled(work, model, judge.GoldJudge(task), "gold")
    return {**sampled, **_exact(work, model, task)}


def _sampled(work: Work, model: Any, scorer: judge.Judge, name: str) -> Metrics:
    """One completion a test prompt against the prompt's reference completion."""
    settings = EvalConfig(**work.settings["evaluation"])
    words = work.vocabulary
    tokenizer = load_tokenizer(work.inputs["data"] / "tokenizer")
    examples = work.examples("test")
    sampler = TransformersSampler(
        model, eos=words["eos"], pad=words["pad"], batch_prompts=settings.batch_prompts
    )
    drawn = sampler.sample(
        [example.prompt_ids for example in examples],
        k=1,
        temperature=settings.temperature,
        max_tokens=work.settings["tokens"],
        seed=0 if work.stage.seed is None else work.stage.seed,
        report=work.report,
    )
    samples = [samples[0] for samples in drawn]
    texts = [tokenizer.decode(s.ids, skip_special_tokens=True).strip() for s in samples]
    scores = scorer.scores(examples, texts)
    references = [example.completions[0] for example in examples]
    reference_scores = scorer.scores(examples, references)
    rows = [
        {
            "prompt_id": example.example_id,
            "prompt": example.prompt,
            "sample": text,
            "ids": sample.ids,
            "tokens": len(sample.ids),
            "ended": sample.ended,
            "score": value,
            "reference": example.completions[0],
            "reference_score": reference_score,
        }
        for example, text, sample, value, reference_score in zip(
            examples, texts, samples, scores, reference_scores, strict=True
        )
    ]
    tables.write_rows(work.folder / "samples.parquet", rows, tables.SAMPLE)
    metrics: Metrics = {
        "prompts": len(rows),
        "mean_tokens": float(np.mean([row["tokens"] for row in rows])),
        "ended_rate": float(np.mean([row["ended"] for row in rows])),
        "distinct_samples": len(set(texts)),
    }
    if name == "rouge_l":  # the reference itself scores 1: a win rate over it would say nothing
        values = [value for value in scores if value is not None]
        metrics["rouge_l"] = float(np.mean(values))
        _write_scores(work, [row["prompt_id"] for row in rows], rouge_l=values)
        return metrics
    metrics["sampled_win_rate"] = judge.win_rate(scores, reference_scores)
    metrics["invalid_samples"] = judge.invalid(scores)
    return metrics


def _exact(work: Work, model: Any, task: Task) -> Metrics:
    """Every completion's log-prob, and what follows from it without sampling."""
    settings = EvalConfig(**work.settings["evaluation"])
    examples = leaf_examples(task)
    values = score(
        partial(completion_logps, model),
        [(example.prompt_ids, example.completion_ids) for example in examples],
        pad=work.vocabulary["pad"],
        batch_size=max(1, 512 // len(task.leaves)),
        device=model.device,
    )
    log_p = np.asarray(values, dtype=np.float64)
    with (work.folder / "leaf_logprobs.npz").open("wb") as stream:
        np.savez(stream, **dict(zip(task.prompts, log_p, strict=True)))
    decoded = task.temper(log_p, settings.temperature)
    wins = (np.exp(decoded) * task.win_probability).sum(axis=1)
    _write_scores(work, list(task.prompts), win_rate=wins.tolist())
    return {
        "win_rate": task.win_rate(decoded),
        "win_rate_at_1": task.win_rate(task.conditional(log_p)),
        "expected_reward": task.expected_reward(log_p),
        "kl_to_optimum": task.kl_to_optimum(log_p),
        "kl_to_reference": _finite(task.kl_to_reference(log_p)),
        "mass_on_task": float(task.weights @ task.mass(log_p)),
    }


def _finite(value: float) -> float | None:
    """None for infinity: the policy writes what the reference never does."""
    return value if math.isfinite(value) else None


def _write_scores(work: Work, ids: list[str], **columns: list[float]) -> None:
    rows = [
        {"id": name, **{column: values[i] for column, values in columns.items()}}
        for i, name in enumerate(ids)
    ]
    tables.write_rows(work.folder / "scores.parquet", rows)


def global_rm(work: Work, model: RewardModel) -> Metrics:
    """Logistic loss (nats a pair) and accuracy on validation pairs."""
    return _of_margins(work, _score_pairs(work, partial(completion_rewards, model)))


def local_rm(work: Work, model: Any, *, reference: list[tuple[float, ...]] | None) -> Metrics:
    """The same with beta log pi, less beta log pi_ref where a reference is given."""
    margins = _score_pairs(work, partial(completion_logps, model))
    if reference is not None:
        anchors = np.asarray(reference, dtype=np.float64)
        margins = margins - (anchors[:, 0] - anchors[:, 1])
    return _of_margins(work, work.settings["beta"] * margins)


def _score_pairs(work: Work, measure: Any) -> np.ndarray:
    """(pairs,) score of chosen less score of rejected."""
    model = measure.args[0]
    values = score(
        measure,
        [(e.prompt_ids, e.completion_ids) for e in work.examples("validation_pairs")],
        pad=work.vocabulary["pad"],
        batch_size=work.settings["batch"],
        device=next(model.parameters()).device,
        report=work.report,
    )
    pairs = np.asarray(values, dtype=np.float64)
    return pairs[:, 0] - pairs[:, 1]


def _of_margins(work: Work, margins: np.ndarray) -> Metrics:
    """Validation loss and accuracy (ties half) from reward margins; one row a pair is kept."""
    losses = np.logaddexp(0.0, -margins)
    correct = (margins > 0) + 0.5 * (margins == 0)
    ids = [example.example_id for example in work.examples("validation_pairs")]
    _write_scores(
        work,
        ids,
        val_loss=losses.tolist(),
        val_accuracy=correct.tolist(),
        margin=margins.tolist(),
    )
    return {
        "pairs": len(margins),
        "val_loss": float(losses.mean()),
        "val_accuracy": float(correct.mean()),
        "mean_margin": float(margins.mean()),
    }
