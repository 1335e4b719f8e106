"""What every source turns into: Post and Pair (text), Example and Dataset (token ids)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.data.task import Task


@dataclass(frozen=True)
class Post:
    """A post with, if known, its human reference summary; text as the source has it.

    key: equal for two rows about the same post, whichever file they stand in (`splits.post_key`).
    split: the source's official split ("train", "validation", "test"), None if it has none.
    place: "file, line 3", for messages.
    """

    key: str
    subreddit: str
    title: str
    post: str
    reference: str | None
    split: str | None
    source: str
    place: str


@dataclass(frozen=True)
class Pair:
    """One human comparison of two completions of one post."""

    post: Post
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Example:
    """One tokenised example; ids are plain integers, the trainer pads.

    completions: the text without leading space and EOS. SFT and test: one, the reference; pairs:
    (chosen, rejected). completion_ids: prompt and completion are tokenised apart, so that
    `prompt_ids + completion_ids[i]` is the model's input; the last id is EOS, always.
    """

    example_id: str
    post_id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    completions: tuple[str, ...]
    completion_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Dataset:
    """What the trainer reads. Where the seed divides, no post stands in two parts.

    card: the data card as JSON-ready values. task: the exact task, for a theory task only (there,
    prompts are shared by all parts: only the draws differ).
    """

    sft: tuple[Example, ...]
    pairs: tuple[Example, ...]
    validation_pairs: tuple[Example, ...]
    test: tuple[Example, ...]
    card: dict[str, Any]
    task: Task | None = None
