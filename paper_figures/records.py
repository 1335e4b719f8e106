"""Typed, strict readers of everything the theory and the language-model side leave on disk.

Nothing is computed here. A file that is absent is None in the record; a file that is there and
cannot be read raises InputError naming the file and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_figures.bridge_records import TABLE, BridgeRecord, load_bridge
from paper_figures.errors import InputError
from paper_figures.fields import Fields, read_json
from paper_figures.sweep_records import SweepRecord, load_sweep
from paper_figures.tables import SampleRow, load_samples
from theory.predictions import (
    Measurement,
    Prediction,
    RecordError,
    Verdict,
    load_measurements,
    load_predictions,
    load_verdicts,
)

STUDY_FILES = ("study.json", "measurements.json")
SOUGHT = ("check.json", "sweep/grid.json", "predictions.json", "study/study.json", TABLE)


@dataclass(frozen=True)
class Twin:
    """A claim with one assumption broken on purpose. violation: nats."""

    assumption: str
    violation: float | None
    holds: bool


@dataclass(frozen=True)
class Check:
    """One theorem's certificate as `python -m theory check --json` writes it."""

    claim: str
    statement: str
    holds: bool
    lhs: float | None
    rhs: float | None
    slack: float | None
    trials: int
    nonvacuous: int
    worst_residual: float | None
    twins: tuple[Twin, ...]


@dataclass(frozen=True)
class Stage:
    """One finished stage of a study: its record.json and where it lies."""

    name: str  # "dpo.narrow@2.8b[0]", the key in study.json
    stage: str  # the same without the seed
    base: str  # "dpo"
    branch: str  # of data: "narrow"; "" for the main one
    size: str  # of the model: "2.8b"; "" for the main one
    seed: int | None
    hash: str
    config: dict[str, Any]
    versions: dict[str, Any]
    device: str | None
    metrics: dict[str, float | None]
    history: tuple[dict[str, Any], ...]
    wall_seconds: float | None
    weights_sha256: str | None
    folder: Path

    def samples(self) -> tuple[SampleRow, ...] | None:
        """The rows of samples.parquet, or None where the stage drew none."""
        path = self.folder / "samples.parquet"
        return load_samples(path) if path.exists() else None


@dataclass(frozen=True)
class Evidence:
    """What one verdict says of a hypothesis: "for", "against", or None where it says nothing."""

    figure: str
    quantity: str
    size: str | None
    outcome: str
    says: str | None


@dataclass(frozen=True)
class Hypothesis:
    """One of the paper's hypotheses, how figures could contradict it, and what they say."""

    name: str
    words: str
    contradictable: tuple[tuple[str, str], ...]  # (figure, how)
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Study:
    """A study directory of the language-model side."""

    path: Path
    figures: tuple[str, ...]
    preset: str | None
    config: dict[str, Any]
    data: dict[str, Any]
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    total_seconds: float | None
    commands: tuple[str, ...]
    data_card: dict[str, Any] | None
    measurements: tuple[Measurement, ...] | None
    verdicts: tuple[Verdict, ...] | None
    scale_note: str | None
    hypotheses: tuple[Hypothesis, ...]  # empty where none were written
    carry_over: str | None  # how a forecast carries over to a larger model


@dataclass(frozen=True)
class Folder:
    """Everything found in one folder; what is absent is None."""

    path: Path
    checks: tuple[Check, ...] | None
    sweep: SweepRecord | None
    task: dict[str, Any] | None
    predictions: tuple[Prediction, ...] | None
    study: Study | None
    bridge: BridgeRecord | None

    @property
    def verdicts(self) -> tuple[Verdict, ...] | None:
        """The verdicts of the study, or None."""
        return None if self.study is None else self.study.verdicts


def load_folder(path: Path) -> Folder:
    """Read a demo folder, or a study folder alone.

    Raises InputError where the folder does not exist, holds nothing readable (naming what was
    looked for), or holds a file that cannot be read.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    study_path = path if any((path / n).exists() for n in STUDY_FILES) else path / "study"
    folder = Folder(
        path=path,
        checks=_if_there(path / "check.json", load_checks),
        sweep=load_sweep(path / "sweep") if (path / "sweep" / "grid.json").exists() else None,
        task=_if_there(path / "task.json", load_task),
        predictions=_if_there(path / "predictions.json", _predictions),
        study=_study(study_path),
        bridge=_if_there(_bridge_path(path), load_bridge),
    )
    found = (folder.checks, folder.sweep, folder.predictions, folder.study, folder.bridge)
    if all(part is None for part in found):
        raise InputError(
            f"{path}: nothing to report on; looked for {', '.join(SOUGHT)} and study.json"
        )
    return folder


def _if_there(path: Path, load: Any) -> Any:
    return load(path) if path.exists() else None


def _bridge_path(path: Path) -> Path:
    """In the folder itself, or in bridge/ below it."""
    return path / TABLE if (path / TABLE).exists() else path / "bridge" / TABLE


def _study(path: Path) -> Study | None:
    """A study, or what was measured elsewhere and compared; None where neither is there."""
    if (path / "study.json").exists():
        return load_study(path)
    return load_tables(path) if (path / "measurements.json").exists() else None


def load_checks(path: Path) -> tuple[Check, ...]:
    """The certificates of a check.json."""
    body = read_json(path)
    if not isinstance(body, list):
        raise InputError(f"{path}: must be a list of checks")
    return tuple(_check(Fields(row, path, f"check {i}")) for i, row in enumerate(body))


def _check(row: Fields) -> Check:
    twins = [Fields(twin, row.path, f"{row.text('claim')} twin") for twin in row.items("twins")]
    return Check(
        claim=row.text("claim"),
        statement=row.text("statement"),
        holds=row.flag("holds"),
        lhs=row.number("lhs"),
        rhs=row.number("rhs"),
        slack=row.number("slack"),
        trials=row.integer("trials"),
        nonvacuous=row.integer("nonvacuous"),
        worst_residual=row.number("worst_residual"),
        twins=tuple(
            Twin(twin.text("assumption"), twin.number("violation"), twin.flag("holds"))
            for twin in twins
        ),
    )


def load_task(path: Path) -> dict[str, Any]:
    """The header of a task.json: family, parameters, horizon, tokens, beta, number of prompts."""
    row = Fields(read_json(path), path)
    return {
        "family": row.text("family"),
        "parameters": row.table("parameters"),
        "tokens": row.items("tokens"),
        "horizon": row.integer("horizon"),
        "beta": row.number("beta"),
        "prompts": len(row.table("prompts")),
    }


def load_study(path: Path) -> Study:
    """A study directory with all its stages."""
    file = path / "study.json"
    row = Fields(read_json(file), file)
    folders = {name: path / str(place) for name, place in row.table("stages").items()}
    verdict_file = path / "verdicts.json"
    commands = row.body.get("commands") or row.body.get("command") or []
    return Study(
        path=path,
        figures=tuple(str(name) for name in row.items("figures")),
        preset=row.maybe("preset", str),
        config=row.table("config"),
        data=row.table("data"),
        seeds=tuple(row.items("seeds")),
        stages=tuple(load_stage(name, folder) for name, folder in folders.items()),
        total_seconds=row.number("total_seconds") if "total_seconds" in row.body else None,
        commands=(commands,) if isinstance(commands, str) else tuple(map(str, commands)),
        data_card=_if_there(path / "data_card.json", lambda at: Fields(read_json(at), at).body),
        measurements=_if_there(path / "measurements.json", _measurements),
        verdicts=_if_there(verdict_file, _verdicts),
        scale_note=_if_there(verdict_file, _scale_note),
        hypotheses=_if_there(path / "hypotheses.json", _hypotheses) or (),
        carry_over=_if_there(path / "hypotheses.json", _carry_over),
    )


def load_tables(path: Path) -> Study:
    """Measurements made elsewhere, with their verdicts: a study without any stage."""
    measured = _measurements(path / "measurements.json")
    seeds = dict.fromkeys(seed for row in measured for seed in row.seeds)
    sizes = dict.fromkeys(row.size for row in measured if row.size is not None)
    return Study(
        path=path,
        figures=tuple(dict.fromkeys(row.figure for row in measured)),
        preset=None,
        config={"models": {size: {} for size in sizes}},
        data={"kind": "tables"},
        seeds=tuple(seeds),
        stages=(),
        total_seconds=None,
        commands=(),
        data_card=None,
        measurements=measured,
        verdicts=_if_there(path / "verdicts.json", _verdicts),
        scale_note=_if_there(path / "verdicts.json", _scale_note),
        hypotheses=_if_there(path / "hypotheses.json", _hypotheses) or (),
        carry_over=_if_there(path / "hypotheses.json", _carry_over),
    )


def load_stage(name: str, folder: Path) -> Stage:
    """One stage's record.json."""
    file = folder / "record.json"
    row = Fields(read_json(file), file)
    history = row.items("history")
    return Stage(
        name=name,
        stage=row.text("stage"),
        base=row.maybe("name", str) or row.text("stage"),
        branch=row.maybe("branch", str) or "",
        size=row.maybe("size", str) or "",
        seed=row.maybe("seed", int),
        hash=row.text("hash"),
        config=row.table("config"),
        versions=row.table("versions"),
        device=row.maybe("device", str),
        metrics=row.numbers("metrics"),
        history=tuple(Fields(step, file, f"history {i}").body for i, step in enumerate(history)),
        wall_seconds=row.number("wall_seconds"),
        weights_sha256=row.maybe("weights_sha256", str),
        folder=folder,
    )


def _scale_note(path: Path) -> str | None:
    return Fields(read_json(path), path).maybe("scale_note", str)


def _hypotheses(path: Path) -> tuple[Hypothesis, ...]:
    rows = Fields(read_json(path), path).items("hypotheses")
    return tuple(_hypothesis(Fields(row, path, f"hypothesis {i}")) for i, row in enumerate(rows))


def _hypothesis(row: Fields) -> Hypothesis:
    name = row.text("name")
    pairs = [pair for pair in row.items("contradictable") if isinstance(pair, list)]
    found = [Fields(e, row.path, f"evidence on {name}") for e in row.items("evidence")]
    return Hypothesis(
        name=name,
        words=row.text("words"),
        contradictable=tuple((str(figure), str(how)) for figure, how in pairs),
        evidence=tuple(
            Evidence(
                e.text("figure"),
                e.text("quantity"),
                e.maybe("size", str),
                e.text("outcome"),
                e.maybe("says", str),
            )
            for e in found
        ),
    )


def _carry_over(path: Path) -> str | None:
    return Fields(read_json(path), path).maybe("carry_over", str)


def _predictions(path: Path) -> tuple[Prediction, ...]:
    return _contract(load_predictions, path)


def _measurements(path: Path) -> tuple[Measurement, ...]:
    return _contract(load_measurements, path)


def _verdicts(path: Path) -> tuple[Verdict, ...]:
    return _contract(load_verdicts, path)


def _contract(load: Any, path: Path) -> Any:
    """Read a file of the prediction contract; its error names file and key already."""
    try:
        return load(path)
    except RecordError as error:
        raise InputError(str(error)) from error
