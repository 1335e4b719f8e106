"""Policies and reward models, measured: exactly on a task, by samples on text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llm import tables
from llm.config import EvalConfig
from llm.data.example import Example
from llm.data.task import Task
from llm.data.task_draws import leaf_examples
from llm.data.task_file import read_task
from llm.data.tokenize import load_tokenizer
from llm.errors import InputError
from llm.judge import GoldJudge, RougeLJudge, invalid, win_rate
from llm.models.build import RewardModel, device, load_policy
from llm.models.forward import completion_logps, completion_rewards
from llm.sampling.sample import Sample, open_sampler
from llm.stages.work import Work
from llm.training.train import score

Metrics = dict[str, float | int | None]
ScoredRow = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt's ids, its completions' ids
PROMPTS_SEED = 0  # of the choice among validation prompts: every arm and seed has the same ones
SAMPLES = tables.SAMPLE.append(pa.field("sample_index", pa.int32())).append(
    pa.field("reference_tokens", pa.int32())
)


def policy(work: Work) -> Metrics:
    """Samples at the evaluation temperature with their scores; on a task also exact numbers.

    Writes samples.parquet and scores.parquet (one row a prompt), on a task leaf_logprobs.npz.
    """
    settings, task = EvalConfig(**work.settings["evaluation"]), task_of(work)
    asked = asked_examples(work)
    drawn = draw(work, asked, k=1, temperature=settings.temperature, seed=stage_seed(work))
    rows = sample_rows(work, asked, drawn, task)
    tables.write_rows(work.folder / "samples.parquet", rows, SAMPLES)
    metrics = lengths(rows)
    if task is not None:
        scores, references = ([row[c] for row in rows] for c in ("score", "reference_score"))
        metrics["sampled_win_rate"] = win_rate(scores, references)
        metrics["invalid_samples"] = invalid(scores)
        return {**metrics, **_exact(work, task, settings)}
    # the reference itself scores 1: a win rate over it by ROUGE-L would say nothing
    values = [row["score"] for row in rows]
    tokens = [float(row["tokens"]) for row in rows]
    write_scores(work, [row["prompt_id"] for row in rows], rouge_l=values, tokens=tokens)
    return {**metrics, "rouge_l": float(np.mean(values))}


def task_of(work: Work) -> Task | None:
    """The exact task that the data are draws of; None for text."""
    file = work.inputs["data"] / "task.json"
    return read_task(file) if file.exists() else None


def stage_seed(work: Work) -> int:
    """The stage's seed; 0 for a stage that all seeds share."""
    return 0 if work.stage.seed is None else work.stage.seed


# --- samples -------------------------------------------------------------------------------------


def asked_examples(work: Work) -> list[Example]:
    """The prompts that a policy is evaluated on, the first completion of each its reference.

    The test part, as a rule. "validation_pairs" (Fig. 6 on text, App. C.4): as many prompts of the
    data's own validation pairs as the test part has, each once, with a preferred completion.
    """
    part = work.settings.get("part", "test")
    test = work.examples("test")
    if part == "test":
        return test
    if part != "validation_pairs":
        raise InputError(f"{work.stage.id}: no part {part!r} to evaluate on")
    pairs = tables.read_examples(work.inputs["data"] / "validation_pairs.parquet")
    distinct = list({example.prompt_ids: example for example in reversed(pairs)}.values())[::-1]
    order = np.random.default_rng(PROMPTS_SEED).permutation(len(distinct))
    return [distinct[i] for i in sorted(order[: len(test)])]


def draw(
    work: Work, examples: Sequence[Example], *, k: int, temperature: float, seed: int
) -> list[list[Sample]]:
    """K completions of every prompt by the stage's policy and sampler."""
    settings = EvalConfig(**work.settings["evaluation"])
    sampler = open_sampler(
        work.inputs["policy"],
        sampling=work.settings["sampling"],
        words=work.vocabulary,
        runtime=work.runtime,
        batch_prompts=max(1, settings.batch_prompts // k),
        device=device(),
        stage=work.folder,
    )
    return sampler.sample(
        [example.prompt_ids for example in examples],
        k=k,
        temperature=temperature,
        max_tokens=work.settings["tokens"],
        seed=seed,
        report=work.report,
    )


def sample_rows(
    work: Work, examples: Sequence[Example], drawn: Sequence[Sequence[Sample]], task: Task | None
) -> list[dict[str, Any]]:
    """One row a sample (`SAMPLES`); score: the gold reward on a task, ROUGE-L F1 on text."""
    tokenizer = load_tokenizer(work.inputs["data"] / "tokenizer")
    judge = RougeLJudge() if task is None else GoldJudge(task)
    of = [example for example, samples in zip(examples, drawn, strict=True) for _ in samples]
    flat = [sample for samples in drawn for sample in samples]
    index = [i for samples in drawn for i in range(len(samples))]
    texts = [tokenizer.decode(s.ids, skip_special_tokens=True).strip() for s in flat]
    references = judge.scores(examples, [example.completions[0] for example in examples])
    reference = {e.example_id: value for e, value in zip(examples, references, strict=True)}
    return [
        {
            "prompt_id": example.example_id,
            "prompt": example.prompt,
            "sample": text,
            "ids": sample.ids,
            "tokens": len(sample.ids),
            "ended": sample.ended,
            "score": value,
            "reference": example.completions[0],
            "reference_score": reference[example.example_id],
            "sample_index": i,
            "reference_tokens": len(example.completion_ids[0]),
        }
        for example, sample, i, text, value in zip(
            of, flat, index, texts, judge.scores(of, texts), strict=True
        )
    ]


def lengths(rows: Sequence[dict[str, Any]]) -> Metrics:
    """What stands beside every win rate: how long the samples are, and how many ended."""
    return {
        "prompts": len({row["prompt_id"] for row in rows}),
        "mean_tokens": float(np.mean([row["tokens"] for row in rows])),
        "reference_mean_tokens": float(np.mean([row["reference_tokens"] for row in rows])),
        "ended_rate": float(np.mean([row["ended"] for row in rows])),
        "distinct_samples": len({row["sample"] for row in rows}),
    }


# --- exact numbers of a task ---------------------------------------------------------------------


def _exact(work: Work, task: Task, settings: EvalConfig) -> Metrics:
    """Every completion's log-prob, and what follows from it without sampling."""
    log_p = leaf_logps(work, load_policy(work.inputs["policy"]), task)
    with (work.folder / "leaf_logprobs.npz").open("wb") as stream:
        np.savez(stream, **dict(zip(task.prompts, log_p, strict=True)))
    decoded = task.temper(log_p, settings.temperature)
    columns = {"win_rate": task.win_probability}
    f1 = rouge_f1(task)
    if f1 is not None:
        columns["rouge_l"] = f1
    p = np.exp(decoded)
    rows = {name: (p * value).sum(axis=1) for name, value in columns.items()}
    write_scores(work, list(task.prompts), **{k: v.tolist() for k, v in rows.items()})
    return {
        **{name: float(task.weights @ values) for name, values in rows.items()},
        "win_rate_at_1": task.win_rate(task.conditional(log_p)),
        "expected_reward": task.expected_reward(log_p),
        "kl_to_optimum": task.kl_to_optimum(log_p),
        "kl_to_reference": _finite(task.kl_to_reference(log_p)),
        "mass_on_task": float(task.weights @ task.mass(log_p)),
    }


def leaf_logps(work: Work, model: Any, task: Task) -> np.ndarray:
    """(P, L) log-probability of every completion of a task, nats."""
    measure = partial(completion_logps, model)
    values = scored(work, measure, model, leaf_rows(task))
    return np.asarray(values, dtype=np.float64)


def leaf_rows(task: Task) -> list[ScoredRow]:
    """Every prompt with all its completions, in the order of `task.leaves`."""
    return [(e.prompt_ids, e.completion_ids) for e in leaf_examples(task)]


def scored(
    work: Work,
    measure: Any,
    model: Any,
    rows: Sequence[ScoredRow],
) -> list[tuple[float, ...]]:
    """`measure` of many (prompt, completions), where models score and in the stage's precision.

    Raises ValueError for a score that is no finite number.
    """
    model.to(device()).eval()
    found = score(
        measure,
        rows,
        pad=work.vocabulary["pad"],
        tokens=work.runtime.micro_tokens,
        device=device(),
        precision=precision(work),
        report=work.report,
    )
    for row, values in enumerate(found):
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{work.stage.id}: a score of row {row} is not finite: {values}")
    return found


def precision(work: Work) -> str:
    """The stage's own, or that of its sampling."""
    settings = work.settings
    return settings["precision"] if "precision" in settings else settings["sampling"]["precision"]


def rouge_f1(task: Task) -> np.ndarray | None:
    """(P, L) ROUGE-L F1 (0-1) of a task whose gold reward is that, times a factor; else None."""
    if task.family != "rouge":
        return None
    scale = task.parameters.get("rouge_scale")
    if not isinstance(scale, int | float) or not (math.isfinite(scale) and scale > 0):
        raise InputError(f"{task.path}: a task of family rouge needs rouge_scale, got {scale!r}")
    f1 = task.reward / scale
    if f1.min() < -1e-9 or f1.max() > 1 + 1e-9:
        raise InputError(
            f"{task.path}: gold rewards over rouge_scale lie in [{f1.min():g}, {f1.max():g}], "
            "not in 0..1: they are no ROUGE-L F1"
        )
    return np.clip(f1, 0.0, 1.0)


def _finite(value: float) -> float | None:
    """None for infinity: the policy writes what the reference never does."""
    return value if math.isfinite(value) else None


def write_scores(work: Work, ids: Sequence[str], **columns: Sequence[float | None]) -> None:
    """scores.parquet: one row a prompt or pair."""
    rows = [
        {"id": name, **{column: values[i] for column, values in columns.items()}}
        for i, name in enumerate(ids)
    ]
    tables.write_rows(work.folder / "scores.parquet", rows)


# --- reward models on validation pairs -----------------------------------------------------------


def global_rm(work: Work, model: RewardModel) -> Metrics:
    """Logistic loss (nats a pair) and accuracy on validation pairs."""
    return _of_margins(work, _score_pairs(work, partial(completion_rewards, model), model))


def local_rm(work: Work, model: Any, *, reference: list[tuple[float, ...]] | None) -> Metrics:
    """The same with beta log pi, less beta log pi_ref where a reference is given."""
    margins = _score_pairs(work, partial(completion_logps, model), model)
    if reference is not None:
        anchors = np.asarray(reference, dtype=np.float64)
        margins = margins - (anchors[:, 0] - anchors[:, 1])
    return _of_margins(work, work.settings["beta"] * margins)


def _score_pairs(work: Work, measure: Any, model: Any) -> np.ndarray:
    """(pairs,) score of chosen less score of rejected."""
    examples = work.examples("validation_pairs")
    rows = [(e.prompt_ids, e.completion_ids) for e in examples]
    values = scored(work, measure, model, rows)
    pairs = np.asarray(values, dtype=np.float64)
    return pairs[:, 0] - pairs[:, 1]


def _of_margins(work: Work, margins: np.ndarray) -> Metrics:
    """Validation loss and accuracy (ties half) from reward margins; one row a pair is kept."""
    losses = np.logaddexp(0.0, -margins)
    correct = (margins > 0) + 0.5 * (margins == 0)
    ids = [example.example_id for example in work.examples("validation_pairs")]
    write_scores(
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
