"""The measured level of each arm of a figure, seed by seed, out of a study's records.

A figure is measured on one branch of data and at one or more model sizes; "" is the main one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paper_figures.records import Stage, Study
from paper_figures.style import label
from paper_figures.sweep_stats import mean_of
from theory.predictions import Measurement, Verdict

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")
ARMS = {
    "fig3": POLICIES,
    "fig5": ("sft", "dpo", "online_dpo_dpo"),
    "fig6": ("sft", "dpo", "dpo_2x", "online_dpo_dpo"),
    "fig7": ("sft", "online_dpo_sft", "online_dpo_sft_more_prompts"),
    "fig8": ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo"),
    "fig9": (*REWARD_MODELS, "global_rm_matched"),
}
EVALUATED = (*POLICIES, "online_dpo_sft_more_prompts")
BRANCHES = {"fig5": "two_word", "fig6": "ranked", "fig8": "narrow"}
SCORES = ("win_rate", "rouge_l")  # in order of preference
CONTROLLED = "length_controlled_win_rate"


@dataclass(frozen=True)
class Level:
    """One arm's metric: a value for each seed, and an interval where one was recorded.

    tokens: mean length of its samples; controlled: its length-controlled win rate, mean over seeds.
    """

    name: str
    per_seed: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    tokens: float | None = None
    controlled: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.per_seed) / len(self.per_seed)


# --- where a figure is measured -------------------------------------------------------------------


def branch_of(study: Study, figure: str) -> str:
    """The branch of data that a figure is measured on."""
    if figure == "fig7" and study.data.get("kind") == "task":
        return "few_prompts"
    return BRANCHES.get(figure, "")


def main_size(study: Study) -> str:
    """The name of the main size; "" where the configuration names no sizes."""
    return next(iter(_models(study)), "")


def size_of(study: Study, measurement: Measurement | None) -> str:
    """The size of a measurement; "" for the main one, whichever way it is written."""
    size = None if measurement is None else measurement.size
    return "" if size in (None, main_size(study)) else str(size)


def verdict_size(study: Study, verdict: Verdict) -> str:
    """The size that a verdict is about; "" for the main one."""
    return size_of(study, verdict.measurement)


def size_words(study: Study, size: str) -> str:
    """The name of a size; "" where the study has one size alone."""
    return (size or main_size(study)) if len(_models(study)) > 1 else ""


def sizes(study: Study) -> tuple[str, ...]:
    """All sizes, the smallest first where the records say how many parameters each one has."""
    named = ["", *list(_models(study))[1:]]
    trained = (stage for stage in study.stages if stage.base == "sft")
    known = {stage.size: stage.metrics.get("parameters") for stage in trained}
    if any(known.get(size) is None for size in named):
        return tuple(named)
    return tuple(sorted(named, key=lambda size: known[size] or 0.0))


def sizes_of(study: Study, figure: str) -> tuple[str, ...]:
    """The sizes at which a figure is measured: all of them for a wide one, else the main one."""
    wide = study.config.get("wide")
    if isinstance(wide, list):
        return sizes(study) if figure in wide else ("",)
    found = {size_of(study, row) for row in study.measurements or () if row.figure == figure}
    return tuple(size for size in sizes(study) if size in found) or ("",)


def _models(study: Study) -> dict[str, object]:
    models = study.config.get("models")
    return models if isinstance(models, dict) else {}


# --- levels ---------------------------------------------------------------------------------------


def levels(
    study: Study, metric: str, names: Sequence[str], figure: str, size: str = ""
) -> tuple[Level, ...]:
    """`metric` of every name that has it: from measurements.json, else from the stage records."""
    found = (_level(study, metric, name, figure, size) for name in names)
    return tuple(level for level in found if level is not None)


def _level(study: Study, metric: str, name: str, figure: str, size: str) -> Level | None:
    branch = branch_of(study, figure)
    values = per_seed(study, metric, name, branch, size)
    measured = measured_row(study, figure, f"{metric}[{name}]", size)
    if not values and measured is None:
        return None
    points = measured.per_seed if measured is not None else tuple(values.values())
    tokens = _mean(per_seed(study, "mean_tokens", name, branch, size))
    controlled = None
    if metric == "win_rate":
        row = measured_row(study, figure, f"{CONTROLLED}[{name}]", size)
        controlled = None if row is None else row.value
    if measured is None:
        return Level(name, points, tokens=tokens, controlled=controlled)
    interval = (measured.low, measured.high, measured.interval)
    return Level(name, points, *interval, tokens=tokens, controlled=controlled)


def measured_row(study: Study, figure: str, quantity: str, size: str = "") -> Measurement | None:
    """The measurement of a quantity that has a value for at least one seed."""
    for row in study.measurements or ():
        if (row.figure, row.quantity, size_of(study, row)) == (figure, quantity, size):
            return row if row.per_seed else None
    return None


def per_seed(
    study: Study, metric: str, name: str, branch: str = "", size: str = ""
) -> dict[int | None, float]:
    """Seed -> value; what the judge says counts before what the evaluation itself says."""
    stages = (s for s in stages_of(study, name) if (s.branch, s.size) == (branch, size))
    found: dict[int | None, float] = {}
    for stage in sorted(stages, key=lambda stage: stage.base.startswith("judge_")):
        if (value := stage.metrics.get(metric)) is not None:
            found[stage.seed] = value
    return found


def controlled_of(study: Study, policy: str, stage: Stage) -> float | None:
    """The length-controlled win rate of the policy that a stage evaluated, at its seed."""
    for row in study.measurements or ():
        place = (branch_of(study, row.figure), size_of(study, row))
        if row.quantity == f"{CONTROLLED}[{policy}]" and place == (stage.branch, stage.size):
            values = dict(zip(row.seeds, row.per_seed, strict=False))
            seed = row.seeds[0] if stage.seed is None and row.seeds else stage.seed
            return None if seed is None else values.get(seed)
    return None


def gap_level(study: Study, name: str, figure: str, metric: str, arms: tuple[str, str]) -> Level:
    """`metric` of the first arm less that of the second, seed by seed, with its t interval."""
    branch = branch_of(study, figure)
    first, second = (per_seed(study, metric, arm, branch) for arm in arms)
    values = tuple(value - second[seed] for seed, value in first.items() if seed in second)
    return with_interval(name, values)


def with_interval(name: str, values: tuple[float, ...]) -> Level:
    """A level with the 95% t interval over its seeds; no values make a level without a mean."""
    if len(values) < 2:
        return Level(name, values)
    mean = mean_of(np.asarray(values))
    return Level(name, values, mean.low, mean.high, f"95% t interval over {mean.n} seeds")


def around_seeds(levels: Iterable[Level]) -> tuple[float, float]:
    """Limits of an axis around every seed's value; an interval over few seeds may leave them."""
    values = [value for level in levels for value in level.per_seed]
    pad = 0.15 * (max(values) - min(values)) or 0.05
    return min(values) - pad, max(values) + pad


def _mean(values: Mapping[int | None, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


BRANCH_WORDS = {
    "two_word": "two words",
    "ranked": "ranked by ROUGE-L",
    "narrow": "SFT samples",
    "few_prompts": "few prompts",
}


def where_words(stage: Stage) -> str:
    """Branch of data and model size of a stage; "" for the main ones."""
    branch = BRANCH_WORDS.get(stage.branch, stage.branch)
    return ", ".join(part for part in (branch, stage.size) if part)


def stage_words(stage: Stage) -> str:
    """'DPO (SFT samples, 2.8b)'."""
    where = where_words(stage)
    return label(stage.base) + (f" ({where})" if where else "")


# --- stages ---------------------------------------------------------------------------------------


def stages_of(study: Study, name: str) -> tuple[Stage, ...]:
    """The stages of one method on all branches: training, evaluation and verdicts on it."""
    return tuple(s for s in study.stages if s.base in (name, f"eval_{name}", f"judge_{name}"))


def evaluation_stages(study: Study, policy: str) -> tuple[Stage, ...]:
    """The stages whose samples are a policy's answers at evaluation, in the order of study.json.

    The samples that online pairs are made of belong to other stages ('online_pairs_dpo').
    """
    return tuple(s for s in stages_of(study, policy) if (s.folder / "samples.parquet").exists())


def score_name(study: Study, figure: str = "fig3") -> str:
    """What the policies are judged by: the win rate, or ROUGE-L where no win rate was measured.

    Fig. 6 is about ROUGE-L itself.
    """
    branch = branch_of(study, figure)
    stages = [s for name in ARMS[figure] for s in stages_of(study, name) if s.branch == branch]
    order = SCORES[::-1] if figure == "fig6" else SCORES
    found = [name for name in order if any(s.metrics.get(name) is not None for s in stages)]
    return found[0] if found else order[0]
