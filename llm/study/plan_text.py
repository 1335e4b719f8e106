"""Plans and states as tables: what a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm.running.state import StageState

if TYPE_CHECKING:
    from llm.study.plan import StagePlan, StudyPlan


def print_plan(plan: StudyPlan) -> None:
    """The graph with each stage's cost, the sums, and what they rest on."""
    console = Console()
    console.print(_table(plan))
    for line in _sums(plan):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _sums(plan: StudyPlan) -> Iterator[str]:
    totals, machine = plan.totals, plan.machine
    yield f"to run: {totals.stages} stages"
    yield (
        f"GPU hours: {_number(totals.gpu_hours)} (a GPU of {machine['peak_tflops']:g} TFLOP/s, "
        f"used to {machine['utilisation']:.0%}; {machine['bandwidth']:g} TB/s, used to "
        f"{machine['bandwidth_use']:.0%})"
    )
    yield f"memory: up to {_number(totals.peak_gib)} GiB a GPU"
    yield (
        f"disk: {_number(totals.disk_gib)} GiB kept, and up to {_number(totals.checkpoint_gib)} "
        "GiB of checkpoints for each stage that trains at the time"
    )
    orders = "" if plan.config["judge"]["both_orders"] else ", in one order"
    yield f"judge: {totals.questions:,} questions at most{orders}, {totals.dollars:,.0f} dollars"
    yield from (f"  assumed: {line}" for line in plan.assumptions)
    yield from (f"  unresolved: {name} (only the hub could tell)" for name in plan.unresolved)
    yield from (f"  warning: {line}" for line in plan.warnings)


def _table(plan: StudyPlan) -> Table:
    table = Table(title=f"{len(plan.stages)} stages in {plan.out}")
    for column in ("stage", "state", "inputs", "GPU h", "GiB a GPU", "disk GiB", "questions"):
        table.add_column(
            column, justify="left" if column in ("stage", "state", "inputs") else "right"
        )
    for stage in plan.stages:
        table.add_row(*_row(stage))
    return table


def _row(stage: StagePlan) -> tuple[str, ...]:
    return (
        escape(stage.id),
        escape(stage.state),
        escape(", ".join(stage.inputs.values())),
        _number(stage.gpu_hours),
        _number(stage.peak_gib),
        _number(stage.disk_gib),
        f"{stage.questions:,}" if stage.questions else "",
    )


def judge_words(bill: Mapping[str, float | None]) -> str:
    """What a judge was asked and what it cost, in a line; what is not known is said."""
    asked, reused, invalid = (
        "unknown" if bill[name] is None else f"{bill[name]:,}"
        for name in ("asked", "reused", "invalid")
    )
    dollars = bill["dollars"]
    cost = "dollars unknown" if dollars is None else f"{dollars:,.2f} dollars"
    return f"asked {asked}, reused {reused}, invalid {invalid}, {cost}"


def _number(value: float | None) -> str:
    """Two digits; what is not known is said."""
    if value is None:
        return "not known"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def print_states(root: Path, states: Sequence[StageState]) -> None:
    """One row a stage, and how many stand where."""
    table = Table(title=str(root))
    for column in ("stage", "state", "seconds", ""):
        table.add_column(column)
    for stage in states:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.0f}"
        table.add_row(escape(stage.id), stage.state, seconds, escape(_detail(stage)))
    console = Console()
    console.print(table)
    words = [stage.state for stage in states]
    counted = {word: words.count(word) for word in dict.fromkeys(words)}
    console.print(", ".join(f"{number} {word}" for word, number in counted.items()))


def _detail(stage: StageState) -> str:
    if stage.state == "running":
        return f"{stage.progress or 0.0:.0%}"
    if stage.state == "died":
        return "its process is gone: run the study again, it goes on from here"
    if stage.waits_for:
        return "for " + ", ".join(stage.waits_for)
    return stage.reason or ""
