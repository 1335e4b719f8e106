"""Splits: by post, deterministic, official ones kept, too little refused; the real files whole."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.config import DataConfig
from llm.data.example import Dataset, Pair, Post
from llm.data.rows import Corpus
from llm.data.source import load
from llm.data.splits import split_by_post
from llm.errors import InputError

LIMITS = DataConfig(n_sft=10, n_pairs=20, n_validation_pairs=7, n_test=5)


def corpus_of(posts: list[tuple[int, str | None]], pairs: list[tuple[int, str | None]]) -> Corpus:
    """A corpus from (post number, official split) of every reference and every comparison."""

    def post(i: int, split: str | None, reference: str | None) -> Post:
        return Post(f"k{i}", "s", f"t{i}", f"p{i}", reference, split, "f", f"f, line {i}")

    made = Corpus()
    made.posts = [post(i, split, f"reference {i}") for i, split in posts]
    made.pairs = [Pair(post(i, s, None), f"c{j}", f"r{j}") for j, (i, s) in enumerate(pairs)]
    return made


def parts(data: Dataset) -> tuple[set[str], set[str], set[str]]:
    train = {e.post_id for e in (*data.sft, *data.pairs)}
    return train, {e.post_id for e in data.validation_pairs}, {e.post_id for e in data.test}


def assert_disjoint(data: Dataset) -> None:
    train, validation, test = parts(data)
    assert not train & validation
    assert not train & test
    assert not validation & test


@settings(max_examples=60, deadline=None)
@given(
    posts=st.lists(st.integers(0, 30), max_size=40),
    pairs=st.lists(st.integers(10, 45), max_size=60),
    seed=st.integers(0, 5),
    official=st.booleans(),
    data=st.data(),
)
def test_no_post_in_two_parts(
    posts: list[int], pairs: list[int], seed: int, official: bool, data: st.DataObject
) -> None:
    names = ["train", "validation", "test"] if official else [None, "validation"]
    draw = st.sampled_from(names)
    corpus = corpus_of([(i, data.draw(draw)) for i in posts], [(i, data.draw(draw)) for i in pairs])
    split = split_by_post(corpus, DataConfig(), seed)
    parts = {
        "train": {p.key for p in split.sft} | {p.post.key for p in split.pairs},
        "validation": {p.post.key for p in split.validation_pairs},
        "test": {p.key for p in split.test},
    }
    for (a, first), (b, second) in combinations(parts.items(), 2):
        assert len(first & second) == split.shared[f"{a} & {b}"]
        assert official or not first & second
    drawn = [part for part in ("test", "validation") if f"{part} by seed" in split.kind]
    assert all(not parts[part] & parts[other] for part in drawn for other in {*parts} - {part})
    assert len({p.key for p in split.sft}) == len(split.sft)
    assert split == split_by_post(corpus, DataConfig(), seed)


def test_split_by_seed_of_small_files(small_tldr: Path, small_tokenizer: Any) -> None:
    data = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=1)
    again = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=1)
    other = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=2)
    assert_disjoint(data)
    sizes = [len(x) for x in (data.sft, data.pairs, data.validation_pairs, data.test)]
    assert sizes == [10, 20, 7, 5]
    assert data == again
    assert parts(other)[2] != parts(data)[2]
    assert data.card["split"]["kind"] == "by seed"
    assert data.card["overlap"]["comparisons/batch1.json & preferences.jsonl"] == 5
    assert data.card["overlap"]["comparisons/batch1.json & posts.jsonl"] == 25
    assert data.card["length_quantiles"]["prompt_tokens"]["1"] <= 512
    json.dumps(data.card, allow_nan=False)


def test_held_out_posts_do_not_depend_on_the_training_sizes(
    small_tldr: Path, small_tokenizer: Any
) -> None:
    few = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=1)
    limits = DataConfig(n_validation_pairs=7, n_test=5)
    whole = load(small_tldr, tokenizer=small_tokenizer, limits=limits, seed=1)
    assert (few.test, few.validation_pairs) == (whole.test, whole.validation_pairs)
    assert whole.sft[:10] == few.sft
    assert whole.pairs[:20] == few.pairs


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("n_sft", "n_sft = 36, but the data leave 3"),
        ("n_pairs", "n_pairs = 1000, but the data leave"),
        ("n_validation_pairs", "n_validation_pairs = 1000, but the data leave"),
        ("n_test", "n_test = 41, but the data leave 40"),
    ],
)
def test_too_little_data_is_refused(
    small_tldr: Path, small_tokenizer: Any, field: str, what: str
) -> None:
    number = int(what.split(" = ")[1].split(",")[0])
    limits = DataConfig(**{"n_test": 5, "n_validation_pairs": 7, field: number})
    with pytest.raises(InputError, match=what):
        load(small_tldr, tokenizer=small_tokenizer, limits=limits, seed=0)


def test_official_splits_stand_and_leaks_are_counted() -> None:
    corpus = corpus_of(
        [(0, "train"), (1, "train"), (2, "validation"), (3, "test"), (4, "test"), (5, "train")],
        [
            (0, "train"),
            (1, "validation"),
            (3, "train"),
            (3, "train"),
            (6, "train"),
            (7, None),
            (4, "validation"),
        ],
    )
    split = split_by_post(corpus, DataConfig(), 0)
    assert split.kind == "official"
    assert {p.key for p in split.sft} == {"k0", "k1", "k5"}
    assert {p.post.key for p in split.pairs} == {"k0", "k3", "k6", "k7"}
    assert {p.post.key for p in split.validation_pairs} == {"k1", "k4"}
    assert {p.key for p in split.test} == {"k3", "k4"}
    assert split.shared == {"train & validation": 1, "train & test": 1, "validation & test": 1}
    assert split.left_out == {
        "training rows of posts held out by seed": 0,
        "comparisons of test posts": 0,
        "references of validation posts": 1,
        "further references of a post": 0,
        "references too long for SFT": 0,
    }


def test_a_row_of_no_part_follows_its_post() -> None:
    corpus = corpus_of([(0, "train"), (1, "test")], [(1, None), (2, None), (2, "validation")])
    split = split_by_post(corpus, DataConfig(), 0)
    assert [pair.post.key for pair in split.validation_pairs] == ["k2", "k2"]
    assert split.left_out["comparisons of test posts"] == 1
    assert not split.pairs


def test_a_missing_test_part_is_drawn_from_unused_validation_posts() -> None:
    corpus = corpus_of(
        [(i, "train") for i in range(20)] + [(i, "validation") for i in range(20, 24)],
        [(i, "train") for i in range(10)] + [(20, "validation")],
    )
    split = split_by_post(corpus, DataConfig(n_test=3), 0)
    assert split.kind == "official, test by seed"
    assert {p.key for p in split.test} == {"k21", "k22", "k23"}
    assert len(split.sft) == 20


def test_a_part_that_is_drawn_leaves_training() -> None:
    corpus = corpus_of([(i, "train") for i in range(20)], [(i, "train") for i in range(10)])
    split = split_by_post(corpus, DataConfig(n_test=5, n_validation_pairs=3), 0)
    assert split.kind == "official, test by seed, validation by seed"
    assert split.shared == {"train & validation": 0, "train & test": 0, "validation & test": 0}
    assert len(split.sft) == 20 - 5 - 3
    moved = 5 + 3 + len(corpus.pairs) - len(split.pairs)
    assert split.left_out["training rows of posts held out by seed"] == moved


def test_references_too_long_for_sft_are_left_out_and_counted(
    small_tldr: Path, small_tokenizer: Any
) -> None:
    file = small_tldr / "posts.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows[:12]:
        row["summary"] = row["summary"] + " x" * 60
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    limits = DataConfig(n_test=5, n_validation_pairs=7)
    data = load(small_tldr, tokenizer=small_tokenizer, limits=limits, seed=0)
    left_out = data.card["split"]["left_out"]["references too long for SFT"]
    kept_in_test = sum(len(e.completion_ids[0]) > 53 for e in data.test)
    assert left_out > 0
    assert all(len(e.completion_ids[0]) <= 53 for e in data.sft)
    assert left_out + kept_in_test <= 12
    with pytest.raises(InputError, match="n_sft = 34"):
        load(small_tldr, tokenizer=small_tokenizer, limits=DataConfig(n_sft=34), seed=0)


def test_every_cut_is_in_the_card(small_tldr: Path, small_tokenizer: Any) -> None:
    limits = DataConfig(
        max_prompt_tokens=60, max_pair_completion_tokens=8, n_test=5, n_validation_pairs=7
    )
    data = load(small_tldr, tokenizer=small_tokenizer, limits=limits, seed=0)
    prompts = {e.prompt for e in (*data.sft, *data.pairs, *data.validation_pairs, *data.test)}
    assert max(len(e.prompt_ids) for e in data.pairs) <= 60
    assert data.card["counts"]["truncated"] == len(prompts)  # every post is longer than that
    texts = {t for e in (*data.pairs, *data.validation_pairs) for t in e.completion_ids}
    assert max(map(len, texts)) == 8
    assert data.card["cut"]["pair_completions"] > 0


def test_two_words_have_prompts_and_no_sft(small_tldr: Path, small_tokenizer: Any) -> None:
    """Posts, comparisons and test posts stay those of the summaries; references are whole."""
    common = {"n_pairs": 20, "n_validation_pairs": 7, "n_test": 5}
    plain = DataConfig(n_sft=10, **common)
    words = DataConfig(n_sft=10, max_completion_tokens=5, prompt_end="Two-Word TL;DR:", **common)
    one = load(small_tldr, tokenizer=small_tokenizer, limits=plain, seed=1)
    two = load(small_tldr, tokenizer=small_tokenizer, limits=words, seed=1)
    assert two.sft == ()
    for part in ("pairs", "validation_pairs", "test"):
        for a, b in zip(getattr(one, part), getattr(two, part), strict=True):
            assert (a.post_id, a.completion_ids) == (b.post_id, b.completion_ids)
            assert b.prompt == a.prompt.removesuffix("TL;DR:") + "Two-Word TL;DR:"
    assert two.card["split"]["left_out"]["references too long for SFT"] == 0
    assert any("no SFT" in note for note in two.card["notes"])
    assert not any("no SFT" in note for note in one.card["notes"])


# --- the real files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tldr_dir: Path, pythia_tokenizer: Any) -> Dataset:
    limits = DataConfig(n_sft=1500, n_pairs=6000, n_validation_pairs=400, n_test=200)
    return load(tldr_dir, tokenizer=pythia_tokenizer, limits=limits, seed=0)


def test_real_files_hold_a_whole_study(real: Dataset, pythia_tokenizer: Any) -> None:
    sizes = [len(x) for x in (real.sft, real.pairs, real.validation_pairs, real.test)]
    assert sizes == [1500, 6000, 400, 200]
    assert_disjoint(real)
    for e in (*real.sft, *real.pairs, *real.validation_pairs, *real.test):
        assert len(e.prompt_ids) <= 512
        assert 0 not in e.prompt_ids
        assert not any("  " in pythia_tokenizer.decode(ids[:1]) for ids in e.completion_ids)
        assert all(ids[-1] == 0 and 0 not in ids[:-1] for ids in e.completion_ids)
        assert "r/r/" not in e.prompt[:20]


def test_real_overlaps_and_label_noise(real: Dataset, tldr_dir: Path) -> None:
    """The overlaps that shared pieces of 60 letters anywhere in the texts give as well."""
    overlap = real.card["overlap"]
    files = ["comparisons/batch13.json", "posts.jsonl", "preferences_10k.jsonl.gz"]
    found = [overlap[f"{a} & {b}"] for i, a in enumerate(files) for b in files[i + 1 :]]
    assert found == [296, 198, 392]
    from llm.data.card import label_noise
    from llm.data.tldr import read_files

    batch = label_noise(read_files(tldr_dir / "comparisons" / "batch13.json").pairs)
    assert (batch["repeated_pairs"], batch["unanimous"]) == (40, 14)
