"""A study: from a request to records, measurements and verdicts in one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm import tables
from llm.compare import check_predictions, compare
from llm.config import StudyConfig, check_figures, preset
from llm.data.source import fingerprint, kind_of_source, load_tokenizer
from llm.data.task_file import read_task
from llm.errors import InputError
from llm.graph import Stage, ancestors, build, keys
from llm.records import (
    IDENTITY,
    LOCK,
    Store,
    check_folder,
    digest,
    file_digest,
    locked,
    read_json,
    unfinished_state,
    write_json,
)
from llm.runner import Plan, discard, execute, run
from theory.predictions import Verdict

SHIPPED = Path(__file__).parent / "data" / "shipped"
SPLIT_SEED = 0


@dataclass(frozen=True)
class Request:
    """What a user asks for on the command line."""

    out: Path
    figures: tuple[str, ...] = ()
    preset: str = "tiny"
    seeds: int = 2
    data: str | None = None
    tokenizer: str | None = None
    model: str | None = None
    predictions: Path | None = None
    jobs: int | None = None
    only: str | None = None  # one stage and what it rests on ("dpo[0]")


def source_of(request: Request) -> str:
    """The data asked for, or the task that ships with the package."""
    return request.data or str(SHIPPED / "task.json")


def configure(request: Request) -> StudyConfig:
    """The preset for this kind of data, with the user's model. Raises InputError."""
    source = source_of(request)
    kind = "task" if kind_of_source(source) == "task" else "text"
    config = preset(request.preset, kind)
    if request.model is not None:
        folder = Path(request.model)
        sha256 = digest([file_digest(f) for f in model_files(folder)]) if folder.is_dir() else None
        model = replace(config.model, pretrained=request.model, sha256=sha256)
        config = replace(config, model=model, sft=replace(config.sft, fixed_rate=None))
    if kind == "task":
        task = read_task(Path(source))
        limits = replace(config.data, max_completion_tokens=task.horizon + 1)
        config = replace(config, data=limits, local_beta=1.0 / task.horizon)
    return config


def model_files(folder: Path) -> list[Path]:
    """What decides a local model: its weights and configuration."""
    return [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("config.json"))]


def prepare(request: Request) -> tuple[Plan, dict[str, Any], StudyConfig]:
    """Check what can be checked without work; the plan, the study's identity, its settings."""
    figures = check_figures(request.figures)
    if request.seeds < 1:
        raise InputError(f"--seeds {request.seeds}: must be at least 1")
    if request.jobs is not None and request.jobs < 1:
        raise InputError(f"--jobs {request.jobs}: must be at least 1")
    config = configure(request)
    source = source_of(request)
    kind = kind_of_source(source)
    data = {
        "kind": kind,
        "sha256": fingerprint(source),
        "task_sha256": file_digest(Path(source)) if kind == "task" else None,
        "tokenizer": _tokenizer_identity(request, kind),
        "split_seed": SPLIT_SEED,
    }
    predictions = predictions_of(request)
    if predictions is not None:
        check_predictions(predictions, task_sha256=data["task_sha256"])
    stages = build(figures, range(request.seeds), config, data)
    if request.only is not None:
        stages = ancestors(request.only, stages)
    identity = {"preset": request.preset, "config": config.to_json(), "data": data}
    check_folder(request.out, identity)
    if config.model.pretrained is not None:
        from llm.models import pretrained_shape

        pretrained_shape(config.model)
    plan = Plan(request.out, stages, keys(stages), source, request.tokenizer)
    return plan, identity, config


def _tokenizer_identity(request: Request, kind: str) -> str | None:
    """What identifies the tokenizer; loads it, so that a wrong one is an early error."""
    if kind == "task":
        if request.tokenizer is not None:
            raise InputError(
                f"--tokenizer {request.tokenizer}: a task brings its own; leave it out"
            )
        return None
    if request.tokenizer is None:
        raise InputError("--data with text needs --tokenizer (tokenizer.json, folder or hub name)")
    loaded = load_tokenizer(request.tokenizer)
    return digest([loaded.backend_tokenizer.to_str(), loaded.eos_token_id, loaded.pad_token_id])


def predictions_of(request: Request) -> Path | None:
    """The predictions to judge by: those named; else the shipped ones for shipped task and text."""
    if request.predictions is not None:
        return request.predictions
    if request.only is not None:
        return None
    if request.data is not None and kind_of_source(request.data) == "task":
        return None
    return SHIPPED / "predictions.json"


def run_study(request: Request, *, quiet: bool = False) -> int:
    """Run or resume a study; 0 if every stage is done, 1 if one failed."""
    plan, identity, config = prepare(request)
    fresh, existed = not (plan.root / IDENTITY).exists(), plan.root.exists()
    write_json(plan.root / IDENTITY, identity)
    with locked(plan.root):
        try:
            _make_data(plan)
            _check_model(plan, config)
        except InputError:
            if fresh:
                _leave(plan.root, existed)
            raise
        return _run(plan, identity, request, quiet)


def _leave(root: Path, existed: bool) -> None:
    """Take back what this call put into a folder, so that a corrected one may use it."""
    shutil.rmtree(root / "stages", ignore_errors=True)
    for name in (IDENTITY, LOCK):
        (root / name).unlink(missing_ok=True)
    if not existed:
        root.rmdir()


def _run(plan: Plan, identity: Mapping[str, Any], request: Request, quiet: bool) -> int:
    failed = run(plan, jobs=request.jobs or _default_jobs(), quiet=quiet)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if request.only is not None:
        return 1 if failed else 0
    _write_study(plan, identity, request)
    verdicts = compare(request.out, predictions_of(request))
    if not quiet:
        print_verdicts(verdicts)
    return 1 if failed else 0


def _default_jobs() -> int:
    """One stage a core on a CPU, one stage at a time on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)


def _make_data(plan: Plan) -> None:
    """The data stage, in this process: bad data is one clear error."""
    stage = plan.stages[0]
    if Store(plan.root).done(plan.keys[stage.id]):
        return
    try:
        execute(plan, stage, lambda fraction: None)
    except InputError:
        discard(plan, stage)
        raise


def _check_model(plan: Plan, config: StudyConfig) -> None:
    """The longest prompt and completion must fit the model's positions, the ids its vocabulary."""
    folder = Store(plan.root).path(plan.keys["data"])
    longest = 0
    for part in ("sft", "pairs", "validation_pairs", "test"):
        for example in tables.read_examples(folder / f"{part}.parquet"):
            room = max(config.data.max_completion_tokens, *map(len, example.completion_ids))
            longest = max(longest, len(example.prompt_ids) + room)
    positions: int | None = config.model.max_positions
    if config.model.pretrained is not None:
        from llm.models import pretrained_shape

        shape = pretrained_shape(config.model)
        positions = getattr(shape, "max_position_embeddings", None)
        words = read_json(folder / "vocabulary.json")["size"]
        if words > shape.vocab_size:
            raise InputError(f"the tokenizer has {words} entries, the model {shape.vocab_size}")
    if positions is not None and longest > positions:
        raise InputError(f"prompt and completion take {longest} tokens, the model has {positions}")


def _write_study(plan: Plan, identity: Mapping[str, Any], request: Request) -> None:
    """study.json and data_card.json: what was asked, where each stage stands."""
    store = Store(plan.root)
    done = {s.id: plan.keys[s.id] for s in plan.stages if store.done(plan.keys[s.id])}
    card = read_json(store.path(plan.keys["data"]) / "data_card.json")
    write_json(plan.root / "data_card.json", card)
    records = {name: store.record(key) for name, key in done.items()}
    study = {
        "schema": 1,
        "figures": list(check_figures(request.figures)),
        "preset": request.preset,
        "rung": "full" if identity["config"]["judges_text"] else "tiny",
        "config": identity["config"],
        "data": {**identity["data"], "path": Path(plan.source).name},
        "seeds": list(range(request.seeds)),
        "stages": {name: f"stages/{key.directory}" for name, key in done.items()},
        "total_seconds": round(sum(r["wall_seconds"] for r in records.values()), 1),
        "too_small": _too_small(identity, records, card),
        "command": shlex.join(["python", "-m", "llm", *sys.argv[1:]]),
    }
    write_json(plan.root / "study.json", study)


def _too_small(
    identity: Mapping[str, Any], records: Mapping[str, Any], card: Mapping[str, Any]
) -> str | None:
    """Why no verdict may stand: a small model's summaries of real text say nothing of the claim."""
    if identity["data"]["kind"] == "task" or identity["config"]["judges_text"]:
        return None
    if "sft" not in records:
        return "no model was trained"
    counts = card["counts"]
    start = identity["config"]["model"]["pretrained"]
    return (
        f"{records['sft']['metrics']['parameters']:,} parameters trained from "
        f"{'scratch' if start is None else start} on "
        f"{counts['sft']:,} posts and {counts['pairs']:,} pairs cannot summarise real text"
    )


# --- what a person sees --------------------------------------------------------------------------


def print_plan(plan: Plan) -> None:
    """The graph as a table: what is done, what would run."""
    store = Store(plan.root)
    table = Table(title=f"{len(plan.stages)} stages in {plan.root}")
    for column in ("stage", "state", "inputs", "directory"):
        table.add_column(column)
    for stage in plan.stages:
        inputs = ", ".join(stage_id for _, stage_id in stage.inputs)
        directory = plan.keys[stage.id].directory
        table.add_row(escape(stage.id), state(store, plan, stage), escape(inputs), directory)
    Console().print(table)


def state(store: Store, plan: Plan, stage: Stage) -> str:
    """done, failed (and why), begun, or waiting."""
    key = plan.keys[stage.id]
    if store.done(key):
        return "done"
    partial = store.partial(key)
    return unfinished_state(partial) if partial.exists() else "waiting"


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Prediction, measurement and verdict, one row a quantity."""
    if not verdicts:
        print("no predictions were given: nothing to hold the measurements against")
        return
    table = Table(title="Verdicts")
    for column in ("figure", "quantity", "predicted", "measured", "verdict"):
        table.add_column(column)
    for verdict in verdicts:
        p, m = verdict.prediction, verdict.measurement
        predicted = "> 0" if p.relation == "greater" else p.relation
        if p.value is not None:
            predicted += f" ({p.value:+.3f} at the {p.rung} rung)"
        measured = "-" if m is None or m.value is None else f"{m.value:+.3f}"
        if m is not None and m.low is not None and m.high is not None:
            measured += f" [{m.low:+.3f}, {m.high:+.3f}]"
        table.add_row(p.figure, escape(p.quantity), predicted, escape(measured), verdict.outcome)
    Console().print(table)
