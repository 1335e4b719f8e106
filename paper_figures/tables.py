"""Readers of the parquet files: sweep cells and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paper_figures.errors import InputError
from paper_figures.fields import Fields, read_json

SWEEP_KEYS = ("family", "degree", "sharpness", "horizon", "bits", "n_pairs", "seed", "arm", "ridge")
SAMPLE_KEYS = ("prompt_id", "prompt", "sample", "tokens", "ended")


@dataclass(frozen=True)
class SweepRecord:
    """All rows of a sweep: one (cell, arm, ridge, replicate) a row. kl: nats."""

    grid: dict[str, Any]
    columns: dict[str, np.ndarray]  # each (rows,)
    cells: int

    def __len__(self) -> int:
        return len(self.columns["kl"])


@dataclass(frozen=True)
class SampleRow:
    """One sampled completion. tokens: its length; ended: whether it closed with EOS."""

    prompt_id: str
    prompt: str
    sample: str
    tokens: int
    ended: bool
    reference: str | None
    scores: dict[str, float]


def load_sweep(path: Path) -> SweepRecord:
    """A sweep directory: grid.json and every cell. No cell at all is an error."""
    grid = Fields(read_json(path / "grid.json"), path / "grid.json").body
    files = sorted((path / "cells").glob("*.parquet"))
    if not files:
        raise InputError(
            f"{path / 'cells'}: holds no *.parquet, although {path / 'grid.json'} exists"
        )
    tables = [_read(file, (*SWEEP_KEYS, "kl")) for file in files]
    joined = pa.concat_tables(tables, promote_options="permissive")
    columns = {name: joined.column(name).to_numpy() for name in joined.column_names}
    return SweepRecord(grid, columns, len(files))


def load_samples(path: Path) -> tuple[SampleRow, ...]:
    """The rows of a samples.parquet; numeric columns beside the known ones are scores."""
    table = _read(path, SAMPLE_KEYS)
    known = {*SAMPLE_KEYS, "reference"}
    scores = [
        field.name for field in table.schema if field.name not in known and _numeric(field.type)
    ]
    return tuple(
        SampleRow(
            prompt_id=str(row["prompt_id"]),
            prompt=str(row["prompt"]),
            sample=str(row["sample"]),
            tokens=int(row["tokens"]),
            ended=bool(row["ended"]),
            reference=None if row.get("reference") is None else str(row["reference"]),
            scores={name: float(row[name]) for name in scores if row[name] is not None},
        )
        for row in table.to_pylist()
    )


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _read(path: Path, needed: tuple[str, ...]) -> pa.Table:
    """A parquet file that has the needed columns."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error
    for name in needed:
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing")
    return table
