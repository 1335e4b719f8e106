"""Runs a stage graph: finished stages are skipped, independent ones run side by side.

Every stage computes on one CPU thread (or its GPUs), so numbers do not depend on how many run at
once. A failed stage stops what depends on it and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from llm.protocol.stage import Stage
from llm.pulse import read_pulse
from llm.records import Store
from llm.running.execute import Plan
from llm.running.places import Here, Places, Workers, visible_gpus

BLOCKED = "an input failed"


def run(
    plan: Plan, *, jobs: int | None = None, quiet: bool = False, cluster: str | None = None
) -> dict[str, str]:
    """Run what is not done yet; returns {stage id: first line of its error} of failed stages.

    jobs: stages at a time (one: in this process); default: one a CPU core, or as many as the GPUs
    take. cluster: address of a Ray cluster whose tasks the stages become.
    """
    todo = plan.todo()
    if not todo:
        return {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        board = _Board(plan, progress, todo)
        places = _places(plan, jobs, cluster, board)
        try:
            return _schedule(todo, places, board)
        finally:
            places.close()


def _places(plan: Plan, jobs: int | None, cluster: str | None, board: _Board) -> Places:
    if cluster is not None:
        from llm.running.cluster import Cluster

        return Cluster(plan, cluster, jobs=jobs)
    if jobs == 1:
        return Here(plan, board.report)
    return Workers(plan, jobs=jobs, gpus=visible_gpus())


def _schedule(todo: Sequence[Stage], places: Places, board: _Board) -> dict[str, str]:
    waiting, failed = most_urgent_first(todo), dict[str, str]()
    running: dict[str, Stage] = {}
    while waiting or running:
        unfinished = {stage.id for stage in waiting} | set(running)
        for stage in list(waiting):
            needs = inputs_of(stage)
            if needs & set(failed):
                failed[stage.id] = BLOCKED
                waiting.remove(stage)
            elif not needs & unfinished and places.room(stage):
                waiting.remove(stage)
                running[stage.id] = stage
                board.report(stage.id, 0.0)
                places.start(stage)
        if not running and waiting:
            raise RuntimeError(f"there is nowhere to run {waiting[0].id}")
        board.look()
        for stage, error in places.ended():
            del running[stage.id]
            if error is not None:
                failed[stage.id] = error
            board.end(stage.id)
    return failed


def most_urgent_first(stages: Sequence[Stage]) -> list[Stage]:
    """By the cost of the longest chain that begins with a stage: no core idles at the end."""
    chain: dict[str, float] = {}
    for stage in reversed(stages):  # what rests on a stage comes after it
        after = (chain[other.id] for other in stages if stage.id in inputs_of(other))
        chain[stage.id] = stage.cost + max(after, default=0.0)
    return sorted(stages, key=lambda stage: -chain[stage.id])


def inputs_of(stage: Stage) -> set[str]:
    """The stages that a stage rests on."""
    return {stage_id for _, stage_id in stage.inputs}


class _Board:
    """The progress bar: which stages run, and how far each one is by its own pulse."""

    def __init__(self, plan: Plan, progress: Progress, todo: Sequence[Stage]) -> None:
        self.plan, self.progress = plan, progress
        self.cost: Mapping[str, float] = {stage.id: stage.cost for stage in plan.stages}
        total = sum(self.cost.values())
        self.done = total - sum(stage.cost for stage in todo)
        self.task: Any = progress.add_task("starting", total=total, completed=int(self.done))
        self.running: dict[str, float] = {}

    def report(self, stage_id: str, fraction: float) -> None:
        self.running[stage_id] = fraction
        self._draw()

    def look(self) -> None:
        """Read the pulses of stages that run in other processes."""
        store = Store(self.plan.root)
        for stage_id in self.running:
            pulse = read_pulse(store.partial(self.plan.keys[stage_id]))
            if pulse is not None:
                self.running[stage_id] = pulse.progress
        self._draw()

    def end(self, stage_id: str) -> None:
        self.running.pop(stage_id, None)
        self.done += self.cost[stage_id]
        self._draw()

    def _draw(self) -> None:
        part = sum(self.cost[name] * fraction for name, fraction in self.running.items())
        names = escape(", ".join(self.running)) or "waiting"
        self.progress.update(self.task, completed=self.done + part, description=names)
