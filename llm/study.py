"""A study: from a request to records, measurements and verdicts in one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm import tables
from llm.compare import check_predictions, compare
from llm.config import FIGURES, JudgeConfig, ModelConfig, StudyConfig, check_figures
from llm.data.source import fingerprint, kind_of_source, load_tokenizer
from llm.data.task_file import read_task
from llm.errors import InputError
from llm.graph import Stage, ancestors, build, keys
from llm.presets import preset
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
from llm.runtime import Runtime
from theory.predictions import Verdict

SHIPPED = Path(__file__).parent / "data" / "shipped"
SPLIT_SEED = 0


TASK_BRANCHES = {"two_word": "short_task.json", "ranked": "rouge_task.json"}


@dataclass(frozen=True)
class Request:
    """What a user asks for on the command line."""

    out: Path
    figures: tuple[str, ...] = ()
    preset: str = "tiny"
    seeds: int = 2
    data: str | None = None
    short_task: str | None = None  # Fig. 5, where the data are a task
    rouge_task: str | None = None  # Fig. 6, where the data are a task
    tokenizer: str | None = None
    model: str | None = None
    judge: str | None = None  # model of an endpoint, or "none"; None: the preset's
    predictions: Path | None = None
    jobs: int | None = None
    only: str | None = None  # one stage and what it rests on ("dpo[0]")
    runtime: Runtime = field(default_factory=Runtime)


def sources_of(request: Request) -> dict[str, str]:
    """{branch: source}: the data asked for, or the tasks that ship with the package."""
    main = request.data or str(SHIPPED / "task.json")
    sources = {"": main}
    if kind_of_source(main) != "task":
        return {**sources, "two_word": main}
    sources["few_prompts"] = main
    given = {"two_word": request.short_task, "ranked": request.rouge_task}
    for branch, name in TASK_BRANCHES.items():
        shipped = str(SHIPPED / name) if request.data is None else None
        source = given[branch] or shipped
        if source is not None:
            sources[branch] = source
    return sources


def configure(request: Request) -> StudyConfig:
    """The preset for this kind of data, with the user's model and judge. Raises InputError."""
    sources = sources_of(request)
    kind = "task" if kind_of_source(sources[""]) == "task" else "text"
    config = preset(request.preset, kind)
    if request.model is not None:
        folder = Path(request.model)
        sha256 = digest([file_digest(f) for f in model_files(folder)]) if folder.is_dir() else None
        model = replace(config.models[config.main], pretrained=request.model, sha256=sha256)
        sft = replace(config.sft, fixed_rate=None)
        config = replace(config, models={config.main: model}, sft=sft)
    if request.judge is not None:
        model = None if request.judge == "none" else request.judge
        config = replace(config, judge=replace(config.judge, model=model))
    if kind == "text":
        return config
    horizons = {name: read_task(Path(source)).horizon for name, source in sources.items()}
    limits = {
        name: replace(config.limits(name), max_completion_tokens=horizon + 1)
        for name, horizon in horizons.items()
    }
    branches = {name: limit for name, limit in limits.items() if name}
    return replace(config, data=limits[""], branches=branches, judge=JudgeConfig())


def lacking(figure: str, config: StudyConfig, sources: Mapping[str, str]) -> str | None:
    """What a figure needs and this study has not, in words; None if it can be run."""
    if figure == "fig4" and len(config.models) < 2:
        return "fig4 crosses model sizes and needs two at least: --preset tiny, small or paper"
    branch = config.branch_of(figure)
    if config.kind == "task" and branch in TASK_BRANCHES and branch not in sources:
        return f"{figure} needs a task of its own: --{TASK_BRANCHES[branch][:-5].replace('_', '-')}"
    if config.kind == "text" and figure in ("fig5", "fig8") and config.judge.model is None:
        return f"{figure} needs a judge on text: --judge MODEL"
    return None


def figures_of(request: Request, config: StudyConfig) -> tuple[str, ...]:
    """The figures asked for, or all that this study can run. Raises InputError."""
    sources = sources_of(request)
    asked = check_figures(request.figures)
    for figure in asked:
        reason = lacking(figure, config, sources)
        if reason is not None:
            raise InputError(reason)
    return asked or tuple(f for f in FIGURES if lacking(f, config, sources) is None)


def model_files(folder: Path) -> list[Path]:
    """What decides a local model: its weights and configuration."""
    return [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("config.json"))]


def prepare(request: Request) -> tuple[Plan, dict[str, Any], StudyConfig]:
    """Check what can be checked without work; the plan, the study's identity, its settings."""
    check_figures(request.figures)
    if request.seeds < 1:
        raise InputError(f"--seeds {request.seeds}: must be at least 1")
    if request.jobs is not None and request.jobs < 1:
        raise InputError(f"--jobs {request.jobs}: must be at least 1")
    config = configure(request)
    figures = figures_of(request, config)
    sources = sources_of(request)
    data = {branch: _identity(source, request) for branch, source in sources.items()}
    predictions = predictions_of(request)
    if predictions is not None:
        check_predictions(predictions, task_sha256=data[""]["task_sha256"])
    stages = build(figures, range(request.seeds), config, data)
    if request.only is not None:
        stages = ancestors(request.only, stages)
    identity = {"preset": request.preset, "config": config.to_json(), "data": data[""]}
    identity["branches"] = {branch: found for branch, found in data.items() if branch}
    check_folder(request.out, identity)
    for model in config.models.values():
        if model.pretrained is not None:
            from llm.models import pretrained_shape

            pretrained_shape(model)
    plan = Plan(
        request.out, stages, keys(stages), sources, request.tokenizer, runtime=request.runtime
    )
    return plan, identity, config


def _identity(source: str, request: Request) -> dict[str, Any]:
    """What identifies one branch's data: it decides the content of its data stage."""
    kind = kind_of_source(source)
    return {
        "kind": kind,
        "sha256": fingerprint(source),
        "task_sha256": file_digest(Path(source)) if kind == "task" else None,
        "tokenizer": _tokenizer_identity(request, kind),
        "split_seed": SPLIT_SEED,
    }


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
        return _run(plan, identity, config, request, quiet)


def _leave(root: Path, existed: bool) -> None:
    """Take back what this call put into a folder, so that a corrected one may use it."""
    shutil.rmtree(root / "stages", ignore_errors=True)
    for name in (IDENTITY, LOCK):
        (root / name).unlink(missing_ok=True)
    if not existed:
        root.rmdir()


def _run(
    plan: Plan, identity: Mapping[str, Any], config: StudyConfig, request: Request, quiet: bool
) -> int:
    failed = run(plan, jobs=request.jobs or _default_jobs(), quiet=quiet)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if request.only is not None:
        return 1 if failed else 0
    _write_study(plan, identity, request, config)
    verdicts = compare(request.out, predictions_of(request))
    if not quiet:
        print_verdicts(verdicts)
    return 1 if failed else 0


def _default_jobs() -> int:
    """One stage a core on a CPU, one stage at a time on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)


def _data_stages(plan: Plan) -> list[Stage]:
    return [stage for stage in plan.stages if stage.kind == "data"]


def _make_data(plan: Plan) -> None:
    """The data stages, in this process: bad data is one clear error."""
    for stage in _data_stages(plan):
        if Store(plan.root).done(plan.keys[stage.id]):
            continue
        try:
            execute(plan, stage, lambda fraction: None)
        except InputError:
            discard(plan, stage)
            raise


def _check_model(plan: Plan, config: StudyConfig) -> None:
    """The longest prompt and completion must fit each model's positions, the ids its vocabulary."""
    for stage in _data_stages(plan):
        folder = Store(plan.root).path(plan.keys[stage.id])
        longest = _longest(folder, config.limits(stage.branch).max_completion_tokens)
        words = read_json(folder / "vocabulary.json")["size"]
        for model in config.models.values():
            _check_fits(model, longest, words)


def _longest(folder: Path, generated: int) -> int:
    """The longest prompt and completion of a data stage, in tokens."""
    longest = 0
    for part in ("sft", "pairs", "validation_pairs", "test"):
        for example in tables.read_examples(folder / f"{part}.parquet"):
            room = max(generated, *map(len, example.completion_ids))
            longest = max(longest, len(example.prompt_ids) + room)
    return longest


def _check_fits(model: ModelConfig, longest: int, words: int) -> None:
    positions: int | None = model.max_positions
    if model.pretrained is not None:
        from llm.models import pretrained_shape

        shape = pretrained_shape(model)
        positions = getattr(shape, "max_position_embeddings", None)
        if words > shape.vocab_size:
            raise InputError(f"the tokenizer has {words} entries, the model {shape.vocab_size}")
    if positions is not None and longest > positions:
        raise InputError(f"prompt and completion take {longest} tokens, the model has {positions}")


def _write_study(
    plan: Plan, identity: Mapping[str, Any], request: Request, config: StudyConfig
) -> None:
    """study.json and data_card.json: what was asked, where each stage stands."""
    store = Store(plan.root)
    done = {s.id: plan.keys[s.id] for s in plan.stages if store.done(plan.keys[s.id])}
    card = read_json(store.path(plan.keys["data"]) / "data_card.json")
    write_json(plan.root / "data_card.json", card)
    records = {name: store.record(key) for name, key in done.items()}
    study = {
        "schema": 1,
        "figures": list(figures_of(request, config)),
        "preset": request.preset,
        "rung": "full" if identity["config"]["judges_text"] else "tiny",
        "config": identity["config"],
        "data": {**identity["data"], "path": Path(plan.sources[""]).name},
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
    models = identity["config"]["models"]
    start = next(iter(models.values()))["pretrained"]
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
