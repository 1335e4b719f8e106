"""A prediction, a measurement of the same quantity and the verdict on both (stdlib only).

This is the one module of `theory` that `llm` and `paper_figures` may import: it is the contract
between the side that predicts and the side that measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

Relation = Literal["greater", "less", "equal"]
Outcome = Literal[
    "supported", "contradicted", "inconclusive", "model too small to judge", "not measured"
]
RELATIONS = ("greater", "less", "equal")
WITHIN_ROUNDING = "the interval lies within rounding of 0"
SURE = 2.0  # standard errors of a prediction
TAIL = 0.025  # of a 95% interval's chance, on the side that contradicts
MANY = 1000.0  # beyond this, "times the prompts" is no advice
ROUNDING = 1e-6  # a difference of log-probabilities in single precision, or of what they make


class RecordError(ValueError):
    """A stored prediction, measurement or verdict that cannot be read; names file and key."""


@dataclass(frozen=True)
class Prediction:
    """What the theory side says of one quantity, before it is measured.

    relation: the claim about the quantity: "greater" or "less" than 0, or "equal" to 0 within
    `margin`. value, error: the predicted value and its own standard error, in `unit`; None if only
    the sign is predicted.
    """

    figure: str  # "fig3"
    quantity: str  # "win_rate[online_dpo_sft] - win_rate[dpo]"
    relation: Relation
    value: float | None
    error: float | None
    unit: str
    rung: str  # "exact" or "toy"
    family: str  # where the prediction comes from: "walsh"
    assumptions: tuple[str, ...]
    paper_claim: str
    margin: float | None = None  # for "equal": fixed beforehand, same unit
    replicates: int | None = None
    note: str | None = None  # where the toy itself disagrees, if it does

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise RecordError(f"relation {self.relation!r} is none of {', '.join(RELATIONS)}")
        if self.relation == "equal" and not (self.margin and self.margin > 0):
            raise RecordError(f"{self.quantity}: 'equal' needs a margin > 0, got {self.margin!r}")
        for name in ("value", "error", "margin"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise RecordError(f"{self.quantity}: {name} is not finite: {number!r}")


@dataclass(frozen=True)
class Measurement:
    """One measured quantity with the points it was computed from.

    low, high: the interval named by `interval`; None where there are too few seeds for one.
    within: for each seed, a (low, high) interval over prompts inside that seed, or None.
    over_prompts: (low, high) around the value for other prompts, the seeds' models kept; None where
    the prompts are all that there are, or their values are not known.
    size: the name of the model size; None where sizes are compared or none was named.
    seeds_to_decide, prompts_to_decide: what would decide whether it differs from 0, in a verdict
    whether its prediction holds; None where none up to a bound would, or it is not known.
    """

    figure: str
    quantity: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    interval: str  # "95% t interval over seeds"
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    rung: str  # "tiny", "full"
    within: tuple[tuple[float, float] | None, ...] | None = None
    seeds_to_decide: int | None = None
    note: str | None = None
    size: str | None = None
    prompts_to_decide: int | None = None
    over_prompts: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """A prediction held against a measurement.

    margin: what "equal" was judged by, where the study fixed another one than the prediction.
    hypotheses: the names of those that the quantity bears on ("H6").
    """

    prediction: Prediction
    measurement: Measurement | None
    outcome: Outcome
    reason: str
    needs: str | None = None
    margin: float | None = None
    hypotheses: tuple[str, ...] = ()


def judge(
    prediction: Prediction,
    measurement: Measurement | None,
    *,
    too_small: str | None = None,
    margin: float | None = None,
) -> Verdict:
    """Hold one measurement against one prediction.

    "Greater" is supported when the whole interval lies above 0, contradicted when it lies below
    (by more than rounding);
    "equal" only when it lies inside the margin. Anything else is inconclusive, with what would
    decide. All seeds answer the same prompts, so that seeds which agree say nothing of others: an
    interval over prompts, where there is one, must say the same.
    too_small: a reason why no verdict may stand here at all (a model too small for real text).
    margin: what "equal" is judged by, in place of the prediction's own: the study's, fixed before
    its run.
    """
    if prediction.relation != "equal":
        margin = None
    elif margin is not None and not (math.isfinite(margin) and margin > 0):
        raise RecordError(f"{prediction.quantity}: a margin must be > 0, got {margin!r}")
    verdict = _judged(prediction, measurement, too_small, margin)
    return replace(verdict, margin=margin)


def _judged(
    prediction: Prediction,
    measurement: Measurement | None,
    too_small: str | None,
    margin: float | None,
) -> Verdict:
    if too_small:
        return Verdict(prediction, measurement, "model too small to judge", too_small)
    if measurement is None:
        return Verdict(prediction, None, "not measured", "the study holds no such measurement")
    if measurement.quantity != prediction.quantity or measurement.figure != prediction.figure:
        raise RecordError(
            f"{prediction.figure} {prediction.quantity!r} cannot be judged by "
            f"{measurement.figure} {measurement.quantity!r}"
        )
    low, high = measurement.low, measurement.high
    if measurement.value is None or low is None or high is None:
        needs = "at least 2 seeds" if len(measurement.seeds) < 2 else None
        return Verdict(prediction, measurement, "inconclusive", "no interval to judge by", needs)
    outcome, reason = _compare(prediction, low, high, margin)
    needs = None
    if outcome == "inconclusive" and reason != WITHIN_ROUNDING:  # which no seeds resolve
        needs = _needs(measurement)
    others = measurement.over_prompts
    again, why = (outcome, "") if others is None else _compare(prediction, *others, margin)
    if others is not None and again == "inconclusive" and why != WITHIN_ROUNDING:
        more = _more_prompts(prediction, measurement.value, others, margin)
        needs = "; and ".join(filter(None, [needs, more])) or None
    if outcome != "inconclusive" and again != outcome:
        outcome, reason = "inconclusive", f"over seeds {reason}, over prompts {why}"
    return Verdict(prediction, measurement, outcome, reason, needs)


def _more_prompts(
    prediction: Prediction, value: float, others: tuple[float, float], margin: float | None
) -> str | None:
    """How many times the prompts would decide, value and spread kept."""
    half, distance = (others[1] - others[0]) / 2, abs(value)
    if prediction.relation == "equal":
        distance = abs((margin or prediction.margin or 0.0) - distance)
    times = (half / distance) ** 2 if distance > 0 else math.inf
    if not times < MANY:
        return None
    return f"about {max(times, 1.1):.1f} times the prompts, if their spread stays as it is"


def foreseen(
    predicted: float | None,
    error: float | None,
    value: float | None,
    *,
    relation: str,
    margin: float | None,
) -> bool:
    """Whether a contradicted claim's prediction lies where the measurement does, and surely so.

    By more than SURE standard errors, and for "equal" beyond the margin; all in one unit.
    """
    if predicted is None or value is None:
        return False
    least = (margin or 0.0) if relation == "equal" else 0.0
    return predicted * value > 0 and abs(predicted) > least + SURE * (error or 0.0)


def _needs(measurement: Measurement) -> str | None:
    """What would decide, in words; None where nothing is known."""
    ways = []
    if measurement.seeds_to_decide is not None:
        ways.append(f"about {measurement.seeds_to_decide} seeds")
    if measurement.prompts_to_decide is not None:
        ways.append(f"about {measurement.prompts_to_decide} prompts a seed")
    return f"{' or '.join(ways)}, if the spread stays as it is" if ways else None


def _compare(
    prediction: Prediction, low: float, high: float, margin: float | None
) -> tuple[Outcome, str]:
    """The verdict for an interval [low, high] and its reason."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise RecordError(f"{prediction.quantity}: not an interval: [{low!r}, {high!r}]")
    if prediction.relation == "equal":
        margin = margin or prediction.margin or 0.0
        if -margin <= low and high <= margin:
            return "supported", f"the interval lies inside +-{margin:g}"
        if low > margin or high < -margin:
            return "contradicted", f"the interval lies outside +-{margin:g}"
        return "inconclusive", f"the interval crosses the margin +-{margin:g}"
    sign = 1.0 if prediction.relation == "greater" else -1.0
    nearest, farthest = sorted((sign * low, sign * high))
    if nearest > ROUNDING:
        return "supported", "the interval lies on the predicted side of 0"
    if farthest < -ROUNDING:
        return "contradicted", "the interval lies on the other side of 0"
    if nearest >= -ROUNDING and farthest <= ROUNDING:
        return "inconclusive", WITHIN_ROUNDING
    return "inconclusive", "the interval contains 0"


# --- files ---------------------------------------------------------------------------------------

Record = TypeVar("Record", Prediction, Measurement, Verdict)


def save(path: Path, key: str, records: Iterable[Any], **header: object) -> None:
    """Write `{"schema": 1, **header, key: [...]}` whole or not at all."""
    body = {"schema": 1, **header, key: [asdict(record) for record in records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_predictions(path: Path) -> tuple[Prediction, ...]:
    """The predictions of a predictions.json. Raises RecordError naming file and key."""
    return tuple(_record(Prediction, row, path) for row in _rows(path, "predictions"))


def load_measurements(path: Path) -> tuple[Measurement, ...]:
    """The measurements of a measurements.json. Raises RecordError naming file and key."""
    return tuple(_record(Measurement, row, path) for row in _rows(path, "measurements"))


def load_verdicts(path: Path) -> tuple[Verdict, ...]:
    """The verdicts of a verdicts.json. Raises RecordError naming file and key."""
    return tuple(_verdict(row, path) for row in _rows(path, "verdicts"))


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path}: not JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get(key), list):
        raise RecordError(f"{path}: has no list {key!r}")
    return body[key]


def _record(kind: type[Record], row: object, path: Path) -> Record:
    """One record from its JSON object; lists become tuples; unknown or missing keys are errors."""
    if not isinstance(row, dict):
        raise RecordError(f"{path}: a {kind.__name__} is not an object: {row!r}")
    unknown = set(row) - {field.name for field in fields(kind)}
    if unknown:
        raise RecordError(f"{path}: {kind.__name__} has unknown keys {sorted(unknown)}")
    try:
        return kind(**{name: _frozen(value) for name, value in row.items()})
    except (TypeError, RecordError) as error:
        raise RecordError(f"{path}: {kind.__name__}: {error}") from error


def _verdict(row: Any, path: Path) -> Verdict:
    if not isinstance(row, dict) or "prediction" not in row:
        raise RecordError(f"{path}: a Verdict has no key 'prediction'")
    measured = row.get("measurement")
    return _record(
        Verdict,
        {
            **row,
            "prediction": _record(Prediction, row["prediction"], path),
            "measurement": None if measured is None else _record(Measurement, measured, path),
        },
        path,
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
