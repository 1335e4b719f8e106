"""The measured level of each policy or reward model, seed by seed, out of a study's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper_figures.records import Stage, Study


@dataclass(frozen=True)
class Level:
    """One method's metric: a value for each seed, and an interval where one was recorded."""

    name: str
    per_seed: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    interval: str | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.per_seed) / len(self.per_seed)


def levels(study: Study, metric: str, names: Sequence[str]) -> tuple[Level, ...]:
    """`metric` of every name that has it: from measurements.json, else from the stage records."""
    found = (_measured(study, metric, name) or _recorded(study, metric, name) for name in names)
    return tuple(level for level in found if level is not None)


def _measured(study: Study, metric: str, name: str) -> Level | None:
    for row in study.measurements or ():
        if row.quantity == f"{metric}[{name}]" and row.per_seed:
            return Level(name, row.per_seed, row.low, row.high, row.interval)
    return None


def _recorded(study: Study, metric: str, name: str) -> Level | None:
    stages = [stage for stage in stages_of(study, name) if stage.metrics.get(metric) is not None]
    values = tuple(value for stage in stages if (value := stage.metrics[metric]) is not None)
    return Level(name, values) if values else None


def stages_of(study: Study, name: str) -> tuple[Stage, ...]:
    """The stages that belong to one method: its training and its evaluation ('eval_dpo')."""
    return tuple(s for s in study.stages if s.stage in (name, f"eval_{name}"))


METHODS = (
    "sft",
    "dpo",
    "dpo_2x",
    "online_dpo_sft",
    "online_dpo_dpo",
    "global_rm",
    "local_rm",
    "dpo_rm",
)
POLICIES = METHODS[:5]
REWARD_MODELS = METHODS[5:]
SCORES = ("win_rate", "rouge_l")  # in order of preference


def evaluation_stages(study: Study, policy: str) -> tuple[Stage, ...]:
    """The stages whose samples are a policy's answers at evaluation, in the order of study.json.

    The samples that online pairs are made of belong to other stages ('online_pairs_dpo').
    """
    return tuple(s for s in stages_of(study, policy) if (s.folder / "samples.parquet").exists())


def score_name(study: Study) -> str:
    """What the policies are judged by: the win rate, or ROUGE-L where no win rate was measured."""
    stages = [stage for policy in POLICIES for stage in stages_of(study, policy)]
    found = [name for name in SCORES if any(s.metrics.get(name) is not None for s in stages)]
    return found[0] if found else SCORES[0]
