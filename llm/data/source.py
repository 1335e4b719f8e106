"""One entrance for every source of data: a task file, TL;DR files, or hub data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm.data import card as cards
from llm.data.config import DataConfig
from llm.data.example import Dataset, Example, Pair, Post
from llm.data.hub import data_revision, hub_names, read_hub
from llm.data.splits import Split, split_by_post
from llm.data.task_draws import task_dataset, task_tokenizer
from llm.data.task_file import read_task
from llm.data.tldr import data_files, read_files, sha256_of
from llm.data.tokenize import (
    Completion,
    check_tokenizer,
    completions,
    load_tokenizer,
    prompt_text,
    prompts,
)
from llm.errors import InputError


def kind_of_source(source: str | Path) -> str:
    """ "task", "text" (files) or "hub". Raises InputError for what is none of them."""
    path = Path(source)
    if path.exists():
        return "task" if path.is_file() and _is_task(path) else "text"
    if isinstance(source, str) and hub_names(source):
        return "hub"
    raise InputError(f"data {source}: no such path, and no name of a hub data set (owner/name)")


def open_tokenizer(source: str | Path, tokenizer: str | Path | None) -> Any:
    """The tokenizer for a source: a task brings its own, everything else needs one named."""
    if kind_of_source(source) == "task":
        if tokenizer is not None:
            raise InputError(f"{source}: a task has its own tokenizer; leave out {tokenizer}")
        return task_tokenizer(read_task(Path(source)))
    if tokenizer is None:
        raise InputError(f"{source}: text needs a tokenizer (a tokenizer.json, folder or hub name)")
    return load_tokenizer(tokenizer)


def fingerprint(source: str | Path) -> str:
    """A sha256 that changes with the source's content (hub: with names and resolved commits)."""
    if kind_of_source(source) == "hub":
        found = [(name, data_revision(name)) for name in hub_names(str(source)) or ()]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()
    path = Path(source)
    files = [(f.relative_to(path).as_posix(), sha256_of(f)) for f in data_files(path)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def load(source: str | Path, *, tokenizer: Any, limits: DataConfig, seed: int) -> Dataset:
    """Read, check, split by post and tokenise. Raises InputError before any long work.

    source: a theory task.json; a file or folder of TL;DR data; or one or more hub names, comma
    separated. tokenizer: from `open_tokenizer` or `load_tokenizer`. seed: of the split and order
    (text) or of the draws (task).
    """
    kind = kind_of_source(source)
    if kind == "task":
        task = read_task(Path(source))
        if tokenizer is not None and tokenizer.get_vocab() != task_tokenizer(task).get_vocab():
            raise InputError(f"{source}: the tokenizer is not this task's own (`open_tokenizer`)")
        return task_dataset(task, limits, seed)
    check_tokenizer(tokenizer, getattr(tokenizer, "name_or_path", "") or "given")
    corpus = read_files(Path(source)) if kind == "text" else read_hub(hub_names(str(source)) or ())
    references = completions(tokenizer, [post.reference or "" for post in corpus.posts], None)
    longest = limits.max_completion_tokens
    unfit = {text for text, found in references.items() if len(found.ids) > longest}
    split = split_by_post(corpus, limits, seed, unfit=unfit if limits.has_references else ())
    dataset, cuts = _tokenise(split, references, tokenizer, limits)
    dataset.card.update(cards.text_card(corpus, split, dataset, cuts, limits, seed))
    return dataset


def _is_task(path: Path) -> bool:
    """A .json file that is one object, where comparisons are one object a line."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as stream:
        first = stream.readline().strip()
    return first in (b"{", b"{}") or first.startswith(b'{"schema"')


def _tokenise(
    split: Split, references: dict[str, Completion], tokenizer: Any, limits: DataConfig
) -> tuple[Dataset, cards.Cuts]:
    """The data set, its card still empty, and what was cut."""
    every = (*split.pairs, *split.validation_pairs)
    posts = [*split.sft, *split.test, *(pair.post for pair in every)]
    end = limits.prompt_end
    prompt_of = prompts(tokenizer, posts, limits.max_prompt_tokens, end)
    texts = [text for pair in every for text in (pair.chosen, pair.rejected)]
    compared = completions(tokenizer, texts, limits.max_pair_completion_tokens)

    def example(name: str, post: Post, found: list[Completion]) -> Example:
        prompt = prompt_of[prompt_text(post.subreddit, post.title, post.post, end)]
        texts, ids = tuple(c.text for c in found), tuple(c.ids for c in found)
        return Example(name, post.key, prompt.text, prompt.ids, texts, ids)

    def of_posts(part: str, rows: Iterable[Post]) -> tuple[Example, ...]:
        return tuple(
            example(f"{part}/{i}", post, [references[post.reference or ""]])
            for i, post in enumerate(rows)
        )

    def of_pairs(part: str, rows: Iterable[Pair]) -> tuple[Example, ...]:
        return tuple(
            example(f"{part}/{i}", p.post, [compared[p.chosen], compared[p.rejected]])
            for i, p in enumerate(rows)
        )

    dataset = Dataset(
        of_posts("sft", split.sft),
        of_pairs("pairs", split.pairs),
        of_pairs("validation_pairs", split.validation_pairs),
        of_posts("test", split.test),
        card={},
    )
    cuts = cards.Cuts(
        prompts=sum(prompt.cut for prompt in prompt_of.values()),
        pair_completions=sum(c.too_long for c in compared.values()),
    )
    return dataset, cuts
