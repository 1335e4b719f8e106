"""Best-of-N: pools of samples, and what the best of N by a reward model is worth (Figs. 4, 10).

Reward models score what they were trained to: whole completions, closed by EOS; log-probabilities
are not divided by the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from llm import tables
from llm.config import EvalConfig
from llm.data.task import Task
from llm.errors import InputError
from llm.models.build import load_policy, load_reward_model
from llm.models.forward import completion_logps, completion_rewards
from llm.stages import evaluate
from llm.stages.work import Work

Metrics = dict[str, float | int | None]
Value = float | None  # None: the judge gave no verdict
Pools = dict[str, list[dict[str, Any]]]
PLAIN = {"tokens": "mean_tokens"}  # column -> name of its mean


def pool(work: Work) -> Metrics:
    """K samples of every test prompt at the best-of-N temperature; writes samples.parquet."""
    settings, task = EvalConfig(**work.settings["evaluation"]), evaluate.task_of(work)
    examples = work.examples("test")
    drawn = evaluate.draw(
        work,
        examples,
        k=settings.pool,
        temperature=work.settings["temperature"],
        seed=evaluate.stage_seed(work),
    )
    rows = evaluate.sample_rows(work, examples, drawn, task)
    tables.write_rows(work.folder / "samples.parquet", rows, evaluate.SAMPLES)
    distinct = [len({sample.ids for sample in samples}) for samples in drawn]
    return {
        **evaluate.lengths(rows),
        "samples": len(rows),
        "distinct_samples_per_prompt": float(np.mean(distinct)),
    }


def curve(work: Work) -> Metrics:
    """The value of the best of N for every N up to the pool's size; writes scores.parquet.

    On a task "win_rate" is exact (of the best of N draws of the tempered policy), and what the
    pool says stands beside it as "sampled_win_rate". On text it is the judge's, where there is one.
    Bare names are at the largest N of the settings, "win_rate@5" at each.
    """
    settings, task = EvalConfig(**work.settings["evaluation"]), evaluate.task_of(work)
    pools = read_pools(work.inputs["pool"], settings.pool)
    metrics: Metrics = {"prompts": len(pools), "samples": sum(map(len, pools.values()))}
    values = _values(work, pools, task)
    sampled = _of_pools(work, pools, values)
    if "win_rate" in values:
        metrics["unjudged_samples"] = sum(won.count(None) for won in values["win_rate"])
    metrics |= _at_counts(sampled, np.ones(len(pools)), settings.counts)
    if task is None:
        ids, table = list(pools), sampled
    else:
        ids, table = list(task.prompts), {}
        metrics |= _of_task(work, task, settings, table)
        metrics |= _at_counts(table, task.weights, settings.counts)
    rows = [
        {"id": name, "n": n + 1, **{column: of[i][n] for column, of in table.items()}}
        for i, name in enumerate(ids)
        for n in range(settings.pool)
    ]
    tables.write_rows(work.folder / "scores.parquet", rows)
    return metrics


def _at_counts(
    table: Mapping[str, Sequence[Sequence[Value]]], weights: np.ndarray, counts: Sequence[int]
) -> Metrics:
    """Means over prompts (those without a value left out) at every N asked for."""
    found: Metrics = {}
    for column, of in table.items():
        name = PLAIN.get(column, column)
        for n in counts:
            found[f"{name}@{n}"] = _mean([row[n - 1] for row in of], weights)
        found[name] = found[f"{name}@{max(counts)}"]
    return found


def _mean(values: Sequence[Value], weights: np.ndarray) -> float | None:
    there = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None]
    return sum(w * v for w, v in there) / sum(w for w, _ in there) if there else None


# --- from a pool of samples ----------------------------------------------------------------------


def read_pools(folder: Path, size: int) -> Pools:
    """{prompt id: its samples, in the order of the draw}. Raises InputError for another size."""
    pools: Pools = {}
    for row in tables.read_rows(folder / "samples.parquet"):
        pools.setdefault(row["prompt_id"], []).append(row)
    for name, rows in pools.items():
        if len(rows) != size:
            raise InputError(f"{folder}: prompt {name} has {len(rows)} samples, not {size}")
        rows.sort(key=lambda row: row["sample_index"])
    return pools


def _of_pools(
    work: Work, pools: Pools, values: Mapping[str, list[list[Value]]]
) -> dict[str, list[list[Value]]]:
    """{column: for each prompt, its value at every N} of {column: what every sample is worth}."""
    prompts = {e.example_id: e.prompt_ids for e in work.examples("test")}
    eos = work.vocabulary["eos"]
    asked = [(prompts[name], [_closed(row, eos) for row in rows]) for name, rows in pools.items()]
    scores = _scores(work, asked)
    return {
        column: [best_of_each(s, v) for s, v in zip(scores, of_pools, strict=True)]
        for column, of_pools in values.items()
    }


def _closed(row: Mapping[str, Any], eos: int) -> list[int]:
    """A sample as reward models read it: one that the length limit cut is closed by EOS."""
    return row["ids"] if row["ended"] else [*row["ids"], eos]


def _values(work: Work, pools: Pools, task: Task | None) -> dict[str, list[list[Value]]]:
    """{column: for each prompt, what every sample is worth}."""
    if task is not None:
        return {"sampled_win_rate": [_chances(task, rows) for rows in pools.values()]}
    found: dict[str, list[list[Value]]] = {
        column: [[float(row[name]) for row in rows] for rows in pools.values()]
        for column, name in (("rouge_l", "score"), ("tokens", "tokens"))
    }
    if "verdicts" in work.inputs:
        verdicts = {
            (row["id"], row["sample_index"]): row["win_rate"]
            for row in tables.read_rows(work.inputs["verdicts"] / "scores.parquet")
        }
        found["win_rate"] = [
            [verdicts[name, row["sample_index"]] for row in rows] for name, rows in pools.items()
        ]
    return found


def _chances(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[Value]:
    """How often each sample beats one draw of the reference; what is no completion never does."""
    prompt = task.prompt_of(rows[0]["prompt"])
    if prompt is None:
        raise InputError(f"{rows[0]['prompt']!r} is no prompt of {task.path}")
    leaves = [task.leaf_of(row["sample"]) for row in rows]
    return [0.0 if leaf is None else float(task.win_probability[prompt, leaf]) for leaf in leaves]


def best_of_each(scores: Sequence[float], values: Sequence[Value]) -> list[Value]:
    """The mean value of the best of N, over all subsets of N samples, for N = 1 .. len(scores).

    This is unbiased for the best of N fresh draws (a U-statistic). Equal scores share alike. What
    has no value is left out, the rest counting in proportion; None where nothing is left.
    """
    chosen = best_weights(np.asarray(scores, dtype=np.float64))
    known = np.array([value is not None for value in values])
    worth = np.array([0.0 if value is None else value for value in values])
    total = chosen @ known
    sums = chosen @ (worth * known)
    return [float(s / t) if t > 0 else None for s, t in zip(sums, total, strict=True)]


def best_weights(scores: np.ndarray) -> np.ndarray:
    """(n, n): row N - 1 holds how often each sample is the best of a random subset of N.

    With b samples below a group of m equal ones, the group wins (C(b+m, N) - C(b, N)) / C(n, N) of
    the subsets, its members equally often.
    """
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    at_most = np.cumsum(size)
    inside = _inside(len(scores))
    return ((inside[:, at_most] - inside[:, at_most - size]) / size)[:, group]


@lru_cache(maxsize=8)
def _inside(n: int) -> np.ndarray:
    """(n, n + 1): how many subsets of N = row + 1 of n lie inside the first b, as a share."""
    return np.array([[comb(b, k) / comb(n, k) for b in range(n + 1)] for k in range(1, n + 1)])


# --- what reward models say ----------------------------------------------------------------------


def _scores(work: Work, rows: Sequence[evaluate.ScoredRow]) -> np.ndarray:
    """(prompts, completions) by the stage's reward model."""
    kind, folder = work.settings["reward_model"], work.inputs["reward_model"]

    def logps(policy: Path) -> np.ndarray:
        model = load_policy(policy)
        found = evaluate.scored(work, partial(completion_logps, model), model, rows)
        return np.asarray(found, dtype=np.float64)

    if kind == "global_rm":
        model = load_reward_model(folder)
        measure = partial(completion_rewards, model)
        scores = np.asarray(evaluate.scored(work, measure, model, rows))
    elif kind in ("local_rm", "dpo_rm"):
        anchor = logps(work.inputs["anchor"]) if kind == "dpo_rm" else 0.0
        scores = work.settings["beta"] * (logps(folder) - anchor)
    else:
        raise InputError(f"{work.stage.id}: unknown reward model {kind!r}")
    return scores


# --- exactly, on a task --------------------------------------------------------------------------


def _of_task(
    work: Work, task: Task, settings: EvalConfig, table: dict[str, list[list[Value]]]
) -> Metrics:
    """Fills {column: for each prompt, its exact value at every N}; what else is exact."""
    rows = evaluate.leaf_rows(task)
    scores = _scores(work, rows)
    log_p = evaluate.leaf_logps(work, load_policy(work.inputs["policy"]), task)
    p = np.exp(task.temper(log_p, work.settings["temperature"]))
    worth = {"win_rate": task.win_probability}
    worth["tokens"] = np.array([[len(ids) for ids in completions] for _, completions in rows])
    f1 = evaluate.rouge_f1(task)
    if f1 is not None:
        worth["rouge_l"] = f1
    best = [best_of_leaves(p, scores, n + 1) for n in range(settings.pool)]
    for column, value in worth.items():
        table[column] = np.stack([(b * value).sum(axis=1) for b in best], axis=1).tolist()
    found: Metrics = {"mass_on_task": float(task.weights @ task.mass(log_p))}
    if work.stage.name.startswith("bon_dpo_"):
        drawn = np.exp(task.conditional(log_p))
        found["val_accuracy_on_dpo_pairs"] = accuracy_on_pairs(task, drawn, scores)
    return found


def best_of_leaves(p: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """(P, L) probability that a leaf is the best of n draws of p; equal scores in proportion to p.

    F(s)^n - F(s-)^n, with F the distribution function of the score.
    """
    made = np.empty_like(p)
    for prompt, (mass, score) in enumerate(zip(p, scores, strict=True)):
        _, group = np.unique(score, return_inverse=True)
        of_group = np.bincount(group, mass)
        at_most = np.minimum(np.cumsum(of_group) / of_group.sum(), 1.0)
        below = np.concatenate([[0.0], at_most[:-1]])
        wins = at_most**n - below**n
        share = np.divide(wins, of_group, out=np.zeros_like(wins), where=of_group > 0)
        made[prompt] = share[group] * mass
    return made


def accuracy_on_pairs(task: Task, p: np.ndarray, scores: np.ndarray) -> float:
    """How often scores order two draws of p (P, L) as their label does, ties half.

    Labels are Bradley-Terry draws by the gold reward (Eq. 4).
    """
    total = 0.0
    for weight, q, r, s in zip(task.weights, p, task.reward, scores, strict=True):
        right = 0.5 * (1.0 + np.sign(s[:, None] - s[None, :]))
        first_wins = expit(r[:, None] - r[None, :])
        total += weight * float(2.0 * (q @ (first_wins * right) @ q))
    return total
