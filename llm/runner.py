"""Runs a stage graph: finished stages are skipped, independent ones run side by side.

Every stage computes on one CPU thread (or the GPU), so numbers do not depend on how many run at
once. Workers end when their parent does. A failed stage stops what depends on it and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
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

from llm.graph import Stage
from llm.records import ERROR, SCHEMA, StageKey, Store, versions
from llm.runtime import Runtime

POLL = 0.2  # seconds between looks at the workers' reports
_reports: Any = None  # in a worker: the queue to the parent


@dataclass(frozen=True)
class Plan:
    """A graph, its addresses, and what the data stage reads."""

    root: Path
    stages: Sequence[Stage]
    keys: dict[str, StageKey]
    sources: Mapping[str, str]  # branch -> what its data stage reads
    tokenizer: str | None
    runtime: Runtime = field(default_factory=Runtime)


def run(plan: Plan, *, jobs: int, quiet: bool = False) -> dict[str, str]:
    """Run what is not done yet; returns {stage id: first line of its error} of failed stages."""
    store = Store(plan.root)
    todo = [stage for stage in plan.stages if not store.done(plan.keys[stage.id])]
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
        total = sum(stage.cost for stage in plan.stages)
        done = total - sum(stage.cost for stage in todo)
        task = progress.add_task("starting", total=total)
        progress.update(task, completed=done)
        board = _Board(plan, progress, task, done)
        if jobs == 1:
            return _in_process(plan, todo, board)
        return _in_workers(plan, todo, board, jobs)


class _Board:
    """The progress bar's state: which stages run, how far each one is."""

    def __init__(self, plan: Plan, progress: Progress, task: Any, done: float) -> None:
        self.cost = {stage.id: stage.cost for stage in plan.stages}
        self.progress, self.task, self.done = progress, task, done
        self.running: dict[str, float] = {}

    def start(self, stage_id: str) -> None:
        self.report(stage_id, 0.0)

    def report(self, stage_id: str, fraction: float) -> None:
        self.running[stage_id] = fraction
        self._draw()

    def end(self, stage_id: str) -> None:
        self.running.pop(stage_id, None)
        self.done += self.cost[stage_id]
        self._draw()

    def _draw(self) -> None:
        part = sum(self.cost[name] * fraction for name, fraction in self.running.items())
        names = escape(", ".join(self.running)) or "waiting"
        self.progress.update(self.task, completed=self.done + part, description=names)


def _in_process(plan: Plan, todo: Sequence[Stage], board: _Board) -> dict[str, str]:
    failed: dict[str, str] = {}
    for stage in todo:
        if _blocked(stage, failed):
            failed[stage.id] = "an input failed"
            continue
        board.start(stage.id)
        error = run_stage(plan, stage, lambda f, name=stage.id: board.report(name, f))
        if error:
            failed[stage.id] = error
        board.end(stage.id)
    return failed


def _in_workers(plan: Plan, todo: Sequence[Stage], board: _Board, jobs: int) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    waiting, failed = _most_urgent_first(todo), dict[str, str]()
    running: dict[Future[str | None], Stage] = {}
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(queue, os.getpid())
    )
    with pool:
        while waiting or running:
            unfinished = {s.id for s in waiting} | {s.id for s in running.values()}
            for stage in list(waiting):
                if _blocked(stage, failed):
                    failed[stage.id] = "an input failed"
                    waiting.remove(stage)
                elif len(running) < jobs and not _inputs(stage) & unfinished:
                    running[pool.submit(_work, plan, stage)] = stage
                    waiting.remove(stage)
                    board.start(stage.id)
            finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            _drain(queue, board)
            for future in finished:
                stage = running.pop(future)
                try:
                    error = future.result()
                except BrokenProcessPool:
                    lost = [stage, *running.values(), *waiting]
                    return failed | {s.id: "a worker died: out of memory?" for s in lost}
                if error:
                    failed[stage.id] = error
                board.end(stage.id)
    return failed


def _most_urgent_first(stages: Sequence[Stage]) -> list[Stage]:
    """By the cost of the longest chain that begins with a stage: no core idles at the end."""
    chain: dict[str, float] = {}
    for stage in reversed(stages):  # what rests on a stage comes after it
        after = (chain[other.id] for other in stages if stage.id in _inputs(other))
        chain[stage.id] = stage.cost + max(after, default=0.0)
    return sorted(stages, key=lambda stage: -chain[stage.id])


def _inputs(stage: Stage) -> set[str]:
    return {stage_id for _, stage_id in stage.inputs}


def _blocked(stage: Stage, failed: dict[str, str]) -> bool:
    return bool(_inputs(stage) & set(failed))


def _drain(queue: Any, board: _Board) -> None:
    while not queue.empty():
        stage_id, fraction = queue.get()
        if stage_id in board.running:
            board.report(stage_id, fraction)


def _start_worker(queue: Any, parent: int) -> None:
    """One thread a stage; end with the parent, however it ends."""
    global _reports
    _reports = queue
    queue.cancel_join_thread()  # a report that nobody reads must not keep a worker alive
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def _work(plan: Plan, stage: Stage) -> str | None:
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > POLL:
            last = time.monotonic()
            _reports.put((stage.id, fraction))

    return run_stage(plan, stage, report)


def run_stage(plan: Plan, stage: Stage, report: Callable[[float], None]) -> str | None:
    """`execute`, with what went wrong as one line (the traceback goes to error.txt), or None."""
    try:
        execute(plan, stage, report)
    except Exception as error:
        (Store(plan.root).partial(plan.keys[stage.id]) / ERROR).write_text(traceback.format_exc())
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def execute(plan: Plan, stage: Stage, report: Callable[[float], None]) -> None:
    """Run one stage and write its record; raises what the stage raises."""
    import torch
    import transformers

    from llm.stages import KINDS, device
    from llm.work import Work

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if device() == "cpu":
        torch.set_num_threads(1)
    store = Store(plan.root)
    key = plan.keys[stage.id]
    folder = store.partial(key)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {role: store.path(plan.keys[stage_id]) for role, stage_id in stage.inputs}
    source = plan.sources.get(stage.branch, plan.sources[""])
    work = Work(stage, inputs, folder, source, plan.tokenizer, plan.runtime, report)
    start = time.perf_counter()
    torch.manual_seed(0)
    result = KINDS[stage.kind](work)
    (folder / ERROR).unlink(missing_ok=True)
    store.finish(
        key,
        {
            "schema": SCHEMA,
            "stage": stage.label,
            "name": stage.name,
            "branch": stage.branch,
            "size": stage.size,
            "seed": stage.seed,
            "hash": key.hash,
            "config": dict(stage.settings),
            "inputs": {stage_id: plan.keys[stage_id].hash for _, stage_id in stage.inputs},
            "versions": versions(),
            "device": _device_name(device()),
            "metrics": dict(result.metrics),
            "history": result.history,
            "wall_seconds": round(time.perf_counter() - start, 3),
            "weights_sha256": result.weights_sha256,
        },
    )


def _device_name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else "cpu"


def discard(plan: Plan, stage: Stage) -> None:
    """Remove what an unfinished stage left behind."""
    shutil.rmtree(Store(plan.root).partial(plan.keys[stage.id]), ignore_errors=True)
