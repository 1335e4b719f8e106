"""What a study would do and cost, stage by stage, before anything runs: typed, and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm.config import PAPER_PAIRS, StudyConfig
from llm.data.source import kind_of_source, open_tokenizer
from llm.data.task_file import read_task
from llm.models.shapes import Shape, shape_of
from llm.protocol.stage import Stage
from llm.records import Store, read_json
from llm.running.execute import Plan, gpus_of
from llm.running.state import word
from llm.study.costs import ASSUMPTIONS, GIB, Lengths, Machine
from llm.study.estimate import Context, Cost, Counts, cost_of

SCHEMA = 1
# Table 1. Test: of the SFT data, from which the evaluation draws its prompts.
TABLE_1 = Counts(117_000, PAPER_PAIRS, 83_800, 6_550, "Table 1")


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it is, what the graph fixed for it, what it takes. None: not known yet.

    gpu_hours: of all its GPUs together. peak_gib: a GPU's memory. disk_gib: kept; checkpoint_gib:
    on top, while it runs. questions, dollars: of the judge.
    """

    id: str
    name: str
    kind: str
    branch: str
    size: str
    seed: int | None
    state: str
    directory: str | None
    inputs: dict[str, str]
    settings: dict[str, Any]
    gpus: int
    rows: int | None
    steps: int | None
    learning_rate: float | None
    samples: int | None
    gpu_hours: float | None
    peak_gib: float | None
    disk_gib: float | None
    checkpoint_gib: float | None
    questions: int
    dollars: float


@dataclass(frozen=True)
class Totals:
    """Of the stages that are not done. None where a stage's part is not known."""

    stages: int
    gpu_hours: float | None
    disk_gib: float | None
    checkpoint_gib: float | None  # of the largest one; times the stages that train at a time
    peak_gib: float | None
    questions: int
    dollars: float


@dataclass(frozen=True)
class StudyPlan:
    """A whole study, as `study --dry-run --json` prints it."""

    schema: int
    preset: str
    figures: list[str]
    seeds: list[int]
    out: str
    config: dict[str, Any]
    sources: dict[str, str]
    counts: dict[str, dict[str, Any]]  # branch -> rows, and where the numbers are from
    lengths: dict[str, dict[str, float]]
    tokenizer: str | None
    unresolved: list[str]
    machine: dict[str, Any]
    assumptions: list[str]
    warnings: list[str]
    stages: list[StagePlan]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under stable keys."""
        return asdict(self)


def study_plan(
    plan: Plan,
    config: StudyConfig,
    *,
    preset: str,
    figures: tuple[str, ...],
    seeds: int,
    unresolved: tuple[str, ...] = (),
    machine: Machine | None = None,
) -> StudyPlan:
    """Everything about a study that can be said without running it."""
    context = context_of(plan, config, machine or Machine())
    stages = [_stage_plan(stage, plan, context, bool(unresolved)) for stage in plan.stages]
    return StudyPlan(
        SCHEMA,
        preset,
        list(figures),
        list(range(seeds)),
        str(plan.root),
        config.to_json(),
        dict(plan.sources),
        {branch: asdict(found) for branch, found in context.counts.items()},
        {branch: asdict(found) for branch, found in context.lengths.items()},
        plan.tokenizer,
        list(unresolved),
        asdict(context.machine),
        [*ASSUMPTIONS, *_assumed(context)],
        _warnings(stages, context),
        stages,
        _totals(stages),
    )


def bytes_needed(plan: Plan, config: StudyConfig) -> float:
    """Bytes that the stages not done will have written at the peak, as far as that is known."""
    costs = _costs_to_come(plan, config)
    kept = sum(cost.disk or 0.0 for cost in costs)
    return kept + max((cost.checkpoint or 0.0 for cost in costs), default=0.0)


def judging(plan: Plan, config: StudyConfig) -> tuple[int, float]:
    """(questions at most, dollars) to the judge of the stages that are not done."""
    costs = _costs_to_come(plan, config)
    return sum(cost.questions for cost in costs), sum(cost.dollars for cost in costs)


def _costs_to_come(plan: Plan, config: StudyConfig) -> list[Cost]:
    context = context_of(plan, config, Machine())
    return [cost_of(stage, context) for stage in plan.todo()]


# --- what is known -------------------------------------------------------------------------------


def context_of(plan: Plan, config: StudyConfig, machine: Machine) -> Context:
    """Counts, lengths and shapes, from what is there: records, task files, limits, Table 1."""
    by_id = {stage.id: stage for stage in plan.stages}
    branches = {stage.branch: stage for stage in plan.stages if stage.kind == "data"}
    counts = {b: _counts(plan, stage, config) for b, stage in branches.items()}
    lengths = {b: _lengths(plan, stage, config) for b, stage in branches.items()}
    shapes: dict[tuple[str, str], Shape | None] = {}
    for branch, stage in branches.items():
        words = _vocabulary(plan, stage)
        for size, model in config.models.items():
            shapes[branch, size] = shape_of(model, words)
    return Context(config, plan.runtime, machine, counts, lengths, shapes, by_id)


def _card(plan: Plan, stage: Stage) -> dict[str, Any] | None:
    """The data card of a data stage that is done."""
    path = Store(plan.root).path(plan.keys[stage.id]) / "data_card.json"
    return read_json(path) if path.is_file() else None


def _counts(plan: Plan, stage: Stage, config: StudyConfig) -> Counts:
    """Rows of each part: from the data card; a task's limits; else Table 1, within the limits."""
    card = _card(plan, stage)
    if card is not None:
        found = card["counts"]
        return Counts(
            found["sft"], found["pairs"], found["validation_pairs"], found["test"], "data card"
        )
    limits = config.limits(stage.branch)
    if config.kind == "task":
        task = read_task(Path(plan.sources.get(stage.branch, plan.sources[""])))
        test = limits.n_test or len(task.prompts)
        return Counts(
            limits.n_sft or 0, limits.n_pairs or 0, limits.n_validation_pairs or 0, test, "limits"
        )
    named = {
        "sft": limits.n_sft,
        "pairs": limits.n_pairs,
        "validation_pairs": limits.n_validation_pairs,
        "test": limits.n_test,
    }
    least = {n: min(v, getattr(TABLE_1, n)) for n, v in named.items() if v is not None}
    return replace(TABLE_1, **least, source="Table 1, within the limits" if least else "Table 1")


def _lengths(plan: Plan, stage: Stage, config: StudyConfig) -> Lengths:
    """A task's are its own; text: TL;DR's means, generation within the branch's limit."""
    limit = config.limits(stage.branch).max_completion_tokens
    if config.kind == "task":
        task = read_task(Path(plan.sources.get(stage.branch, plan.sources[""])))
        prompt = max(len(row) for row in task.prompt_tokens)
        return Lengths(prompt, limit, limit)
    usual = Lengths()
    if stage.branch == "two_word":
        return replace(usual, completion=limit, generated=limit)
    return replace(usual, generated=min(usual.generated, limit))


def _vocabulary(plan: Plan, stage: Stage) -> int | None:
    """Entries of the tokenizer, None if it is not here."""
    source = plan.sources.get(stage.branch, plan.sources[""])
    there = plan.tokenizer is None or Path(plan.tokenizer).exists()
    if kind_of_source(source) == "task" or (there and plan.tokenizer is not None):
        return len(open_tokenizer(source, plan.tokenizer))
    return None


# --- stages and sums -----------------------------------------------------------------------------


def _stage_plan(stage: Stage, plan: Plan, context: Context, open_ends: bool) -> StagePlan:
    cost: Cost = cost_of(stage, context)
    return StagePlan(
        stage.id,
        stage.name,
        stage.kind,
        stage.branch,
        stage.size or context.config.main,
        stage.seed,
        "unresolved" if open_ends else word(plan, stage),
        None if open_ends else plan.keys[stage.id].directory,
        dict(stage.inputs),
        dict(stage.settings),
        gpus_of(stage, plan.runtime),
        cost.rows,
        cost.steps,
        cost.learning_rate,
        cost.samples,
        _rounded(cost.hours),
        _rounded(cost.memory),
        _rounded(None if cost.disk is None else cost.disk / GIB),
        _rounded(None if cost.checkpoint is None else cost.checkpoint / GIB),
        cost.questions,
        round(cost.dollars, 2),
    )


def _rounded(value: float | None) -> float | None:
    """Four digits: an estimate has no more."""
    return None if value is None else float(f"{value:.4g}")


def _totals(stages: list[StagePlan]) -> Totals:
    todo = [stage for stage in stages if stage.state != "done"]

    def known(name: str) -> list[float] | None:
        values = [getattr(stage, name) for stage in todo]
        return None if any(value is None for value in values) else values

    hours, disk, checkpoints, peaks = map(
        known, ("gpu_hours", "disk_gib", "checkpoint_gib", "peak_gib")
    )
    return Totals(
        len(todo),
        None if hours is None else _rounded(sum(hours)),
        None if disk is None else _rounded(sum(disk)),
        None if checkpoints is None else max(checkpoints, default=0.0),
        None if peaks is None else max(peaks, default=0.0),
        sum(stage.questions for stage in todo),
        round(sum(stage.dollars for stage in todo), 2),
    )


def _assumed(context: Context) -> list[str]:
    said = []
    for branch, counts in context.counts.items():
        said.append(
            f"{branch or 'main'} data: {counts.sft:,} SFT posts, {counts.pairs:,} pairs, "
            f"{counts.validation_pairs:,} validation pairs, {counts.test:,} test prompts "
            f"({counts.source}); tokens a prompt {context.lengths[branch].prompt:g}, "
            f"a completion {context.lengths[branch].completion:g}"
        )
    said.append(
        "every preference row is taken for a prompt of its own, every sample for a text of its "
        "own: rows that share a prompt and samples that repeat cost less"
    )
    return said


def _warnings(stages: list[StagePlan], context: Context) -> list[str]:
    """What will not fit: one line a size and kind, with the worst of its stages."""
    worst: dict[tuple[str, str], StagePlan] = {}
    for stage in stages:
        if stage.peak_gib is None or stage.peak_gib <= context.machine.memory:
            continue
        kept = worst.get((stage.kind, stage.size))
        if kept is None or stage.peak_gib > (kept.peak_gib or math.inf):
            worst[stage.kind, stage.size] = stage
    return [
        f"{stage.id} takes about {stage.peak_gib:.0f} GiB a GPU, of "
        f"{context.machine.memory:g}: more --gpus, or smaller --micro-tokens"
        for stage in worst.values()
    ]
