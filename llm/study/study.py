"""A study: from a request to records, measurements and verdicts in one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.config import StudyConfig, check_figures
from llm.data.source import fingerprint, kind_of_source, load_tokenizer
from llm.errors import InputError
from llm.protocol.graph import ancestors, build, keys
from llm.records import (
    GRAPH,
    IDENTITY,
    LOCK,
    StageKey,
    Store,
    check_folder,
    digest,
    file_digest,
    locked,
    read_json,
    read_object,
    write_json,
)
from llm.results.compare import check_predictions, compare
from llm.results.compare_text import verdict_lines
from llm.running.execute import (
    Plan,
    discard,
    execute,
    execute_together,
    note_failure,
    started_by_torchrun,
)
from llm.running.runner import run
from llm.running.state import save_graph
from llm.study.checks import check_disk, check_models, check_request, check_resources, data_stages
from llm.study.costs import Machine
from llm.study.plan import StudyPlan, bytes_needed, judging, study_plan
from llm.study.plan_text import judge_words
from llm.study.request import (
    SHIPPED,
    Request,
    configure,
    figures_of,
    predictions_of,
    sources_of,
    tokenizer_of,
)

__all__ = ["SHIPPED", "Prepared", "Request", "planned", "prepare", "run_study"]
SPLIT_SEED = 0
STUDY = "study.json"
BILLED = ("asked", "reused", "invalid", "dollars")


@dataclass(frozen=True)
class Prepared:
    """A study that was checked and may start."""

    plan: Plan
    identity: dict[str, Any]
    config: StudyConfig
    figures: tuple[str, ...]  # asked for now, and in this folder before
    seeds: range
    keys: Mapping[str, StageKey]  # of everything that these need
    unresolved: tuple[str, ...] = ()  # what a dry run did not ask the hub for


def prepare(request: Request, *, dry: bool = False) -> Prepared:
    """Check what can be checked without work; the plan, the study's identity, its settings.

    dry: ask nobody and need nothing. What only the hub could tell is left open, and named; the
    stages' addresses are then not those of the study itself. Raises InputError.
    """
    check_request(request)
    check_figures(request.figures)
    config = configure(request, ask_hub=not dry)
    figures = figures_of(request, config)
    sources, tokenizer = sources_of(request), tokenizer_of(request, config)
    unresolved = _unresolved(sources, tokenizer, config) if dry else ()
    data = {b: _identity(source, tokenizer, dry) for b, source in sources.items()}
    predictions = predictions_of(request)
    if predictions is not None:
        check_predictions(predictions, task_sha256=data[""]["task_sha256"])
    stages = build(figures, range(request.seeds), config, data)
    if request.only is not None:
        stages = ancestors(request.only, stages)
    identity = {"preset": request.preset, "config": config.to_json(), "data": data[""]}
    identity["branches"] = {branch: found for branch, found in data.items() if branch}
    if not unresolved:
        check_folder(request.out, identity)
    every, seeds = _asked_before(request.out, figures, request.seeds)
    known = keys(build(every, seeds, config, data))
    plan = Plan(request.out, stages, keys(stages), sources, tokenizer, runtime=request.runtime)
    if not dry:
        check_resources(plan, config, cluster=request.cluster)
        check_disk(plan.root, bytes_needed(plan, config))
    return Prepared(plan, identity, config, every, seeds, known, unresolved)


def _asked_before(
    root: Path, figures: tuple[str, ...], seeds: int
) -> tuple[tuple[str, ...], range]:
    """The figures and seeds asked for, with those that this folder's study holds already."""
    path = root / STUDY
    if not path.is_file():
        return figures, range(seeds)
    before = read_object(path)
    try:
        every = check_figures((*before["figures"], *figures))
        return every, range(max(seeds, *(int(seed) + 1 for seed in before["seeds"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no study of this version: {error!r}") from error


def _unresolved(
    sources: Mapping[str, str], tokenizer: str | None, config: StudyConfig
) -> tuple[str, ...]:
    """What only the hub knows: names whose commit decides the content."""
    found = [f"data {s}" for s in sources.values() if kind_of_source(s) == "hub"]
    if tokenizer is not None and not Path(tokenizer).exists():
        found.append(f"tokenizer {tokenizer}")
    found += [
        f"model {m.pretrained}"
        for m in config.models.values()
        if m.pretrained is not None and m.revision is None and m.sha256 is None
    ]
    return tuple(dict.fromkeys(found))


def _identity(source: str, tokenizer: str | None, dry: bool) -> dict[str, Any]:
    """What identifies one branch's data: it decides the content of its data stage."""
    kind = kind_of_source(source)
    return {
        "kind": kind,
        "sha256": None if dry and kind == "hub" else fingerprint(source),
        "task_sha256": file_digest(Path(source)) if kind == "task" else None,
        "tokenizer": _tokenizer_identity(tokenizer, dry),
        "split_seed": SPLIT_SEED,
    }


def _tokenizer_identity(tokenizer: str | None, dry: bool) -> str | None:
    """What identifies the tokenizer; loads it, so that a wrong one is an early error."""
    if tokenizer is None or (dry and not Path(tokenizer).exists()):
        return None
    loaded = load_tokenizer(tokenizer)
    return digest([loaded.backend_tokenizer.to_str(), loaded.eos_token_id, loaded.pad_token_id])


def planned(request: Request, machine: Machine | None = None) -> StudyPlan:
    """What a request would do and cost; runs nothing, asks nobody. Raises InputError."""
    prepared = prepare(request, dry=True)
    return study_plan(
        prepared.plan,
        prepared.config,
        preset=request.preset,
        figures=figures_of(request, prepared.config),
        seeds=request.seeds,
        unresolved=prepared.unresolved,
        machine=machine,
    )


def run_study(request: Request, *, quiet: bool = False) -> int:
    """Run or resume a study; 0 if every stage is done, 1 if one failed."""
    prepared = prepare(request)
    if started_by_torchrun():
        return _run_together(prepared, request)
    plan, existed = prepared.plan, request.out.exists()
    plan.root.mkdir(parents=True, exist_ok=True)
    with locked(plan.root):
        fresh = not (plan.root / IDENTITY).exists()
        try:
            write_json(plan.root / IDENTITY, prepared.identity)
            save_graph(plan)
            _make_data(plan)
            check_models(plan, prepared.config)
        except (InputError, OSError):
            if fresh:
                _leave(plan.root, existed)
            raise
        _say_expected(prepared)
        return _run(prepared, request, quiet)


def _say_expected(prepared: Prepared) -> None:
    """What the judge will be asked, and what that costs, before the first question."""
    model = prepared.config.judge.model
    questions, dollars = (0, 0.0) if model is None else judging(prepared.plan, prepared.config)
    if questions:
        says = f"judge {model}: {questions:,} questions at most, about {dollars:,.2f} dollars"
        print(says, file=sys.stderr)


def _run_together(prepared: Prepared, request: Request) -> int:
    """One stage in all processes that torchrun started; what it rests on is done."""
    if request.only is None:
        raise InputError("torchrun trains one stage: `torchrun ... -m llm train STAGE`")
    plan = prepared.plan
    stage = plan.stages[-1]
    try:
        execute_together(plan, stage)
    except InputError:
        raise
    except Exception as error:
        if os.environ.get("RANK", "0") == "0":
            note_failure(plan, stage, traceback.format_exc())
        first = next(iter(str(error).splitlines()), "")
        print(f"failed: {stage.id}: {type(error).__name__}: {first}", file=sys.stderr)
        return 1
    return 0


def _leave(root: Path, existed: bool) -> None:
    """Take back what this call put into a folder, so that a corrected one may use it."""
    shutil.rmtree(root / "stages", ignore_errors=True)
    for name in (IDENTITY, GRAPH, LOCK):
        (root / name).unlink(missing_ok=True)
    if not existed:
        root.rmdir()


def _run(prepared: Prepared, request: Request, quiet: bool) -> int:
    failed = run(prepared.plan, jobs=request.jobs, quiet=quiet, cluster=request.cluster)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if request.only is not None:
        return 1 if failed else 0
    bill = _write_study(prepared, request)["judge"]
    if bill is not None:
        print(f"judge {prepared.config.judge.model}: {judge_words(bill)}", file=sys.stderr)
    verdicts = compare(request.out, predictions_of(request))
    if not quiet:
        print("\n".join(verdict_lines(verdicts)))
        print(f"More: python -m llm compare {shlex.quote(str(request.out))}")
    return 1 if failed else 0


def _make_data(plan: Plan) -> None:
    """The data stages, in this process: bad data is one clear error."""
    for stage in data_stages(plan):
        if Store(plan.root).done(plan.keys[stage.id]):
            continue
        try:
            execute(plan, stage, lambda fraction: None)
        except InputError:
            discard(plan, stage)
            raise


def _write_study(prepared: Prepared, request: Request) -> dict[str, Any]:
    """study.json and data_card.json: all that was ever asked here, where each stage stands."""
    plan, identity, store = prepared.plan, prepared.identity, Store(prepared.plan.root)
    done = {name: key for name, key in prepared.keys.items() if store.done(key)}
    card = read_json(store.path(plan.keys["data"]) / "data_card.json")
    write_json(plan.root / "data_card.json", card)
    records = {name: store.record(key) for name, key in done.items()}
    study = {
        "schema": 1,
        "figures": list(prepared.figures),
        "preset": request.preset,
        "rung": "full" if identity["config"]["judges_text"] else "tiny",
        "config": identity["config"],
        "data": {**identity["data"], "path": Path(plan.sources[""]).name},
        "seeds": list(prepared.seeds),
        "stages": {name: f"stages/{key.directory}" for name, key in done.items()},
        "total_seconds": round(sum(r["wall_seconds"] for r in records.values()), 1),
        "judge": judged(record["metrics"] for record in records.values()),
        "too_small": _too_small(identity, records, card),
        "command": shlex.join(["python", "-m", "llm", *sys.argv[1:]]),
    }
    write_json(plan.root / STUDY, study)
    return study


def judged(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float | None] | None:
    """What the judge was asked in all stages together, and the dollars; None: no stage asked.

    asked, reused: questions; invalid: comparisons (and two-word summaries) whose answer could not
    be read. A sum is None where a stage does not know its own part.
    """
    bills = [
        {name: each.get(prefix + name) for name in BILLED}
        for each in metrics
        for prefix in ("", "judge_")  # verdicts; pairs that the judge labels
        if f"{prefix}asked" in each
    ]
    return {name: _sum([bill[name] for bill in bills]) for name in BILLED} if bills else None


def _sum(values: list[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


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
