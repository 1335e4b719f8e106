"""The folder of a sweep: grid.json and cells/*.parquet, each whole or not at all."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from theory.errors import InputError
from theory.sweep.cells import VERSION, Cell
from theory.sweep.grid import Grid
from theory.sweep.schema import schema

PARTIAL = ".partial"  # ending of a file that is being written


def prepare(out: Path, grid: Grid) -> None:
    """Make `out` this grid's folder. Raises InputError if another grid or version made it."""
    record = out / "grid.json"
    text = json.dumps(grid.resolved(), indent=1, allow_nan=False) + "\n"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a folder")
    if record.exists():
        if _read_text(record) != text:
            raise InputError(f"{_who_made(record)}; choose another --out")
    else:
        if out.exists() and any(p.name != "grid.json" + PARTIAL for p in out.iterdir()):
            raise InputError(f"--out {out} holds files but no grid.json; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(record, text.encode())
    (out / "cells").mkdir(exist_ok=True)
    known = {cell.file_name for cell in grid.cells}
    for path in sorted((out / "cells").iterdir()):
        if path.name.removesuffix(PARTIAL) not in known:
            raise InputError(
                f"{path} is no cell of this grid; move it away or choose another --out"
            )


def missing(out: Path, grid: Grid) -> tuple[list[Cell], list[str]]:
    """The cells to run, and in words those of them that are stored but torn.

    A file that cannot be read to its end is torn; its cell is run again, and its file replaced.
    Raises InputError for a whole file that is not this cell's.
    """
    todo, torn = [], []
    for cell in grid.cells:
        path = out / "cells" / cell.file_name
        if not path.exists():
            todo.append(cell)
            continue
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            todo.append(cell)
            torn.append(f"{path} is torn ({str(error).splitlines()[0]}): its cell is run again")
            continue
        _check_table(path, cell, table)
    return todo, torn


def store(out: Path, cell: Cell, data: bytes) -> Path:
    """Write one cell whole or not at all: a new file, made durable, takes the name."""
    return write_whole(out / "cells" / cell.file_name, data)


def to_bytes(table: pa.Table) -> bytes:
    """The parquet file of a table; equal tables give equal bytes. Pages have checksums."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def load_cells(out: Path, grid: Grid) -> pa.Table:
    """All stored rows of the grid. Raises InputError if a cell is missing or torn."""
    tables = []
    for cell in grid.cells:
        path = out / "cells" / cell.file_name
        if not path.exists():
            raise InputError(f"{out}: cell {cell.name} is missing")
        try:
            tables.append(pq.read_table(path, page_checksum_verification=True))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
        _check_table(path, cell, tables[-1])
    return pa.concat_tables(tables)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file so that, killed at any moment, the old one or the new one stands, whole."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


# --- helpers --------------------------------------------------------------------------------------


def _check_table(path: Path, cell: Cell, table: pa.Table) -> None:
    """Raise InputError unless the rows are of this cell and version."""
    if not table.schema.equals(schema()):
        raise InputError(f"{path}: its columns are not those of version {VERSION}; move it away")
    names = table.column("cell").unique().to_pylist()
    if names != [cell.name]:
        raise InputError(f"{path}: holds the cells {names}, not {cell.name}; move it away")
    chosen = table.filter(table.column("chosen"))
    found = zip(chosen.column("arm").to_pylist(), chosen.column("seed").to_pylist(), strict=True)
    whole = sorted(found) == sorted((arm, seed) for arm in cell.arms for seed in cell.seeds)
    counts = table.column("arm").value_counts().to_pylist()
    if not whole or any(row["counts"] % (len(cell.ridges) * len(cell.seeds)) for row in counts):
        raise InputError(f"{path}: not one row for every arm, candidate and seed; move it away")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {error}") from error


def _who_made(record: Path) -> str:
    """Why a grid.json that differs from ours does."""
    try:
        body: Any = json.loads(record.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        return f"{record} is not JSON: {error}"
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION:
        return f"{record.parent} was made by version {version} of the sweep, this is {VERSION}"
    return f"{record.parent} was made by another grid ({record})"
