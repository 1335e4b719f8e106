"""Measurements from a study's records or from tables, and the verdict on each prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.errors import InputError
from llm.records import read_json, write_json
from llm.results import hypotheses
from llm.results.arms import Evidence, of_study
from llm.results.measurements import Measured, measurements
from theory.predictions import (
    Measurement,
    Prediction,
    RecordError,
    Verdict,
    judge,
    load_predictions,
    save,
)

SHIPPED = Path(__file__).parents[1] / "data" / "shipped" / "predictions.json"


@dataclass(frozen=True)
class Report:
    """Everything that compare finds: measurements, verdicts, and what they say of H1 to H6."""

    measurements: tuple[Measurement, ...]
    verdicts: tuple[Verdict, ...]
    evidence: tuple[hypotheses.Evidence, ...]
    scale_note: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": 1,
            "carry_over": hypotheses.CARRY_OVER,
            "scale_note": self.scale_note,
            "measurements": [asdict(row) for row in self.measurements],
            "verdicts": [asdict(row) for row in self.verdicts],
            "hypotheses": _hypotheses(self.evidence),
        }


def report(evidence: Evidence, predictions: Sequence[Prediction]) -> Report:
    """Hold every measurement against every prediction of the same figure and quantity."""
    measured = measurements(evidence)
    verdicts = tuple(
        verdict
        for prediction in predictions
        if prediction.figure in evidence.figures
        for verdict in _verdicts(prediction, measured, evidence)
    )
    return Report(
        tuple(found.measurement for found in measured),
        verdicts,
        hypotheses.evidence(verdicts),
        evidence.too_small,
    )


def _verdicts(
    prediction: Prediction, measured: Sequence[Measured], evidence: Evidence
) -> list[Verdict]:
    """One verdict a size; one that says "not measured" where there is no measurement."""
    key = (prediction.figure, prediction.quantity)
    found = [m for m in measured if (m.measurement.figure, m.measurement.quantity) == key]
    margin = None
    if prediction.relation == "equal":
        margin = evidence.margins.get(prediction.figure, prediction.margin)
    made = [
        judge(prediction, each, too_small=evidence.too_small, margin=margin)
        for each in [m.deciding(margin) for m in found] or [None]
    ]
    return [hypotheses.about(verdict) for verdict in made]


def compare_study(root: Path, predictions_path: Path | None) -> Report:
    """The report on a study's folder; writes measurements, verdicts and hypotheses beside it."""
    evidence = of_study(root)
    predictions = () if predictions_path is None else read_predictions(predictions_path)
    found = report(evidence, predictions)
    write(root, found)
    return found


def compare(root: Path, predictions_path: Path | None) -> tuple[Verdict, ...]:
    """`compare_study`, its verdicts alone."""
    return compare_study(root, predictions_path).verdicts


def write(root: Path, found: Report) -> None:
    """measurements.json, verdicts.json and hypotheses.json, each whole or not at all."""
    save(root / "measurements.json", "measurements", found.measurements)
    save(root / "verdicts.json", "verdicts", found.verdicts, scale_note=found.scale_note)
    body = {"schema": 1, "carry_over": hypotheses.CARRY_OVER}
    write_json(root / "hypotheses.json", {**body, "hypotheses": _hypotheses(found.evidence)})


def _hypotheses(evidence: Sequence[hypotheses.Evidence]) -> list[dict[str, Any]]:
    return [
        {
            **asdict(hypothesis),
            "evidence": [asdict(e) for e in evidence if e.hypothesis == hypothesis.name],
        }
        for hypothesis in hypotheses.HYPOTHESES
    ]


# --- predictions ---------------------------------------------------------------------------------


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """predictions.json, or InputError naming file and key."""
    try:
        return load_predictions(path)
    except RecordError as error:
        raise InputError(str(error)) from error


def check_predictions(path: Path, *, task_sha256: str | None) -> None:
    """Raise InputError if predictions cannot be read, or were made for another task."""
    read_predictions(path)
    made_for = read_json(path).get("task")
    if task_sha256 is not None and made_for != task_sha256:
        raise InputError(
            f"{path}: was made for task {str(made_for)[:12]}, the study's task is "
            f"{task_sha256[:12]}: make it with `python -m theory forecast --task ...`"
        )
