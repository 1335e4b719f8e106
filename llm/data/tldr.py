"""Read TL;DR files (JSON lines, plain or gzipped; parquet): comparisons, preferences, posts."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.rows import SPLITS, Corpus, add_row, kind_of
from llm.errors import InputError

PARQUET = ".parquet"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", PARQUET)
PART = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.])")  # begins "train-00000-of-00001.parquet"


def read_files(path: Path) -> Corpus:
    """All rows of a file, or of every data file below a folder, in the order of their names.

    The format is told by name (`preferences*`, `posts*`, and `*.json` for raw comparisons), else
    by the columns (parquet: always). A parquet file whose name begins with a part's ("train-...",
    "validation-...", "test-..."), or whose folder has one, holds that official part. Files of no
    known format are listed in `Corpus.ignored`; a single file of none is an InputError.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    corpus = Corpus()
    for file in data_files(path):
        source = str(file.relative_to(path)) if path.is_dir() else file.name
        kind = _kind(file)
        if kind is None:
            corpus.ignored.append(source)
        elif file.name.endswith(PARQUET):
            _read_parquet(corpus, file, kind, source)
        else:
            _read_file(corpus, file, kind, source)
    if not corpus.sources:
        raise InputError(
            f"{path}: holds no comparisons, preferences or posts ({', '.join(SUFFIXES)} with the "
            "columns info, summaries, choice; or chosen, rejected; or post, summary)"
        )
    return corpus


def data_files(path: Path) -> list[Path]:
    """The data files that `path` names, sorted; `path` itself if it is a file."""
    if path.is_file():
        return [path]
    return sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))


def sha256_of(file: Path) -> str:
    """Of the file's bytes as they lie on the disk."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank."""
    opened = gzip.open if file.name.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _row(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON: {error}") from error


def _kind(file: Path) -> str | None:
    """The file's format, None if unknown."""
    name = file.name
    if name.endswith(PARQUET):
        return kind_of(dict.fromkeys(_parquet(file).schema_arrow.names))
    if name.endswith((".jsonl", ".jsonl.gz")):
        for start in ("preferences", "posts"):
            if name.startswith(start):
                return start
        for number, line in lines(file):
            row = _row(line, f"{file}, line {number}")
            return kind_of(row) if isinstance(row, dict) else None
        return None
    return "comparisons"


def _read_file(corpus: Corpus, file: Path, kind: str, source: str) -> None:
    records = 0
    for number, line in lines(file):
        place = f"{file}, line {number}"
        add_row(corpus, _row(line, place), kind, source, place, None)
        records += 1
    _note(corpus, file, kind, source, records)


def _note(corpus: Corpus, file: Path, kind: str, source: str, records: int) -> None:
    """What the card says of a file that was read. Raises InputError for one without rows."""
    if not records:
        raise InputError(f"{file}: is empty")
    corpus.sources.append(
        {
            "kind": kind,
            "path": source,
            "records": records,
            "sha256": sha256_of(file),
            "licence": None,
        }
    )


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[:1]
        raise InputError(f"{file}: cannot be read: {''.join(reason)}") from error


def _read_parquet(corpus: Corpus, file: Path, kind: str, source: str) -> None:
    """As hub data: rows with an empty text are dropped and counted, parts stay as published."""
    found = PART.match(file.name)
    split = SPLITS.get(found[1] if found else file.parent.name)
    before, corpus.drops_empty = corpus.drops_empty, True
    records = 0
    try:
        for batch in _parquet(file).iter_batches():
            for row in batch.to_pylist():
                add_row(corpus, row, kind, source, f"{file}, row {records}", split)
                records += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    finally:
        corpus.drops_empty = before
    _note(corpus, file, kind, source, records)
