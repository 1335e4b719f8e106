"""What the bridge's cells found, as one tidy table: a line a number, null where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from theory.bridge import Bridge, Cell, cells
from theory.errors import InputError

TABLE = "bridge.parquet"
SCHEMA = {
    "cell": "string",
    "family": "string",
    "horizon": "int64",
    "pairs": "int64",
    "part": "string",  # policy, theorem_2_2, likelihood or verdict
    "name": "string",  # of the model, the two roads, or the quantity that is judged
    "measure": "string",  # "kl_to_optimum"; of a verdict its figure
    "branch": "string",
    "size": "string",
    "seed": "int64",  # null: all seeds share it, or it is over seeds
    "value": "float64",  # of a verdict: what was measured, with its interval
    "low": "float64",
    "high": "float64",
    "predicted": "float64",  # by the toy forecast, with its standard error
    "predicted_error": "float64",
    "relation": "string",  # the paper's claim: greater, less, or equal within the margin
    "margin": "float64",
    "outcome": "string",
    "reason": "string",
    "unit": "string",  # of a verdict's value, interval, prediction and margin
    "needs": "string",  # what would decide an inconclusive verdict
}
POLICY = (
    *("kl_to_optimum", "soft_regret", "lemma_gap", "kl_to_reference", "expected_reward"),
    *("win_rate", "mass_off_task", "recorded_gap"),
)
VIOLATION = ("kl", "kl_back", "moved")
VERIFIER = ("val_loss", "val_accuracy", "best_accuracy")
LIKELIHOOD = (
    *("pairs", "prompts", "prompts_with_maximiser", "least_loss", "dpo_loss", "local_rm_loss"),
    *("dpo_gradient", "local_rm_gradient"),
)


def rows_of(bridge: Bridge, cell: Cell) -> list[dict[str, Any]]:
    """Everything that is known of a finished cell: policies, Theorem 2.2, fits and verdicts."""
    from theory.exact import likelihoods, measured, verifiers, violations
    from theory.predictions import load_verdicts
    from theory.study_files import read_study

    study = read_study(bridge.study(cell))
    found = []
    for row in measured(study):
        found += _measures("policy", row.policy, asdict(row), POLICY)
    for row in violations(study):
        name = f"{row.kind}: {row.reward_model.split('[')[0]} to {row.policy.split('[')[0]}"
        of_seed = {**asdict(row), "seed": int(row.policy.rstrip("]").split("[")[1])}
        found += _measures("theorem_2_2", name, of_seed, VIOLATION)
    for row in likelihoods(study):
        found += _measures("likelihood", "training pairs", asdict(row), LIKELIHOOD)
    for row in verifiers(study):
        found += _measures("likelihood", row.reward_model, asdict(row), VERIFIER)
    found += [
        _of_verdict(verdict) for verdict in load_verdicts(bridge.study(cell) / "verdicts.json")
    ]
    where = {"cell": cell.name, "family": cell.family, "horizon": cell.horizon, "pairs": cell.pairs}
    start = {**dict.fromkeys(SCHEMA), "branch": "", "size": "", **where}
    return [{**start, **row} for row in found]


def _measures(
    part: str, name: str, row: dict[str, Any], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """One line a measure that has a value."""
    where = {key: row[key] for key in ("branch", "size", "seed")}
    return [
        {"part": part, "name": name, "measure": measure, "value": float(row[measure]), **where}
        for measure in measures
        if row[measure] is not None
    ]


def _of_verdict(verdict: Any) -> dict[str, Any]:
    prediction, measured = verdict.prediction, verdict.measurement
    found = {
        "part": "verdict",
        "name": prediction.quantity,
        "measure": prediction.figure,
        "predicted": prediction.value,
        "predicted_error": prediction.error,
        "relation": prediction.relation,
        "margin": prediction.margin if verdict.margin is None else verdict.margin,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "unit": prediction.unit,
        "needs": verdict.needs,
    }
    if measured is not None:
        found |= {name: getattr(measured, name) for name in ("value", "low", "high")}
        found["size"] = measured.size or ""
    return found


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, null for a column that it has not; none where there is no file.

    Raises InputError for a file that is no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error
    if "cell" not in table.column_names:
        raise InputError(f"{path}: column 'cell' is missing: no table of the bridge")
    return [{name: row.get(name) for name in SCHEMA} for row in table.to_pylist()]


def merged(
    earlier: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The found rows in the place of their cells' earlier ones; other cells stay as they were.

    Cells stand in the order of `theory.bridge.cells`, unknown ones after them.
    """
    new = {row["cell"] for row in found}
    rows = [*(row for row in earlier if row["cell"] not in new), *found]
    order = [cell.name for cell in cells()]
    return sorted(
        rows, key=lambda row: order.index(row["cell"]) if row["cell"] in order else len(order)
    )


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table whole or not at all; columns as in SCHEMA."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in SCHEMA.items()])
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial)
    partial.replace(path)
