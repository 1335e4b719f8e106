"""Shared fixtures: real data where it is there; small texts, tokenizer and task made here."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "my dog ate the long letter that she wrote about work, money & love; we can't talk. Zürich 3x"
)


@pytest.fixture(scope="session")
def tldr_dir() -> Path:
    """The folder of real TL;DR files; the test is skipped where it is not."""
    folder = Path(os.environ.get("ROADS_TLDR_DIR", ROOT.parent / "shared" / "data" / "tldr"))
    if not folder.is_dir():
        pytest.skip(f"no real TL;DR data at {folder} (set ROADS_TLDR_DIR)")
    return folder


@pytest.fixture(scope="session")
def pythia_tokenizer(tldr_dir: Path) -> Any:
    """The GPT-NeoX tokenizer that lies beside the real data."""
    from llm.data.tokenize import load_tokenizer

    file = tldr_dir.parent / "tokenizer" / "20B_tokenizer.json"
    if not file.is_file():
        pytest.skip(f"no GPT-NeoX tokenizer at {file}")
    return load_tokenizer(file)


@pytest.fixture(scope="session")
def small_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer.json of about 300 entries, EOS 0, padding 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"SUBREDDIT: r/x\n\nTITLE: {WORDS}\n\nPOST: {WORDS} {WORDS}\n\nTL;DR: {WORDS}"] * 5
    core.train_from_iterator(texts, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    core.save(str(file))
    return file


@pytest.fixture(scope="session")
def small_tokenizer(small_tokenizer_file: Path) -> Any:
    from llm.data.tokenize import load_tokenizer

    return load_tokenizer(small_tokenizer_file)


def make_task(
    *, eos: str | None = None, horizon: int = 3, n_prompts: int = 4, seed: int = 0
) -> dict[str, Any]:
    """A task's JSON object: two tokens (and EOS), random gold reward and reference."""
    rng = np.random.default_rng(seed)
    bits = ["0", "1"]
    leaves = [" ".join(word) for word in itertools.product(bits, repeat=horizon)]
    if eos is not None:
        ended = (itertools.product(bits, repeat=h) for h in range(horizon))
        leaves += [" ".join((*word, eos)) for words in ended for word in words]
    names = [f"p{i}" for i in range(n_prompts)]
    weights = rng.dirichlet(np.full(n_prompts, 5.0))
    return {
        "schema": 1,
        "family": "test",
        "parameters": {"seed": seed},
        "tokens": bits if eos is None else [*bits, eos],
        "horizon": horizon,
        "eos": eos,
        "beta": 1.0,
        "prompts": dict(zip(names, (weights / weights.sum()).tolist(), strict=True)),
        "prompt_tokens": {name: ["ab"[i % 2], "cd"[i // 2 % 2]] for i, name in enumerate(names)},
        "reward": {
            name: dict(zip(leaves, rng.normal(0, 2, len(leaves)).tolist(), strict=True))
            for name in names
        },
        "reference": {
            name: dict(zip(leaves, rng.dirichlet(np.ones(len(leaves))).tolist(), strict=True))
            for name in names
        },
    }


@pytest.fixture
def small_task() -> dict[str, Any]:
    """A task's JSON object: 4 prompts, horizon 3, two tokens."""
    return make_task()


@pytest.fixture(scope="session")
def shared_task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small task's file, one for the session: a study that tests share is made from it."""
    file = tmp_path_factory.mktemp("task") / "task.json"
    file.write_text(json.dumps(make_task()), encoding="utf-8")
    return file


@pytest.fixture
def small_task_file(small_task: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "task.json"
    file.write_text(json.dumps(small_task), encoding="utf-8")
    return file


@pytest.fixture
def small_eos_task_file(tmp_path: Path) -> Path:
    """The same with an EOS token ".": completions of 1 to 3 tokens."""
    file = tmp_path / "eos_task.json"
    file.write_text(json.dumps(make_task(eos=".")), encoding="utf-8")
    return file


def make_rows(n_posts: int, per_post: int = 3) -> tuple[list[dict], list[dict], list[dict]]:
    """(posts, preferences, raw comparisons) over n_posts posts, every row of its own text."""
    posts, preferences, comparisons = [], [], []
    for i in range(n_posts):
        head = {"subreddit": "pets", "title": f"Title {i}", "post": f"Post {i} says\n{WORDS}."}
        posts.append({"id": f"t3_{i}", **head, "summary": f"reference of post {i}"})
        for j in range(per_post):
            chosen, rejected = f"good {j} for {i}", f"much worse {j} for {i}"
            preferences.append({**head, "chosen": chosen, "rejected": rejected})
            comparisons.append(
                {
                    "info": {"id": f"t3_{i}", **head},
                    "split": "valid1",
                    "summaries": [
                        {"text": f" {rejected}", "policy": "a", "note": None},
                        {"text": f" {chosen}", "policy": "b", "note": None},
                    ],
                    "choice": 1,
                    "worker": f"w{j}",
                    "batch": "batch1",
                    "extra": {"confidence": 3},
                }
            )
    return posts, preferences, comparisons


def write_lines(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def small_tldr(tmp_path: Path) -> Path:
    """A folder of posts.jsonl (40 posts), preferences and comparisons (3 rows a post each)."""
    posts, preferences, comparisons = make_rows(40)
    folder = tmp_path / "tldr"
    write_lines(folder / "posts.jsonl", posts)
    write_lines(folder / "preferences.jsonl", preferences[:60])  # posts 0 to 19
    write_lines(folder / "comparisons" / "batch1.json", comparisons[45:])  # posts 15 to 39
    return folder
