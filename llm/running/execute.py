"""Runs one stage, wherever it is asked to: in this process, in a worker, in a task of a cluster."""

from __future__ import annotations

import gc
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.errors import InputError
from llm.protocol.stage import TRAINING, Stage
from llm.pulse import beating
from llm.records import ERROR, RECORD, SCHEMA, StageKey, Store, is_record, versions
from llm.runtime import Runtime

SAMPLING = ("made_pairs", "online_pairs", "eval_policy", "pool")


@dataclass(frozen=True)
class Plan:
    """A graph, its addresses, and what the data stage reads."""

    root: Path
    stages: Sequence[Stage]
    keys: dict[str, StageKey]
    sources: Mapping[str, str]  # branch -> what its data stage reads
    tokenizer: str | None
    runtime: Runtime = field(default_factory=Runtime)

    def todo(self) -> list[Stage]:
        """The stages that are not done."""
        store = Store(self.root)
        return [stage for stage in self.stages if not store.done(self.keys[stage.id])]


def gpus_of(stage: Stage, runtime: Runtime) -> int:
    """How many GPUs a stage takes where there are any.

    Training: runtime.gpus. Sampling by vLLM: its tensor times data parallelism. Asking a judge:
    none, or the tensor parallelism of a judge that is served here.
    """
    judge = 0 if served_judge(stage) is None else runtime.tensor_parallel
    if stage.kind == "data":
        return 0
    if stage.kind == "verdicts" or stage.settings.get("how") == "two_word":
        return judge
    if stage.kind in TRAINING:
        return runtime.gpus
    if stage.kind in SAMPLING and stage.settings["sampling"]["sampler"] == "vllm":
        return max(judge, runtime.tensor_parallel * runtime.data_parallel)
    return max(judge, 1)


def served_judge(stage: Stage) -> Path | None:
    """The folder of the judge that a stage starts a server for; None: it asks an endpoint."""
    from llm.judge.serve import folder_of

    return folder_of((stage.settings.get("judge") or {}).get("model") or "")


def run_stage(
    plan: Plan, stage: Stage, report: Callable[[float], None] = lambda fraction: None
) -> str | None:
    """`execute`, with what went wrong as one line (the traceback goes to error.txt), or None."""
    try:
        execute(plan, stage, report)
    except Exception as error:
        note_failure(plan, stage, traceback.format_exc())
        first = next(iter(str(error).splitlines()), "")
        return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
    return None


def note_failure(plan: Plan, stage: Stage, text: str) -> None:
    """Leave the reason in the unfinished folder; where the disk is full, only the caller has it."""
    with suppress(OSError):
        folder = Store(plan.root).partial(plan.keys[stage.id])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(text, encoding="utf-8")


def execute(plan: Plan, stage: Stage, report: Callable[[float], None]) -> None:
    """Run one stage and write its record; raises what the stage raises."""
    store, key = Store(plan.root), plan.keys[stage.id]
    if store.adopt(key):  # killed after its record was written, before it was moved into place
        return
    folder = store.partial(key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    with beating(folder) as beat:

        def both(fraction: float) -> None:
            beat(fraction)
            report(fraction)

        record = _compute(plan, stage, folder, both)
    store.finish(key, record)


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started, perhaps on several nodes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def execute_together(plan: Plan, stage: Stage) -> None:
    """This process's part of a stage that all of torchrun's processes train; the first one writes.

    Raises InputError where an input is not finished, and what the stage raises.
    """
    store, key = Store(plan.root), plan.keys[stage.id]
    folder = store.partial(key)
    missing = [i for _, i in stage.inputs if not store.done(plan.keys[i])]
    if missing:
        raise InputError(
            f"under torchrun {stage.id} alone is trained, and {', '.join(missing)} must be done: "
            "run `python -m llm train` for them first"
        )
    main = os.environ.get("RANK", "0") == "0"
    if store.done(key) or (not main and is_record(folder / RECORD)) or (main and store.adopt(key)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not main:
        _compute(plan, stage, folder, lambda fraction: None)
        return
    (folder / ERROR).unlink(missing_ok=True)
    with beating(folder) as report:
        record = _compute(plan, stage, folder, report)
    store.finish(key, record)


def _compute(
    plan: Plan, stage: Stage, folder: Path, report: Callable[[float], None]
) -> dict[str, Any]:
    """Everything but the last step: the stage's files stand in `folder`, this is its record."""
    import torch
    import transformers

    from llm.models.build import device
    from llm.running import launch
    from llm.stages.work import Work

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if device() == "cpu":
        torch.set_num_threads(1)
    store = Store(plan.root)
    inputs = {role: store.path(plan.keys[stage_id]) for role, stage_id in stage.inputs}
    source = plan.sources.get(stage.branch, plan.sources[""])
    work = Work(stage, inputs, folder, source, plan.tokenizer, plan.runtime, report)
    start = time.perf_counter()
    torch.manual_seed(0)
    try:
        result = launch.run_stage(work)
    finally:
        _free()
    return {
        "schema": SCHEMA,
        "stage": stage.label,
        "name": stage.name,
        "branch": stage.branch,
        "size": stage.size,
        "seed": stage.seed,
        "hash": plan.keys[stage.id].hash,
        "config": dict(stage.settings),
        "inputs": {stage_id: plan.keys[stage_id].hash for _, stage_id in stage.inputs},
        "versions": versions(),
        "device": torch.cuda.get_device_name() if device() == "cuda" else "cpu",
        "metrics": dict(result.metrics),
        "history": result.history,
        "wall_seconds": round(time.perf_counter() - start, 3),
        "weights_sha256": result.weights_sha256,
    }


def _free() -> None:
    """Give a GPU's memory back: the next stage there may be vLLM's process."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def discard(plan: Plan, stage: Stage) -> None:
    """Remove what an unfinished stage left behind."""
    shutil.rmtree(Store(plan.root).partial(plan.keys[stage.id]), ignore_errors=True)
