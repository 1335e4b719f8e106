"""What every figure's twin gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from theory.predictions import Relation
from theory.tasks import Task
from theory.toy import Report, ToyConfig

WIN_UNIT = "win-rate points (0-1)"
LOSS_UNIT = "nats per pair"
ACCURACY_UNIT = "accuracy (0-1)"
ROUGE_UNIT = "ROUGE-L F1 (0-1)"

Reproduced = Literal["yes", "no", "undecided"]


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of a figure: the claim about it and what every replicate gives."""

    name: str  # "win_rate[online_dpo_sft] - win_rate[dpo]"
    values: np.ndarray  # (R,), in `unit`
    unit: str
    means: Mapping[str, float]  # of what it is made of, for the note
    relation: Relation = "greater"
    margin: float | None = None  # for "equal", fixed before any run

    @property
    def value(self) -> float:
        """Mean over replicates."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean over replicates."""
        return float(np.std(self.values, ddof=1) / np.sqrt(len(self.values)))

    @property
    def reproduced(self) -> Reproduced:
        """Whether the claim holds in the twin, by two standard errors either way."""
        value, slack = self.value, 2.0 * self.error
        if self.relation == "equal":
            margin = self.margin or 0.0
            inside, outside = margin - abs(value), abs(value) - margin
        else:
            inside = value if self.relation == "greater" else -value
            outside = -inside
        if inside > 0 and inside >= slack:
            return "yes"
        return "no" if outside > 0 and outside >= slack else "undecided"


@dataclass(frozen=True, eq=False)
class Twin:
    """One figure's runs."""

    quantities: tuple[Quantity, ...]
    family: str
    assumptions: tuple[str, ...]


Simulate = Callable[[Task, ToyConfig, Report], Any]
Read = Callable[[Task, ToyConfig, Any], Twin]


@dataclass(frozen=True)
class Figure:
    """One figure of the paper: its claim, its twin, and other settings.

    Assumptions, or the words of a setting, say what was chosen after a first look at results.
    """

    name: str  # "fig4"
    claim: str
    simulate: Simulate  # runs every replicate; figures with one function share one run
    read: Read
    others: Mapping[str, Simulate] = field(default_factory=dict)
    """In words -> another regime, run where the claim is not reproduced."""
    controls: Mapping[str, Simulate] = field(default_factory=dict)
    """In words -> runs that say what the verdict rests on; always run."""


def other_config(simulate: Simulate, **changes: object) -> Simulate:
    """The same runs with some settings changed."""

    def changed(task: Task, config: ToyConfig, report: Report) -> Any:
        return simulate(task, replace(config, **changes), report)  # pyright: ignore

    return changed


def more_pairs(simulate: Simulate, factor: int) -> Simulate:
    """The same runs with `factor` times as many preference pairs."""

    def changed(task: Task, config: ToyConfig, report: Report) -> Any:
        return simulate(task, replace(config, n_pairs=factor * config.n_pairs), report)

    return changed


def difference(
    measure: str,
    values: Mapping[str, np.ndarray],
    first: str,
    second: str,
    unit: str,
    *,
    beside: tuple[str, ...] = (),
    **kind: object,
) -> Quantity:
    """`measure[first] - measure[second]`, with the claim in `kind` (default: greater than 0).

    beside: others whose means the note gives too.
    """
    return Quantity(
        f"{measure}[{first}] - {measure}[{second}]",
        values[first] - values[second],
        unit,
        {name: float(np.mean(values[name])) for name in (first, second, *beside)},
        **kind,  # pyright: ignore[reportArgumentType]
    )
