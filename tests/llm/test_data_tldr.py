"""TL;DR files: formats, faults named with file and line, what is dropped and counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.config import DataConfig
from llm.data.rows import post_key
from llm.data.source import fingerprint, kind_of_source, load, open_tokenizer
from llm.data.tldr import read_files
from llm.errors import InputError
from tests.llm.conftest import make_rows, write_lines

POSTS, PREFERENCES, COMPARISONS = make_rows(3)


def test_a_folder_of_all_formats(small_tldr: Path) -> None:
    (small_tldr / "README.md").write_text("not data", encoding="utf-8")
    write_lines(small_tldr / "other.jsonl", [{"anything": 1}])
    corpus = read_files(small_tldr)
    assert len(corpus.posts) == 40
    assert len(corpus.pairs) == 60 + 75
    assert corpus.ignored == ["other.jsonl"]
    assert [(s["path"], s["kind"], s["records"]) for s in corpus.sources] == [
        ("comparisons/batch1.json", "comparisons", 75),
        ("posts.jsonl", "posts", 40),
        ("preferences.jsonl", "preferences", 60),
    ]
    first = corpus.pairs[0]
    assert (first.chosen, first.rejected) == ("good 0 for 15", "much worse 0 for 15")
    assert first.post.split == "validation"
    assert first.post.place.endswith("comparisons/batch1.json, line 1")


def test_comparisons_may_stand_at_the_top(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "batch7.json", COMPARISONS)
    assert len(read_files(tmp_path).pairs) == len(read_files(file).pairs) == 9
    assert kind_of_source(file) == "text"


def test_choice_names_the_chosen_summary(tmp_path: Path) -> None:
    row = {**COMPARISONS[0], "choice": 0}
    (pair,) = read_files(write_lines(tmp_path / "a.json", [row])).pairs
    assert (pair.chosen, pair.rejected) == ("much worse 0 for 0", "good 0 for 0")


def test_gzip_is_read_and_a_broken_one_named(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl.gz"
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in PREFERENCES).encode())
    file.write_bytes(content)
    assert len(read_files(tmp_path).pairs) == 9
    for broken in (content[:-20], b"no gzip at all", content[:30] + b"xxxx" + content[34:]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"preferences\.jsonl\.gz.*(cannot be read|not)"):
            read_files(tmp_path)


def _parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_local_parquet_is_read_as_the_same_rows_in_jsonl_are(
    tmp_path: Path, small_tokenizer: Any
) -> None:
    limits = DataConfig(n_pairs=4, n_validation_pairs=2, n_test=2)
    posts, preferences, _ = make_rows(12)
    made = []
    for name, write in (("lines", write_lines), ("parquet", _parquet)):
        end = "jsonl" if name == "lines" else "parquet"
        write(tmp_path / name / f"posts.{end}", posts)
        write(tmp_path / name / f"preferences.{end}", preferences)
        made.append(load(tmp_path / name, tokenizer=small_tokenizer, limits=limits, seed=0))
    lines, parquet = made
    for part in ("sft", "pairs", "validation_pairs", "test"):
        assert getattr(lines, part) == getattr(parquet, part)
    file = _parquet(tmp_path / "comparisons.parquet", COMPARISONS)
    assert len(read_files(file).pairs) == 9
    assert kind_of_source(file) == "text"


def test_parquet_keeps_the_published_parts_that_names_and_folders_tell(tmp_path: Path) -> None:
    _parquet(tmp_path / "data" / "train-00000-of-00001.parquet", POSTS[:2])
    _parquet(tmp_path / "data" / "test-00000-of-00001.parquet", POSTS[2:])
    _parquet(tmp_path / "validation" / "0000.parquet", PREFERENCES)
    _parquet(tmp_path / "other.parquet", [{"anything": 1}])
    corpus = read_files(tmp_path)
    assert {post.split for post in corpus.posts[:-2]} == {"test"}
    assert [post.split for post in corpus.posts[-2:]] == ["train", "train"]
    assert {pair.post.split for pair in corpus.pairs} == {"validation"}
    assert corpus.ignored == ["other.parquet"]
    assert fingerprint(tmp_path / "data") != fingerprint(tmp_path / "validation")


def test_parquet_that_is_none_or_empty_is_named_and_empty_texts_are_counted(tmp_path: Path) -> None:
    broken = tmp_path / "posts.parquet"
    broken.write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match=r"posts\.parquet: cannot be read"):
        read_files(tmp_path)
    _parquet(broken, [*POSTS, {**POSTS[0], "summary": " "}])
    assert read_files(tmp_path).dropped == {"rows with an empty text": 1}
    _parquet(broken, [{**POSTS[0], "title": None}])
    with pytest.raises(InputError, match=r"posts\.parquet, row 0: title = None"):
        read_files(tmp_path)
    pq.write_table(pa.Table.from_pylist(POSTS)[:0], broken)
    with pytest.raises(InputError, match="is empty"):
        read_files(tmp_path)


def test_subreddits_and_spaces_are_not_doubled(tmp_path: Path, small_tokenizer: Any) -> None:
    rows = [{**row, "subreddit": "r/pets"} for row in POSTS]
    write_lines(tmp_path / "posts.jsonl", rows)
    comparisons = [{**row, "info": {**row["info"]}} for row in COMPARISONS]
    del comparisons[0]["info"]["id"]  # edge case of the published files
    write_lines(tmp_path / "batch.json", comparisons)
    limits = DataConfig(n_test=1, n_validation_pairs=3)
    data = load(tmp_path, tokenizer=small_tokenizer, limits=limits, seed=0)
    for example in (*data.sft, *data.pairs, *data.validation_pairs, *data.test):
        assert example.prompt.startswith("SUBREDDIT: r/pets\n\nTITLE: Title ")
        assert example.prompt.endswith("\n\nTL;DR:")
        for text, ids in zip(example.completions, example.completion_ids, strict=True):
            assert small_tokenizer.decode(ids) == f" {text}<|endoftext|>"


def test_identical_and_news_rows_are_dropped_and_counted(
    tmp_path: Path, small_tokenizer: Any
) -> None:
    same = {**PREFERENCES[0], "chosen": " same text", "rejected": "same text "}
    news = {**COMPARISONS[0], "batch": "cnndm0", "info": {"id": "x", "article": "news"}}
    unnamed_news = {**news, "batch": "b"}
    write_lines(tmp_path / "preferences.jsonl", [*PREFERENCES, same])
    named_news = {**news, "batch": "batch0_cnndm", "info": {"id": "x"}}
    write_lines(tmp_path / "batch.json", [news, unnamed_news, named_news, *COMPARISONS])
    write_lines(tmp_path / "posts.jsonl", [*POSTS, POSTS[0]])
    limits = DataConfig(n_test=1, n_validation_pairs=3)
    data = load(tmp_path, tokenizer=small_tokenizer, limits=limits, seed=0)
    assert data.card["dropped"] == {
        "pairs of identical texts": 1,
        "cnndm rows": 3,
    }
    assert data.card["split"]["left_out"]["further references of a post"] == 1
    assert data.card["label_noise"] == {"repeated_pairs": 9, "unanimous": 9, "across_sources": 9}


def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {name: value for name, value in {**row, **values}.items() if value != "absent"}


def summaries(*texts: Any) -> list[dict[str, Any]]:
    return [{"text": text, "policy": "p", "note": None} for text in texts]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("b.json", changed(COMPARISONS[0], summaries="absent"), "lacks summaries"),
        ("b.json", changed(COMPARISONS[0], summaries=summaries("one")), "lacks summaries"),
        ("b.json", changed(COMPARISONS[0], summaries=summaries("one", " ")), "summary is empty"),
        ("b.json", changed(COMPARISONS[0], summaries=summaries("one", None)), "not a text"),
        ("b.json", changed(COMPARISONS[0], choice=2), "choice = 2 is neither 0 nor 1"),
        ("b.json", changed(COMPARISONS[0], choice=None), "choice = None"),
        ("b.json", changed(COMPARISONS[0], choice=True), "choice = True"),
        ("b.json", changed(COMPARISONS[0], choice="0"), "choice = '0'"),
        ("b.json", changed(COMPARISONS[0], choice=[0]), r"choice = \[0\]"),
        ("b.json", changed(COMPARISONS[0], info="absent"), "lacks info"),
        ("b.json", changed(COMPARISONS[0], info={"post": "p"}), "subreddit = None"),
        ("b.json", changed(COMPARISONS[0], split="dev"), "split = 'dev' is none of"),
        ("b.json", ["a", "list"], "not list"),
        ("preferences.jsonl", changed(PREFERENCES[0], chosen="absent"), "chosen summary = None"),
        ("preferences.jsonl", changed(PREFERENCES[0], rejected=""), "rejected summary is empty"),
        ("preferences.jsonl", changed(PREFERENCES[0], title=3), "title = 3 is not a text"),
        ("posts.jsonl", changed(POSTS[0], summary="absent"), "summary = None is not a text"),
        ("posts.jsonl", changed(POSTS[0], summary=" \n"), "summary is empty"),
        ("posts.jsonl", changed(POSTS[0], post="  "), "post is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, name: str, row: Any, message: str
) -> None:
    good = {"b.json": COMPARISONS, "posts.jsonl": POSTS}.get(name, PREFERENCES)[1]
    file = write_lines(tmp_path / name, [good, row])
    with pytest.raises(InputError, match=message) as caught:
        read_files(tmp_path)
    assert str(caught.value).startswith(f"{file}, line 2: ")


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "batch.json", COMPARISONS[:2])
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n{broken\n")
    with pytest.raises(InputError, match=r"batch\.json, line 4: not JSON"):
        read_files(tmp_path)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"batch\.json: is not UTF-8"):
        read_files(tmp_path)


def test_paths_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such path"):
        kind_of_source(tmp_path / "none")
    with pytest.raises(InputError, match="no such path"):
        kind_of_source("../none")
    with pytest.raises(InputError, match="does not exist"):
        read_files(tmp_path / "none")
    with pytest.raises(InputError, match="holds no comparisons"):
        read_files(tmp_path)
    with pytest.raises(InputError, match="needs a tokenizer"):
        open_tokenizer(tmp_path, None)
    empty = tmp_path / "posts.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"posts\.jsonl: is empty"):
        read_files(tmp_path)


def test_fingerprint_follows_content_and_names(small_tldr: Path) -> None:
    before = fingerprint(small_tldr)
    assert before == fingerprint(small_tldr)
    file = small_tldr / "posts.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint(small_tldr) != before


def test_post_key_survives_a_later_cut_and_spelling() -> None:
    text = (
        "It began in May, when my **dog** ran off & never came home again; so I went to look. " * 9
    )
    key = post_key("My dog!", text)
    assert key == post_key("my  DOG", text[:120])
    assert key == post_key("My dog!", text.replace("**", "").upper())
    assert key != post_key("My dogs", text)
    assert key != post_key("My dog!", "Then " + text)
    assert post_key("t", "_" * 900 + text) == post_key("t", text)
