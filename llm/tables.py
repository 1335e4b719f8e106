"""Tokenised examples, samples and scores as parquet: what stages hand to each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.example import Example

IDS = pa.list_(pa.int32())
EXAMPLE = pa.schema(
    [
        ("example_id", pa.string()),
        ("post_id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", IDS),
        ("completions", pa.list_(pa.string())),
        ("completion_ids", pa.list_(IDS)),
    ]
)
SAMPLE = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("sample", pa.string()),
        ("ids", IDS),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
        ("score", pa.float64()),  # of the judge or the reward model named in the record; null: none
        ("reference", pa.string()),
        ("reference_score", pa.float64()),
    ]
)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One row an example."""
    rows = [asdict(example) for example in examples]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), path)


def read_examples(path: Path) -> list[Example]:
    """What `write_examples` wrote."""
    return [
        Example(
            **{
                **row,
                "prompt_ids": tuple(row["prompt_ids"]),
                "completions": tuple(row["completions"]),
                "completion_ids": tuple(tuple(ids) for ids in row["completion_ids"]),
            }
        )
        for row in pq.read_table(path).to_pylist()
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Plain rows; a schema keeps the types of an empty or all-null table."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote."""
    return pq.read_table(path).to_pylist()
