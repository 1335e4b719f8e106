"""Records of a file one by one: JSON lines, a JSON list, CSV (each plain or gzipped), parquet.

At most about one record is held at a time (1024 of a parquet file), and a record of text is at
most LONGEST long, however much a gzip file unpacks to. Every failure is an InputError that says
where.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from theory.errors import InputError

SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
LONGEST = 16 * 2**20  # bytes of a JSON line, characters of a record of a JSON list or of CSV
CHUNK = 2**16  # characters read at first for a record of a list
MOST_NAMES = 20  # of columns that a message lists
BATCH = 1024  # records of a parquet file held at a time
BLANKS = re.compile(r"[ \t\r\n]*")


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
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None


def short(value: object) -> str:
    """A value as an error message shows it: cut, and its control characters escaped."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[str]) -> str:
    """The names of keys or columns as an error message shows them: sorted, and not too many."""
    shown = sorted(names)
    more = [f"and {len(shown) - MOST_NAMES:,} more"] if len(shown) > MOST_NAMES else []
    return ", ".join([*map(short, shown[:MOST_NAMES]), *more]) or "none"


def _of_text(stream: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    is_csv = name.endswith(".csv")
    if not is_csv:
        lines, sign = _to_first_sign(stream)
        if sign != b"[":
            yield from _json_lines(stream, lines)
            return
    # Bytes that are not UTF-8 pass as lone surrogates; the record that holds them is then refused.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from (_csv if is_csv else _json_list)(text)
    finally:
        text.detach()  # or it would close the stream, which is not its own


def _to_first_sign(stream: BinaryIO) -> tuple[int, bytes]:
    """(lines passed, the first byte that is no blank): the stream stands there; b"" at its end."""
    peek = cast(Any, stream).peek
    if peek(3).startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    lines = 0
    while ahead := peek(CHUNK):
        rest = ahead.lstrip(b" \t\r\n")
        lines += stream.read(len(ahead) - len(rest)).count(b"\n")
        if rest:
            return lines, rest[:1]
    return lines, b""


def _require_utf8(text: str, place: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        raise _BrokenRecordError(place, f"not UTF-8: the byte {byte:#04x}") from None


def _json_lines(stream: BinaryIO, number: int) -> Iterator[tuple[int, Any]]:
    """The records of the lines after the first `number` ones."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise _BrokenRecordError(number, f"the line is longer than {LONGEST:,} bytes")
        try:
            text = line.decode().strip()
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
    text.read(1)  # "[", by which the format was told
    buffer, start, number, ended = "", 0, 1, False
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
            if ended or not _is_cut(error, buffer):
                if isinstance(error, json.JSONDecodeError):
                    _require_utf8(buffer[start : error.pos + 1], number)
                raise _BrokenRecordError(number, f"not JSON: {error}") from None
            held = len(buffer) - start
            if held > LONGEST:
                wrong = f"longer than {LONGEST:,} characters with the blanks that follow"
                raise _BrokenRecordError(number, wrong) from None
            more = text.read(min(max(CHUNK, held), LONGEST))
            buffer, start, ended = buffer[start:] + more, 0, not more
            continue
        _require_utf8(buffer[start:end], number)
        yield number, record
        if buffer[end : end + 1] != ",":
            start = end
            break
        start, number = end + 1, number + 1
    chunks = iter(lambda: text.read(CHUNK), "")
    rest = buffer[start + 1 :].strip() or any(more.strip() for more in chunks)
    if buffer[start : start + 1] != "]" or rest:
        raise _BrokenRecordError(number, "not JSON: no ',' and no final ']' after this record")


def _is_cut(error: ValueError, buffer: str) -> bool:
    """Whether the error may come from a record that goes on beyond the buffer."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos > len(buffer) - 16


def _skip_blanks(text: str, start: int) -> int:
    return cast(re.Match[str], BLANKS.match(text, start)).end()


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        twice = next(name for name, n in Counter(name for name, _ in items).items() if n > 1)
        raise ValueError(f"the key {short(twice)} stands twice")
    return record


def _csv(text: TextIO) -> Iterator[tuple[int, Any]]:
    held = 0  # characters of the record that is being read

    def lines() -> Iterator[str]:
        nonlocal held
        while line := text.readline(LONGEST + 1):
            held += len(line)
            if held > LONGEST:
                wrong = f"the record is longer than {LONGEST:,} characters"
                raise _BrokenRecordError(reader.line_num + 1, wrong)
            _require_utf8(line, reader.line_num + 1)
            yield line

    limit = csv.field_size_limit(LONGEST)
    reader = csv.reader(lines(), strict=True)
    try:
        header = next(reader, [])
        _require_distinct(header, 1)
        for fields in reader:
            held = 0
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


def _require_distinct(columns: Sequence[str], place: int) -> None:
    twice = [name for name, n in Counter(columns).items() if n > 1]
    if twice:
        raise _BrokenRecordError(place, f"a column stands twice: {listed(twice)}")


def _parquet(
    file: Path, select: Callable[[Sequence[str]], list[str]], tell: Callable[[float], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _require_distinct(names, 0)
            columns = select(names)
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                for record in _of_batch(batch, f"{file}: records from {number + 1} on"):
                    number += 1
                    yield number, record
                tell(number / table.metadata.num_rows)
    except pa.ArrowException as error:
        raise InputError(f"{file}: not a readable parquet file: {error}") from None


def _of_batch(batch: Any, where: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # texts that are not UTF-8, dates beyond the year
        raise InputError(f"{where}: a value cannot be read: {error}") from None
