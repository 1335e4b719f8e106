"""Files of comparisons that are made to hurt: bombs, pipes, broken bytes, values beyond range."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theory import comparison_files
from theory.comparisons import read_comparisons
from theory.errors import InputError

MILLION = 10**6
GOOD = b'{"prompt": "x", "chosen": "a", "rejected": "b"}'
HEADER = b"prompt,chosen,rejected\n"


def read(folder: Path, name: str, body: bytes):
    (folder / name).write_bytes(body)
    return read_comparisons(folder / name)


@pytest.mark.parametrize(
    ("name", "head", "filling", "message"),
    [
        ("a.csv.gz", HEADER, b"a", ":2: the record is longer than 100,000 characters"),
        ("a.csv.gz", b"", b"a", ":1: the record is longer than"),
        ("a.csv.gz", HEADER + b'p,"', b"a\n", "the record is longer than"),
        ("a.csv.gz", HEADER + b'p,"', b'\n","', "the record is longer than"),
        ("a.csv.gz", HEADER, b",", ":2: the record is longer than"),
        ("a.jsonl.gz", GOOD + b"\n", b"a", ":2: the line is longer than 100,000 bytes"),
        ("a.jsonl.gz", b"", b" \n", ": holds no comparison, it is empty"),
        ("a.json.gz", b"[", b" ", ":1: not JSON"),
        ("a.json.gz", b'[{"prompt": "', b"a", ":1: longer than 100,000 characters"),
        ("a.json.gz", b"[" + GOOD, b" ", ":1: longer than 100,000 characters with the blanks"),
        ("a.json.gz", b"[" + GOOD + b"]", b" ", None),
    ],
)
def test_a_file_that_unpacks_without_end_is_not_held(
    name, head, filling, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(comparison_files, "LONGEST", 100_000)
    body = gzip.compress(head + filling * (8 * MILLION // len(filling)), compresslevel=1)
    read(tmp_path, "warm.csv", HEADER + b"x,a,b\n")
    tracemalloc.start()
    try:
        if message is None:
            assert read(tmp_path, name, body).rows == 1
        else:
            with pytest.raises(InputError, match=message):
                read(tmp_path, name, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * MILLION, peak


def test_a_long_record_within_the_limit_is_read(tmp_path):
    rows = [{"prompt": "p" * 3 * MILLION, "chosen": "a", "rejected": c} for c in "bc"]
    body = json.dumps(rows).encode()
    table = b"".join(b",".join(map(str.encode, row.values())) + b"\r" for row in rows)
    for name, text in (("a.json", body), ("a.csv", HEADER.replace(b"\n", b"\r") + table)):
        assert read(tmp_path, name, text).n_completions == 3


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for path in (tmp_path / "a.jsonl", tmp_path, tmp_path / "zero.csv"):
        with pytest.raises(InputError, match=r"(a\.jsonl|zero\.csv): is no regular file"):
            read_comparisons(path)


@pytest.mark.parametrize("depth", [*range(900, 1000, 3), 5000])
def test_nesting_near_the_limit_is_read_or_refused(depth, tmp_path):
    deep = b"[" * depth + b"]" * depth
    for value in (deep, b'{"a": ' * depth + b"1" + b"}" * depth):
        message = "a.jsonl:1: "
        try:
            read(tmp_path, "a.jsonl", GOOD.replace(b'"a"', value))
        except InputError as error:
            message = str(error)
        assert "a.jsonl:1: " in message


def test_values_of_parquet_beyond_python_are_refused(tmp_path):
    texts = {name: ["a"] for name in ("prompt", "rejected")} | {"chosen": ["b"]}
    days = pa.array([2**31 - 1], pa.date32())
    pq.write_table(pa.table(texts | {"worker": days}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: records from 1 on: a value cannot be read"):
        read_comparisons(tmp_path / "a.parquet")
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table(texts | {"chosen": broken}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet: records from 1 on: a value cannot be read"):
        read_comparisons(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [
        ("a.csv", HEADER + b"x,a,b\n" * 3000 + b"x,\xff,b\n" + b"x,a,b\n" * 3000, 3002),
        ("a.csv", b"prompt,chosen,rejected,\xe9\n", 1),
        ("a.json", b"[" + GOOD + b"," + GOOD.replace(b"b", b"\xff") + b"," + GOOD + b"]", 2),
        ("a.json", b"[" + GOOD + b",\xff]", 2),
        ("a.jsonl", b"\n" + GOOD + b"\n\xff", 3),
    ],
)
def test_broken_bytes_are_refused_with_their_place(name, body, place, tmp_path):
    with pytest.raises(InputError, match=f"{name}:{place}: not UTF-8: "):
        read(tmp_path, name, body)


def test_blanks_before_the_first_record_are_passed(tmp_path):
    blanks = b"\xef\xbb\xbf" + b" \r\n" * 100_000
    assert read(tmp_path, "a.json", blanks + b"[" + GOOD + b"]").rows == 1
    with pytest.raises(InputError, match=r"a.json:100002: must be an object"):
        read(tmp_path, "a.json", blanks + b" " + GOOD + b"\n7")


def test_names_of_columns_are_shown_cut_and_escaped(tmp_path):
    columns = {f"{i}" * 100 + "\x1b[31m": 1 for i in range(10, 1010)}
    for name, body in (
        ("a.jsonl", json.dumps({"\x1b[31m": 1} | columns).encode()),
        ("a.csv", ",".join(columns).encode() + b"\n" + b",".join([b"1"] * 1000)),
        ("b.csv", ",".join(2 * list(columns)).encode() + b"\n"),
    ):
        with pytest.raises(InputError, match=r"and 9\d\d more") as caught:
            read(tmp_path, name, body)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 2000
