"""Typed, strict readers of everything the theory and the language-model side leave on disk.

Nothing is computed here. A file that is absent is None in the record; a file that is there and
cannot be read raises InputError naming the file and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

SOUGHT = ("check.json", "sweep/grid.json", "predictions.json", "study/study.json")


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
    hypotheses: dict[str, str]  # name -> what it says; empty where none were written


@dataclass(frozen=True)
class Folder:
    """Everything found in one folder; what is absent is None."""

    path: Path
    checks: tuple[Check, ...] | None
    sweep: SweepRecord | None
    task: dict[str, Any] | None
    predictions: tuple[Prediction, ...] | None
    study: Study | None

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
    study_path = path if (path / "study.json").exists() else path / "study"
    folder = Folder(
        path=path,
        checks=_if_there(path / "check.json", load_checks),
        sweep=load_sweep(path / "sweep") if (path / "sweep" / "grid.json").exists() else None,
        task=_if_there(path / "task.json", load_task),
        predictions=_if_there(path / "predictions.json", _predictions),
        study=load_study(study_path) if (study_path / "study.json").exists() else None,
    )
    found = (folder.checks, folder.sweep, folder.predictions, folder.study)
    if all(part is None for part in found):
        raise InputError(
            f"{path}: nothing to report on; looked for {', '.join(SOUGHT)} and study.json"
        )
    return folder


def _if_there(path: Path, load: Any) -> Any:
    return load(path) if path.exists() else None


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
        hypotheses=_if_there(path / "hypotheses.json", _hypotheses) or {},
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


def _hypotheses(path: Path) -> dict[str, str]:
    rows = Fields(read_json(path), path).items("hypotheses")
    fields = [Fields(row, path, f"hypothesis {i}") for i, row in enumerate(rows)]
    return {row.text("name"): row.text("words") for row in fields}


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
