"""Records of a file one by one: JSON lines, a JSON list, CSV (each plain or gzipped), parquet.

At most about one record is held at a time. Every failure is an InputError that says where.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from theory.errors import InputError

SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
LONGEST = 64 * 2**20  # bytes of one line, characters of one record of a list or one CSV field
CHUNK = 2**16  # characters read at first for a record of a list


class _BrokenRecordError(Exception):
    """(record's place, what is wrong with it)."""


def records(
    file: Path, select: Callable[[Sequence[str]], list[str]], tell: Callable[[float], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, record) one by one; place: a line, or a record from 1 (JSON lists, parquet).

    select: given the columns of a parquet file, those to read. tell: the part done, 0 to 1.
    Raises InputError, "file:place: what is wrong".
    """
    size = max(file.stat().st_size, 1)
    name = file.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from _parquet(file, select, tell)
            return
        with file.open("rb") as disk:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=disk)) if name.endswith(".gz") else disk
            for n, (place, record) in enumerate(_of_text(stream, name.removesuffix(".gz"))):
                if not isinstance(record, dict):
                    raise _BrokenRecordError(place, f"must be an object, got {short(record)}")
                if n % 1000 == 0:
                    tell(disk.tell() / size)
                yield place, record
    except _BrokenRecordError as error:
        place, wrong = error.args
        raise InputError(f"{file}:{place}: {wrong}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: not a whole gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_text(stream: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    start = cast(Any, stream).peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    is_csv = name.endswith(".csv")
    if not is_csv and start[:1] != b"[":
        yield from _json_lines(stream)
        return
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        yield from (_csv if is_csv else _json_list)(text)
    finally:
        text.detach()  # or it would close the stream, which is not its own


def _json_lines(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise _BrokenRecordError(number, f"the line is longer than {LONGEST:,} bytes")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            record = decoder.decode(text)
        except RecursionError:
            raise _BrokenRecordError(number, "nested too deep") from None
        except UnicodeDecodeError as error:
            raise _BrokenRecordError(number, f"not UTF-8: {error.reason}") from None
        except ValueError as error:
            raise _BrokenRecordError(number, f"not JSON: {error}") from None
        yield number, record


def _json_list(text: TextIO) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON list, holding about one element at a time."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    while text.read(1) != "[":  # it is there: that is how the format was told
        pass
    buffer, start, number, step, ended = "", 0, 1, CHUNK, False
    while True:
        start = _skip_blanks(buffer, start)
        if number == 1 and buffer[start : start + 1] == "]":
            break
        try:
            record, stop = decoder.raw_decode(buffer, start)
            end = _skip_blanks(buffer, stop)
            if end == len(buffer) and not ended:  # the next sign is not read yet
                raise json.JSONDecodeError("Expecting ',' or ']'", buffer, end)
        except RecursionError:
            raise _BrokenRecordError(number, "nested too deep") from None
        except ValueError as error:
            if ended or len(buffer) - start > LONGEST or not _is_cut(error, buffer):
                raise _BrokenRecordError(number, f"not JSON: {error}") from None
            more = text.read(step)
            ended, step = not more, 2 * step
            buffer, start = buffer[start:] + more, 0
            continue
        yield number, record
        if buffer[end : end + 1] != ",":
            start = end
            break
        start, number, step = end + 1, number + 1, CHUNK
    rest = buffer[start + 1 :].strip() or any(more.strip() for more in iter(text.readline, ""))
    if buffer[start : start + 1] != "]" or rest:
        raise _BrokenRecordError(number, "not JSON: no ',' and no final ']' after this record")


def _is_cut(error: ValueError, buffer: str) -> bool:
    """Whether the error may come from a record that goes on beyond the buffer."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos > len(buffer) - 16


def _skip_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        twice = next(name for name, n in Counter(name for name, _ in items).items() if n > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return record


def _csv(lines: TextIO) -> Iterator[tuple[int, Any]]:
    limit = csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise _BrokenRecordError(1, f"a column stands twice: {', '.join(header)}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                found = f"{len(fields)} fields, {len(header)} columns"
                raise _BrokenRecordError(reader.line_num, f"{found}")
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise _BrokenRecordError(reader.line_num, f"not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(
    file: Path, select: Callable[[Sequence[str]], list[str]], tell: Callable[[float], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise _BrokenRecordError(0, f"a column stands twice: {', '.join(names)}")
            columns = select(names)
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
                tell(number / table.metadata.num_rows)
    except pa.ArrowException as error:
        raise InputError(f"{file}: not a readable parquet file: {error}") from None
