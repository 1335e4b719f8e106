"""What each kind of stage takes, from counts, lengths and shapes (formulas: `llm.study.costs`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llm.config import JudgeConfig, StudyConfig
from llm.judge import cost as judging
from llm.judge.serve import folder_of
from llm.models.shapes import Shape
from llm.protocol.stage import Stage
from llm.runtime import Runtime
from llm.study import costs
from llm.study.costs import Lengths, Machine

MADE_VALIDATION = 1000  # pairs that are made: validation rows at most


@dataclass(frozen=True)
class Counts:
    """Rows of each part of a branch's data, and where the numbers are from."""

    sft: int
    pairs: int
    validation_pairs: int
    test: int
    source: str


@dataclass(frozen=True)
class Context:
    """What is known before anything runs; counts, lengths and shapes by the branch of the data."""

    config: StudyConfig
    runtime: Runtime
    machine: Machine
    counts: Mapping[str, Counts]
    lengths: Mapping[str, Lengths]
    shapes: Mapping[tuple[str, str], Shape | None]  # (branch of the data, size)
    stages: Mapping[str, Stage]

    def data(self, stage: Stage) -> str:
        """The branch whose data stage a stage reads."""
        return self.stages[dict(stage.inputs)["data"]].branch

    def shape(self, stage: Stage) -> Shape | None:
        """The shape of the model that a stage trains or runs."""
        return self.shapes[self.data(stage), stage.size or self.config.main]


@dataclass(frozen=True)
class Cost:
    """hours: of all GPUs together; memory: GiB of one; disk, checkpoint: bytes. None: not known."""

    rows: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    samples: int | None = None
    hours: float | None = 0.0
    memory: float | None = 0.0
    disk: float | None = 0.0
    checkpoint: float | None = 0.0
    questions: int = 0
    dollars: float = 0.0


def cost_of(stage: Stage, context: Context) -> Cost:
    """The cost of one stage."""
    return KINDS[stage.kind](stage, context)


def _counts(stage: Stage, c: Context) -> tuple[Counts, Lengths]:
    """Of the rows that a stage reads: pairs that the branch makes have lengths of their own."""
    data = c.data(stage)
    counts, lengths = c.counts[data], c.lengths[data]
    if "made" in dict(stage.inputs):
        checked = min(counts.validation_pairs, MADE_VALIDATION)
        counts = replace(counts, validation_pairs=checked)
        lengths = replace(lengths, completion=lengths.generated)
    return counts, lengths


def _data(stage: Stage, c: Context) -> Cost:
    counts, lengths = c.counts[stage.branch], c.lengths[stage.branch]
    rows = counts.sft + counts.pairs + counts.validation_pairs + counts.test
    return Cost(rows=rows, disk=rows * 10 * (lengths.prompt + 2 * lengths.completion))


# --- training ------------------------------------------------------------------------------------


def _rows(stage: Stage, c: Context) -> int:
    """Rows of one epoch; with more prompts, one pair for each SFT post too."""
    counts, _ = _counts(stage, c)
    if stage.kind == "sft":
        return counts.sft
    pairs = dict(stage.inputs).get("pairs")
    made = c.stages[pairs].settings if pairs is not None else {}
    return counts.pairs + (_more(stage, c) if made.get("more_prompts") else 0)


def _more(stage: Stage, c: Context) -> int:
    limit = c.config.online.more_prompts
    posts = _counts(stage, c)[0].sft
    return posts if limit is None else min(limit, posts)


def _train(stage: Stage, c: Context) -> Cost:
    shape, config = c.shape(stage), stage.settings["train"]
    counts, lengths = _counts(stage, c)
    rows, completions = _rows(stage, c), 1 if stage.kind == "sft" else 2
    generated = lengths.generated if "pairs" in dict(stage.inputs) else lengths.completion
    tokens = lengths.prompt + completions * generated
    steps = math.ceil(rows / config["batch_size"]) * config["epochs"]
    if shape is None:
        return Cost(rows, steps, config["fixed_rate"], None, None, None, None, None)
    train = {
        "sft": c.config.sft,
        "global_rm": c.config.global_rm if stage.name == "global_rm" else c.config.dpo,
    }.get(stage.kind, c.config.dpo)
    examples = counts.sft if stage.kind == "sft" else counts.pairs
    rate = train.learning_rate(width=shape.hidden, examples=examples)
    part = _pass(stage, c, config["batch_size"] / c.runtime.gpus, completions)
    half = config["precision"] == "bf16"
    memory = costs.train_memory(shape, part, gpus=c.runtime.gpus, half=half)
    hours = costs.train_hours(shape, rows * config["epochs"], tokens, c.machine)
    kept = costs.SAVED_BYTES * shape.parameters
    checkpoint = costs.CHECKPOINT_BYTES * shape.parameters
    return Cost(rows, steps, rate, None, hours, memory, kept, checkpoint)


def _pass(stage: Stage, c: Context, rows: float, completions: int) -> float:
    """The most tokens of a pass: the budget, or all rows at their longest; never below one row."""
    limits = c.config.limits(stage.branch)
    longest = limits.max_prompt_tokens + completions * limits.max_pair_completion_tokens
    return max(longest, min(c.runtime.micro_tokens, rows * longest))


# --- scoring -------------------------------------------------------------------------------------


def _score_pairs(stage: Stage, c: Context) -> Cost:
    shape, (counts, lengths) = c.shape(stage), _counts(stage, c)
    rows = counts.validation_pairs + (counts.pairs if stage.kind == "reference" else 0)
    tokens, disk = lengths.prompt + 2 * lengths.completion, 16.0 * rows
    if shape is None:
        return Cost(rows, disk=disk, hours=None, memory=None)
    hours = costs.score_hours(shape, rows, tokens, c.machine)
    memory = costs.score_memory(shape, _pass(stage, c, rows, 2), half=_half(stage))
    return Cost(rows, hours=hours, memory=memory, disk=disk)


def _best_of_n(stage: Stage, c: Context) -> Cost:
    counts, lengths = _counts(stage, c)
    scorer = c.shape(c.stages[dict(stage.inputs)["reward_model"]])
    pool = int(stage.settings["evaluation"]["pool"])
    models = 2 if stage.settings["reward_model"] == "dpo_rm" else 1
    disk = 64.0 * counts.test * pool
    if scorer is None:
        return Cost(counts.test, disk=disk, hours=None, memory=None)
    tokens = lengths.prompt + pool * lengths.generated
    hours = models * costs.score_hours(scorer, counts.test, tokens, c.machine)
    memory = costs.score_memory(
        scorer, _pass(stage, c, 1e9, pool), half=_half(stage)
    )  # one at a time
    return Cost(counts.test, hours=hours, memory=memory, disk=disk)


def _half(stage: Stage) -> bool:
    return stage.settings["precision"] == "bf16"


def _half_sampled(stage: Stage) -> bool:
    return stage.settings["sampling"]["precision"] == "bf16"


# --- sampling ------------------------------------------------------------------------------------


def _drawn(stage: Stage, c: Context) -> tuple[int, int]:
    """(prompts, completions of each)."""
    counts, _ = _counts(stage, c)
    if stage.kind == "eval_policy":
        own = c.counts[c.data(stage)]  # Fig. 6: as many validation prompts as there are test ones
        return min(
            own.test, own.validation_pairs if stage.settings["part"] != "test" else own.test
        ), 1
    if stage.kind == "pool":
        return counts.test, int(stage.settings["evaluation"]["pool"])
    if stage.kind == "made_pairs":
        checked = min(counts.validation_pairs, MADE_VALIDATION)
        return counts.pairs + checked, int(stage.settings["samples"])
    more = _more(stage, c) if stage.settings["more_prompts"] else 0
    return counts.pairs + more, int(stage.settings["online"]["samples"])


def _sample(stage: Stage, c: Context) -> Cost:
    shape, (_, lengths) = c.shape(stage), _counts(stage, c)
    prompts, each = _drawn(stage, c)
    disk = float(costs.SAMPLE_BYTES * prompts * each)
    cost = Cost(prompts, samples=prompts * each, disk=disk, hours=None, memory=None)
    if shape is not None:
        hours = costs.sample_hours(shape, prompts, each, lengths, c.machine)
        parallel = c.runtime.tensor_parallel
        memory = costs.sample_memory(shape, lengths, c.machine, parallel=parallel)
        if stage.kind == "online_pairs":  # and the reward model scores every sample
            tokens = lengths.prompt + each * lengths.generated
            hours += costs.score_hours(shape, prompts, tokens, c.machine)
            half = _half_sampled(stage)
            scored = costs.score_memory(shape, _pass(stage, c, 1e9, each), half=half)
            memory = max(memory, scored)
        cost = replace(cost, hours=hours, memory=memory)
    if stage.settings.get("how") == "narrow" and c.config.kind == "text":
        cost = _asked(cost, c, lengths, comparisons=prompts)
    return cost


# --- judging -------------------------------------------------------------------------------------


def _asked(cost: Cost, c: Context, lengths: Lengths, *, comparisons: int, written: int = 0) -> Cost:
    """The cost with the judge's: comparisons of two summaries, and summaries that it writes."""
    judge: JudgeConfig = c.config.judge
    each = judging.prompt_tokens(lengths.prompt, lengths.generated)
    compared = judging.estimate(comparisons, each, judge.both_orders, c.runtime)
    posts = judging.generation_tokens(lengths.prompt)
    wrote = judging.estimate(written, posts, False, c.runtime, lengths.generated)
    own = folder_of(judge.model or "") is not None  # served here: GPU hours, which nobody knows
    return replace(
        cost,
        questions=compared.questions + wrote.questions,
        dollars=0.0 if own else compared.dollars + wrote.dollars,
        hours=None if own else cost.hours,
    )


def _verdicts(stage: Stage, c: Context) -> Cost:
    source = c.stages[dict(stage.inputs)["samples"]]
    prompts, each = _drawn(source, c)
    number = prompts * each
    cost = Cost(number, disk=float(costs.SAMPLE_BYTES * number))
    return _asked(cost, c, c.lengths[c.data(stage)], comparisons=number)


def _made_pairs(stage: Stage, c: Context) -> Cost:
    if stage.settings["how"] != "two_word" or stage.settings["samples"]:
        return _sample(stage, c)
    counts, lengths = _counts(stage, c)  # two summaries a row, and a reference a test prompt
    rows = counts.pairs + min(counts.validation_pairs, MADE_VALIDATION)
    cost = Cost(rows, disk=float(costs.SAMPLE_BYTES * (2 * rows + counts.test)))
    return _asked(cost, c, lengths, comparisons=rows, written=2 * rows + counts.test)


KINDS: Mapping[str, Callable[[Stage, Context], Cost]] = {
    "data": _data,
    **dict.fromkeys(("sft", "global_rm", "local_rm", "dpo", "online_dpo"), _train),
    **dict.fromkeys(("reference", "eval_global_rm", "eval_local_rm", "eval_dpo_rm"), _score_pairs),
    **dict.fromkeys(("online_pairs", "eval_policy", "pool"), _sample),
    "made_pairs": _made_pairs,
    "best_of_n": _best_of_n,
    "verdicts": _verdicts,
}
