"""Readers of parquet files: any that has the columns it needs, and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paper_figures.errors import InputError

SAMPLE_KEYS = ("prompt_id", "prompt", "sample", "tokens", "ended")


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


def load_samples(path: Path) -> tuple[SampleRow, ...]:
    """The rows of a samples.parquet; numeric columns beside the known ones are scores."""
    table = read_parquet(path, SAMPLE_KEYS)
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


def read_parquet(path: Path, needed: tuple[str, ...]) -> pa.Table:
    """A parquet file that has the needed columns."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error
    for name in needed:
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing")
    return table
