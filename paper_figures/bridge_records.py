"""Reads a bridge.parquet: exact numbers of small transformers beside the toy's forecasts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_figures.errors import InputError
from paper_figures.tables import read_parquet

TABLE = "bridge.parquet"
TEXT = ("cell", "part", "name", "measure")
NUMBERS = ("value", "low", "high", "predicted", "predicted_error", "margin")
WORDS = ("branch", "size", "relation", "outcome", "reason")
LATER = ("unit", "needs")  # words that older tables have not
PARTS = ("policy", "theorem_2_2", "likelihood", "verdict")


@dataclass(frozen=True)
class BridgeRow:
    """One number of one cell. part: what it belongs to; see PARTS."""

    cell: str
    part: str
    name: str
    measure: str
    branch: str
    size: str
    seed: int | None
    value: float | None
    low: float | None
    high: float | None
    predicted: float | None
    predicted_error: float | None
    margin: float | None
    relation: str
    outcome: str
    reason: str
    unit: str
    needs: str


@dataclass(frozen=True)
class BridgeRecord:
    """All rows, in the file's order."""

    rows: tuple[BridgeRow, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of the cells, in the file's order."""
        return tuple(dict.fromkeys(row.cell for row in self.rows))

    def main(self, part: str, measure: str, cell: str) -> dict[str, tuple[float, ...]]:
        """{name: a value a seed} on the main branch at the main size."""
        found: dict[str, list[float]] = {}
        for row in self.of(part, cell):
            if row.measure == measure and not row.branch + row.size and row.value is not None:
                found.setdefault(row.name, []).append(row.value)
        return {name: tuple(values) for name, values in found.items()}

    def seeds(self, measure: str, name: str, cell: str) -> dict[int, float]:
        """{seed: value} of a policy on the main branch at the main size."""
        return {
            row.seed: row.value
            for row in self.of("policy", cell)
            if (row.name, row.measure, row.branch + row.size) == (name, measure, "")
            and row.seed is not None
            and row.value is not None
        }

    @property
    def verdicts(self) -> tuple[BridgeRow, ...]:
        """Every prediction in every cell, whatever its outcome."""
        return tuple(row for row in self.rows if row.part == "verdict")

    def of(self, part: str, cell: str) -> Iterator[BridgeRow]:
        """The rows of one part of one cell."""
        return (row for row in self.rows if (row.part, row.cell) == (part, cell))


def load_bridge(path: Path) -> BridgeRecord:
    """The rows of the table. Raises InputError naming file, row and column."""
    table = read_parquet(path, (*TEXT, *NUMBERS, *WORDS, "seed"))
    return BridgeRecord(tuple(_row(path, i, row) for i, row in enumerate(table.to_pylist())))


def _row(path: Path, i: int, row: dict[str, Any]) -> BridgeRow:
    where = f"{path}: row {i}"
    for name in TEXT:
        if not isinstance(row[name], str) or not row[name]:
            raise InputError(f"{where}: column {name!r} must be text, got {row[name]!r}")
    if row["part"] not in PARTS:
        raise InputError(f"{where}: part {row['part']!r} is none of {', '.join(PARTS)}")
    for name in NUMBERS:
        value = row[name]
        if value is not None and not (isinstance(value, float) and math.isfinite(value)):
            raise InputError(f"{where}: column {name!r} must be a finite number, got {value!r}")
    fields: dict[str, Any] = {name: row[name] for name in (*TEXT, *NUMBERS, "seed")}
    fields |= {name: row.get(name) or "" for name in (*WORDS, *LATER)}
    return BridgeRow(**fields)
