"""Readers of comparison data: what counts as the same, what is dropped, what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import comparison_files
from theory.comparisons import Clashes, Comparisons, Row, read_comparisons
from theory.errors import InputError

TABLE = [
    {"prompt": "x", "chosen": "a", "rejected": "b", "worker": "w1", "count": 2},
    {"prompt": "x", "chosen": "b", "rejected": "a", "worker": "w2", "count": 1},
    {"prompt": "x", "chosen": "a ", "rejected": "a", "worker": None, "count": 3},
    {"prompt": 'y, "ü"\n', "chosen": "a", "rejected": "", "worker": "w1", "count": 1},
]


def raw(post="p", a="a", b="b", choice: int | None = 0, **info):
    shown = {"post": post, "title": "t", "subreddit": "s", **info}
    summaries = [{"text": a, "policy": "ref", "note": None}, {"text": b, "policy": "x"}]
    return {"info": shown, "summaries": summaries, "choice": choice, "worker": "w"}


def write(path: Path, rows: list) -> Path:
    """The rows in the format that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".csv"):
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    elif name.endswith(".json"):
        text = json.dumps(rows, indent=1)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    body = text.encode()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


def same(a: Comparisons, b: Comparisons) -> None:
    for name in ("prompt", "winner", "loser", "count", "annotator"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("n_prompts", "n_completions", "n_annotators", "rows", "dropped", "clashes"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.PARQUET"]
)
def test_every_format_gives_the_same_comparisons(name, tmp_path):
    file = write(tmp_path / name.lower(), TABLE).rename(tmp_path / name)
    found = read_comparisons(file)
    rows = [Row(r["prompt"], r["chosen"], r["rejected"], r["worker"], r["count"]) for r in TABLE]
    same(found, Comparisons.of(rows))
    assert (found.n_prompts, found.n_completions, found.n_annotators) == (2, 5, 2)
    assert found.count.tolist() == [2, 1, 3, 1]
    assert found.annotator.tolist() == [0, 1, -1, 0]
    assert found.winner[0] == found.loser[1] == found.loser[2] != found.winner[3]
    assert found.clashes is None


def test_raw_comparisons_in_json_lines_and_in_parquet(tmp_path):
    rows = [raw(id="1"), raw(choice=1, id="1"), raw("q", "c", "d", id="2")]
    text = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / "raw.json").write_text(text, encoding="utf-8-sig")
    found = read_comparisons(tmp_path / "raw.json")
    assert found.winner[0] == found.loser[1]
    assert found.winner[1] == found.loser[0]
    assert (found.rows, found.n_prompts, found.n_completions) == (3, 2, 4)
    assert found.n_annotators == 1
    same(found, read_comparisons(write(tmp_path / "raw.parquet", rows)))


def test_news_articles_of_raw_comparisons(tmp_path):
    row = raw()
    row["info"] = {"id": "1", "article": "long", "site": "cnn"}
    assert read_comparisons(write(tmp_path / "a.jsonl", [row])).n_prompts == 1


def test_a_prompt_in_parts_is_its_joined_text(tmp_path):
    row = {"subreddit": "r/a", "title": "t", "post": "p", "chosen": "1", "rejected": "2"}
    joined = "SUBREDDIT: r/a\n\nTITLE: t\n\nPOST: p"

    def prompts(*rows):
        return read_comparisons(write(tmp_path / "a.jsonl", list(rows))).n_prompts

    assert prompts(row, row | {"subreddit": "a"}) == 1
    assert prompts(row, row | {"prompt": joined}) == 1
    assert prompts(row, row | {"title": None}) == 2


def test_clashes_of_ids_and_texts_are_counted():
    rows = [
        Row("x", "a", "b", prompt_id="1"),
        Row("y", "a", "b", prompt_id="1"),
        Row("z", "a", "b", prompt_id="2"),
        Row("z", "a", "b", prompt_id="3"),
        Row("z", "b", "a"),
        Row("v", "b", "a"),
    ]
    found = Comparisons.of(rows)
    assert found.n_prompts == 4
    assert found.clashes == Clashes(1, 1, 1, 2)


def test_rows_are_dropped_by_reason(tmp_path):
    pair = {"prompt": "x", "chosen": "a", "rejected": "b", "count": 1}
    rows = [pair, pair | {"rejected": "a"}, pair | {"count": 0}, pair | {"chosen": None}]
    rows += [pair | {"prompt": None}, pair | {"rejected": "a"}]
    found = read_comparisons(write(tmp_path / "a.jsonl", rows))
    reasons = {"same text": 2, "count 0": 1, "missing text": 1, "missing prompt": 1}
    assert found.dropped == reasons
    assert found.rows == 6 == len(found.count) + sum(reasons.values())
    assert read_comparisons(
        write(tmp_path / "b.jsonl", [raw(), raw(choice=None), raw(a="b")])
    ).dropped == {"no choice": 1, "same text": 1}
    with pytest.raises(
        InputError, match=r"c.jsonl: no comparison is left of 2 rows .*same text: 2"
    ):
        read_comparisons(write(tmp_path / "c.jsonl", [rows[1], rows[5]]))


def test_a_folder_is_read_whole_and_other_files_are_named(tmp_path):
    write(tmp_path / "a.jsonl", TABLE)
    write(tmp_path / "b.csv", TABLE)
    (tmp_path / "README.md").write_text("no data")
    done = []
    found = read_comparisons(tmp_path, on_progress=done.append)
    assert found.rows == 8
    assert found.n_completions == 5
    assert [Path(file).name for file in found.files] == ["a.jsonl", "b.csv"]
    assert [Path(file).name for file in found.files_skipped] == ["README.md"]
    assert done == sorted(done)
    assert done[-1] == 1.0


GOOD = '{"prompt": "x", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl: holds no comparison, it is empty"),
        ("a.json", "[]", "a.json: holds no comparison, it is empty"),
        ("a.csv", "prompt,chosen,rejected\n", "a.csv: holds no comparison, it is empty"),
        ("a.txt", GOOD, "a.txt: not one of .json"),
        ("a.jsonl", GOOD + '{"prompt": "x"', "a.jsonl:2: not JSON"),
        ("a.jsonl", GOOD + "[1]\n", r"a.jsonl:2: must be an object, got \[1\]"),
        (
            "a.jsonl",
            GOOD + '{"prompt": "x"}',
            "a.jsonl:2: no chosen; the columns found are 'prompt'",
        ),
        ("a.jsonl", GOOD.replace('"b"', "7"), "a.jsonl:1: rejected must be text, got 7"),
        ("a.jsonl", GOOD.replace("rejected", "chosen"), "the key 'chosen' stands twice"),
        ("a.jsonl", '{"id": 1, "summary": "s"}', "columns found are 'id', 'summary'"),
        ("a.jsonl", GOOD.replace("}", ', "count": NaN}'), "count must be a whole number.*nan"),
        ("a.jsonl", GOOD.replace("}", ', "count": -1}'), "count must be .*got -1"),
        ("a.jsonl", GOOD.replace("}", ', "count": 1.5}'), "count must be .*got 1.5"),
        ("a.jsonl", GOOD.replace("}", ', "count": true}'), "count must be .*got True"),
        ("a.jsonl", GOOD.replace("}", ', "count": null}'), "count must be .*got None"),
        ("a.jsonl", "[" * 10_000 + "{", "a.jsonl:1: nested too deep"),
        ("a.jsonl", '{"a":' * 10_000, "a.jsonl:1: nested too deep"),
        ("a.json", "[" + GOOD + ",\n{]", "a.json:2: not JSON"),
        ("a.json", "[" + GOOD, "a.json:1: not JSON: no ','"),
        ("a.json", "[" + GOOD + "] more", "a.json:1: not JSON: no ','"),
        ("a.json", "[" + GOOD + ",]", "a.json:2: not JSON"),
        ("a.csv", "prompt,chosen\n1,2\n", "columns found are 'chosen', 'prompt'"),
        ("a.csv", "prompt,chosen,chosen\n1,2,3\n", "a.csv:1: a column stands twice"),
        ("a.csv", "prompt,chosen,rejected\n1,2,3\n1,2\n", "a.csv:3: 2 fields, 3 columns"),
        ("a.csv", 'prompt,chosen,rejected\n1,2,"3\n', "a.csv:2: not CSV"),
        ("a.csv", "prompt,chosen,rejected,count\n1,2,3,x\n", "a.csv:2: count .*got 'x'"),
        ("a.jsonl.gz", GOOD, "a.jsonl.gz: not a whole gzip file"),
        ("a.parquet", GOOD, "a.parquet: not a readable parquet file"),
    ],
)
def test_bad_files_are_refused_with_their_place(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_comparisons(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": 2}, ":1: choice must be 0 or 1, got 2"),
        ({"choice": True}, ":1: choice must be 0 or 1, got True"),
        ({"summaries": [{"text": "a"}]}, ":1: summaries must be two objects"),
        ({"info": None}, ":1: info must be an object, got None"),
        ({"info": {"id": "1"}}, ":1: info has neither post nor article, only 'id'"),
        ({"worker": {}}, ":1: an annotator or id must be"),
    ],
)
def test_bad_raw_rows_are_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_comparisons(write(tmp_path / "a.json", [raw() | change]))


def test_too_many_comparisons_are_refused():
    row = Row("x", "a", "b", count=10**9)
    assert Comparisons.of([row] * 3).count.sum() == 3 * 10**9
    with pytest.raises(InputError, match="4,000,000,000 comparisons, which is more than"):
        Comparisons.of([row] * 4)


def test_bad_bytes_paths_and_columns_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_comparisons(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no file of the kinds"):
        read_comparisons(tmp_path)
    whole = gzip.compress(GOOD.encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"cut.jsonl.gz: not a whole gzip file"):
        read_comparisons(tmp_path / "cut.jsonl.gz")
    (tmp_path / "a.jsonl").write_bytes(GOOD.encode() + b'{"prompt": "\xff"}')
    with pytest.raises(InputError, match=r"a.jsonl:2: not UTF-8"):
        read_comparisons(tmp_path / "a.jsonl")
    pq.write_table(pa.table({"chosen": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="columns found are 'chosen', 'text'"):
        read_comparisons(tmp_path / "a.parquet")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_files, "LONGEST", 1000)
    (tmp_path / "a.jsonl").write_text(GOOD + GOOD.replace("x", "x" * 1000))
    with pytest.raises(InputError, match=r"a.jsonl:2: the line is longer than 1,000 bytes"):
        read_comparisons(tmp_path / "a.jsonl")
    monkeypatch.setattr(comparison_files, "CHUNK", 100)
    (tmp_path / "a.json").write_text("[" + GOOD.replace("x", "x" * 5000))
    with pytest.raises(InputError, match=r"a.json:1: longer than 1,000 characters"):
        read_comparisons(tmp_path / "a.json")


def test_texts_with_lone_surrogates_and_lists_of_messages_count(tmp_path):
    message = [{"role": "user", "content": "a"}]
    rows = [
        {"prompt": "\ud800", "chosen": "\udfff", "rejected": "?"},
        {"prompt": message, "chosen": message, "rejected": [dict(reversed(message[0].items()))]},
        {"prompt": message, "chosen": message, "rejected": []},
    ]
    found = read_comparisons(write(tmp_path / "a.jsonl", rows))
    assert found.dropped == {"same text": 1}
    assert found.n_prompts == 2


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
objects = st.dictionaries(st.text(max_size=3), values | st.lists(values, max_size=3), max_size=4)


@given(st.lists(objects, max_size=5), st.integers(1, 40), st.sampled_from([None, 2]))
def test_a_json_list_is_cut_into_its_elements(rows, chunk, indent):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_files, "CHUNK", chunk)
        file = Path(folder, "a.json")
        file.write_text("\n" + json.dumps(rows, indent=indent) + "\n\n")
        found = list(comparison_files.records(file, list, lambda part: None))
    assert found == list(enumerate(rows, start=1))


@given(
    st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.jsonl.gz", "a.parquet"]),
    st.binary(max_size=60)
    | st.text(alphabet='[]{}",:\n 0ax\\u', max_size=60).map(lambda text: text.encode())
    | st.lists(objects, max_size=3).map(lambda rows: json.dumps(rows).encode())
    | st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "count", "info", "summaries", "choice"]),
        values | st.lists(values, max_size=2) | objects,
    ).map(lambda row: json.dumps(row).encode()),
)
def test_any_file_is_read_or_refused_by_name(name, body):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(body)
        found = message = None
        try:
            found = read_comparisons(file)
        except InputError as error:
            message = str(error)
    if found is None:
        assert message is not None
        assert name in message
    else:
        assert found.rows == len(found.count) + sum(found.dropped.values())


def test_memory_does_not_grow_with_the_texts(tmp_path):
    rows = [{"prompt": f"{i}" * 20_000, "chosen": "a", "rejected": "b"} for i in range(10, 40)]
    for name in ("a.jsonl", "a.json"):
        file = write(tmp_path / name, rows)
        assert file.stat().st_size > 1_200_000
        tracemalloc.start()
        found = read_comparisons(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.n_prompts == 30
        assert peak < 800_000, (name, peak)
