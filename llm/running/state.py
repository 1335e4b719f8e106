"""Where every stage of a study folder stands: read from its files, nothing is run or imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm.errors import InputError
from llm.protocol.stage import Stage
from llm.pulse import read_pulse
from llm.records import (
    ERROR,
    GRAPH,
    IDENTITY,
    RECORD,
    Store,
    is_record,
    read_json,
    read_object,
    write_json,
)
from llm.running.execute import Plan

Word = Literal["done", "running", "failed", "died", "waiting"]


@dataclass(frozen=True)
class StageState:
    """One stage. seconds: its wall time if done; progress: 0 to 1 if it runs.

    failed: reason says why. died: its process is gone, a new run goes on where it was. waiting:
    waits_for says on which stages.
    """

    id: str
    state: Word
    directory: str
    seconds: float | None = None
    progress: float | None = None
    reason: str | None = None
    waits_for: tuple[str, ...] = ()


def save_graph(plan: Plan) -> None:
    """Write down what was asked for, beside what earlier runs in this folder asked for."""
    path = plan.root / GRAPH
    stages: dict[str, Any] = read_object(path) if path.exists() else {}
    for stage in plan.stages:
        inputs = [stage_id for _, stage_id in stage.inputs]
        stages[stage.id] = {"directory": plan.keys[stage.id].directory, "inputs": inputs}
    write_json(path, stages)


def states(root: Path) -> list[StageState]:
    """Every stage that was asked for, in the order of the graph. Raises InputError."""
    if not (root / IDENTITY).is_file():
        raise InputError(f"{root}: holds no study (no {IDENTITY})")
    graph = read_object(root / GRAPH) if (root / GRAPH).exists() else {}
    done = {
        stage_id
        for stage_id, entry in graph.items()
        if is_record(root / "stages" / entry["directory"] / RECORD)
    }
    return [
        _state(root, stage_id, entry["directory"], [i for i in entry["inputs"] if i not in done])
        for stage_id, entry in graph.items()
    ]


def _state(root: Path, stage_id: str, directory: str, missing: Sequence[str]) -> StageState:
    finished = root / "stages" / directory
    if is_record(finished / RECORD):
        seconds = read_json(finished / RECORD)["wall_seconds"]
        return StageState(stage_id, "done", directory, seconds=seconds)
    partial = finished.with_name(f".{directory}.partial")
    pulse = read_pulse(partial)
    if pulse is not None and pulse.alive:
        return StageState(stage_id, "running", directory, progress=round(pulse.progress, 4))
    if (partial / ERROR).is_file():
        lines = (partial / ERROR).read_text(encoding="utf-8", errors="replace").strip()
        reason = next(reversed(lines.splitlines()), "no reason was written")
        return StageState(stage_id, "failed", directory, reason=reason)
    if partial.exists() or finished.exists():
        return StageState(stage_id, "died", directory)
    return StageState(stage_id, "waiting", directory, waits_for=tuple(missing))


def word(plan: Plan, stage: Stage) -> str:
    """The state of a stage that is planned, in words: for the table of a plan."""
    directory = Store(plan.root).path(plan.keys[stage.id]).name
    found = _state(plan.root, stage.id, directory, ())
    return found.state + (f": {found.reason}" if found.reason else "")
