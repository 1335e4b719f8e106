"""Faults that users of other libraries report: lost EOS, merged boundaries, unequal cuts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, trainers

from llm.data.config import DataConfig
from llm.data.example import Dataset, Example
from llm.data.source import load
from llm.data.tokenize import encode, load_tokenizer
from llm.models.packing import collate

LIMITS = DataConfig(n_pairs=60, n_validation_pairs=7, n_test=5, max_prompt_tokens=70)


def everything(data: Dataset) -> tuple[Example, ...]:
    return (*data.sft, *data.pairs, *data.validation_pairs, *data.test)


@pytest.fixture
def merging(tmp_path: Path) -> Any:
    """A tokenizer that splits nowhere before it merges: "DR: refer" may be one token."""
    core = Tokenizer(models.BPE())
    core.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=[chr(i) for i in range(32, 127)] + ["\n", "ü"],
        show_progress=False,
    )
    core.train_from_iterator(
        ["TL;DR: reference of post", "TL;DR: good", "TL;DR: much"] * 9, trainer
    )
    core.save(str(tmp_path / "merging.json"))
    return load_tokenizer(tmp_path / "merging.json")


def test_eos_ends_every_completion_and_padding_is_masked(
    small_tldr: Path, small_tokenizer: Any
) -> None:
    """A padding token that was EOS would be masked together with it, and never learned."""
    data = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    eos, pad = small_tokenizer.eos_token_id, small_tokenizer.pad_token_id
    assert eos != pad
    for example in everything(data):
        for ids in (example.prompt_ids, *(ids[:-1] for ids in example.completion_ids)):
            assert not {eos, pad} & set(ids)
        assert {ids[-1] for ids in example.completion_ids} == {eos}
    batch = collate(
        [e.prompt_ids for e in data.pairs], [e.completion_ids for e in data.pairs], pad=pad
    )
    assert batch.completion_mask[batch.completion_ids == eos].all()
    assert not batch.completion_mask[batch.completion_ids == pad].any()
    assert batch.completion_mask.sum() == (batch.completion_ids != pad).sum()


def test_prompt_and_completion_never_share_a_token(small_tldr: Path, merging: Any) -> None:
    """Tokenised together they would: the ids of both would depend on what stands next to them."""
    limits = replace(LIMITS, max_prompt_tokens=1000)
    data = load(small_tldr, tokenizer=merging, limits=limits, seed=0)
    merged = 0
    for example in everything(data):
        assert example.prompt_ids == encode(merging, [example.prompt])[0]
        for text, ids in zip(example.completions, example.completion_ids, strict=True):
            assert ids[:-1] == encode(merging, [f" {text}"])[0]
            together = encode(merging, [f"{example.prompt} {text}"])[0]
            merged += together != example.prompt_ids + ids[:-1]
    assert merged > 0  # the fault is there to be made


def test_prompts_are_cut_alike_wherever_a_post_stands(
    small_tldr: Path, small_tokenizer: Any
) -> None:
    """SFT, preferences and test: one prompt a post; and a long prompt shortens no completion."""
    for name in ("posts.jsonl", "preferences.jsonl", "comparisons/batch1.json"):
        file = small_tldr / name
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            about = row.get("info", row)
            times = 1 + int(about["title"].split()[1]) % 4
            about["post"] = "\n".join([about["post"]] * times)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=0)
    assert data.card["cut"]["prompts"] > 0
    prompts = {example.post_id: example.prompt_ids for example in data.sft}
    shared = [example for example in data.pairs if example.post_id in prompts]
    assert len(shared) > 20
    assert all(example.prompt_ids == prompts[example.post_id] for example in shared)
    assert data.card["split"]["train_posts_with_several_prompts"] == 0
    whole = load(
        small_tldr,
        tokenizer=small_tokenizer,
        limits=replace(LIMITS, max_prompt_tokens=5000),
        seed=0,
    )
    for cut, uncut in zip(everything(data), everything(whole), strict=True):
        assert cut.completion_ids == uncut.completion_ids
        assert cut.example_id == uncut.example_id


def test_posts_that_sources_spell_differently_are_counted(
    small_tldr: Path, small_tokenizer: Any
) -> None:
    """As re-packaged preferences do, which leave out empty lines: no rule of cutting mends that."""
    file = small_tldr / "preferences.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows[:30]:
        row["post"] = row["post"].replace("\n", " ")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(
        small_tldr, tokenizer=small_tokenizer, limits=replace(LIMITS, max_prompt_tokens=512), seed=0
    )
    spelled: dict[str, set[str]] = {}
    for example in (*data.sft, *data.pairs):
        spelled.setdefault(example.post_id, set()).add(example.prompt)
    counted = data.card["split"]["train_posts_with_several_prompts"]
    assert 0 < counted == sum(len(found) == 2 for found in spelled.values()) <= 10
