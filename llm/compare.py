"""Measurements from a study's records, and the verdict on each prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm import tables
from llm.errors import InputError
from llm.graph import POLICIES, REWARD_MODELS
from llm.records import RECORD, read_json
from llm.stats import paired_bootstrap, seeds_to_decide, t_interval
from theory.predictions import (
    Measurement,
    Prediction,
    RecordError,
    Verdict,
    judge,
    load_predictions,
    save,
)

NO_INTERVAL = "none: fewer than two seeds"
UNITS = {
    "win_rate": "win-rate points (0-1)",
    "rouge_l": "ROUGE-L F1 (0-1)",
    "mean_tokens": "tokens",
    "ended_rate": "share of samples (0-1)",
    "expected_reward": "reward",
    "kl_to_optimum": "nats",
    "mass_on_task": "probability (0-1)",
    "sampled_win_rate": "win-rate points (0-1)",
    "val_loss": "nats per pair",
    "val_accuracy": "accuracy (0-1)",
}
DIFFERENCES = {
    "fig3": (
        ("online_dpo_sft", "dpo"),
        ("online_dpo_dpo", "dpo_2x"),
        ("online_dpo_dpo", "dpo"),
    ),
    "fig9": (("local_rm", "global_rm"), ("dpo_rm", "local_rm")),
}
ARMS = {"fig3": ("sft", *POLICIES), "fig9": REWARD_MODELS}
MEASURES = {
    "fig3": tuple(name for name in UNITS if not name.startswith("val_")),
    "fig9": ("val_loss", "val_accuracy"),
}
COMPARED = ("win_rate", "rouge_l", "mean_tokens", "val_loss", "val_accuracy")
HIGHER_FIRST = {"val_accuracy"}  # its predictions are stated the other way round: better - worse


@dataclass(frozen=True)
class Arm:
    """One arm's evaluation: its metrics and per-prompt scores by seed (None: shared by seeds)."""

    metrics: Mapping[int | None, Mapping[str, Any]]
    scores: Mapping[int | None, list[dict[str, Any]]] = field(default_factory=dict)

    def of(self, seed: int, measure: str) -> float | None:
        """The arm's value at a seed; a shared arm has the same one at all."""
        record = self.metrics.get(seed, self.metrics.get(None, {}))
        return record.get(measure)

    def column(self, seed: int, measure: str) -> list[float] | None:
        """Per-prompt values at a seed, if they were kept."""
        rows = self.scores.get(seed, self.scores.get(None, []))
        return [row[measure] for row in rows] if rows and measure in rows[0] else None


def compare(root: Path, predictions_path: Path | None) -> tuple[Verdict, ...]:
    """Write measurements.json and verdicts.json of a study folder; returns the verdicts."""
    study = read_json(root / "study.json")
    seeds = tuple(study["seeds"])
    arms = _arms(root, study)
    measured = [m for figure in study["figures"] for m in measurements(figure, arms, seeds, study)]
    save(root / "measurements.json", "measurements", measured)
    verdicts: tuple[Verdict, ...] = ()
    if predictions_path is not None:
        verdicts = _verdicts(read_predictions(predictions_path), measured, study)
    save(root / "verdicts.json", "verdicts", verdicts, scale_note=study["too_small"])
    return verdicts


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


def _verdicts(
    predictions: Sequence[Prediction], measured: Sequence[Measurement], study: Mapping[str, Any]
) -> tuple[Verdict, ...]:
    by_quantity = {(m.figure, m.quantity): m for m in measured}
    return tuple(
        judge(p, by_quantity.get((p.figure, p.quantity)), too_small=study["too_small"])
        for p in predictions
        if p.figure in study["figures"]
    )


def _arms(root: Path, study: Mapping[str, Any]) -> dict[str, Arm]:
    """Every evaluated arm, from the records of its eval stages."""
    metrics: dict[str, dict[int | None, Any]] = {}
    scores: dict[str, dict[int | None, Any]] = {}
    for stage_id, place in study["stages"].items():
        if not stage_id.startswith("eval_") or not (root / place / RECORD).exists():
            continue
        record = read_json(root / place / RECORD)
        name = record["stage"].removeprefix("eval_")
        metrics.setdefault(name, {})[record["seed"]] = record["metrics"]
        path = root / place / "scores.parquet"
        if path.exists():
            scores.setdefault(name, {})[record["seed"]] = tables.read_rows(path)
    return {name: Arm(found, scores.get(name, {})) for name, found in metrics.items()}


def measurements(
    figure: str, arms: Mapping[str, Arm], seeds: Sequence[int], study: Mapping[str, Any]
) -> list[Measurement]:
    """Every arm alone, then the differences that the figure's claims are about."""
    made = []
    for measure in MEASURES[figure]:
        for name in ARMS[figure]:
            if name in arms:
                made.append(_alone(figure, measure, name, arms[name], seeds, study))
        for a, b in DIFFERENCES[figure]:
            if measure in COMPARED and a in arms and b in arms:
                first, second = (b, a) if measure in HIGHER_FIRST else (a, b)
                made.append(_difference(figure, measure, (first, second), arms, seeds, study))
    return [m for m in made if m is not None]


def _alone(
    figure: str, measure: str, name: str, arm: Arm, seeds: Sequence[int], study: Mapping[str, Any]
) -> Measurement | None:
    shared = None in arm.metrics
    at = seeds[:1] if shared else seeds
    note = "one model, shared by all seeds" if shared else None
    points = {seed: arm.of(seed, measure) for seed in at}
    return _measurement(figure, f"{measure}[{name}]", measure, points, study, note=note)


def _difference(
    figure: str,
    measure: str,
    names: tuple[str, str],
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    study: Mapping[str, Any],
) -> Measurement | None:
    first, second = (arms[name] for name in names)
    points: dict[int, float | None] = {}
    within: dict[int, tuple[float, float] | None] = {}
    for seed in seeds:
        a, b = first.of(seed, measure), second.of(seed, measure)
        points[seed] = None if a is None or b is None else a - b
        columns = first.column(seed, measure), second.column(seed, measure)
        interval = None
        if columns[0] is not None and columns[1] is not None:
            interval = paired_bootstrap(columns[0], columns[1], seed=seed)
        within[seed] = None if interval is None else (interval.low, interval.high)
    quantity = f"{measure}[{names[0]}] - {measure}[{names[1]}]"
    return _measurement(figure, quantity, measure, points, study, within=within)


def _measurement(
    figure: str,
    quantity: str,
    measure: str,
    points: Mapping[int, float | None],
    study: Mapping[str, Any],
    *,
    within: Mapping[int, tuple[float, float] | None] | None = None,
    note: str | None = None,
) -> Measurement | None:
    """Mean and t interval over the seeds that have a value; None if none has."""
    found = {seed: value for seed, value in points.items() if value is not None}
    if not found:
        return None
    values = tuple(found.values())
    interval = t_interval(values)
    return Measurement(
        figure=figure,
        quantity=quantity,
        unit=UNITS[measure],
        value=sum(values) / len(values),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        interval=NO_INTERVAL if interval is None else interval.kind,
        seeds=tuple(found),
        per_seed=values,
        rung=study["rung"],
        within=None if within is None else tuple(within[seed] for seed in found),
        seeds_to_decide=seeds_to_decide(values),
        note=note,
    )
