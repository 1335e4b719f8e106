"""One row of any TL;DR format into a Post or a Pair; every fault names its place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.data.example import Pair, Post
from llm.errors import InputError

KEY_LETTERS = 60  # of the post's beginning: enough to tell posts apart, too few for a later cut
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "valid1", "valid2"), "validation"
)
NEWS = re.compile(r"TITLE: .*\n+TL;DR:\s*", re.DOTALL)  # an article: no subreddit, no POST
PROMPT = re.compile(r"SUBREDDIT: (\S+)\s+TITLE: (.*?)\n+POST: (.*?)\n+TL;DR:\s*", re.DOTALL)
NO_LETTER = re.compile(r"[\W_]+")


@dataclass
class Corpus:
    """What was read so far, in file order. dropped: reason -> rows; sources: one record a file.

    drops_empty: rows with an empty text are dropped and counted, where nobody can repair them (hub
    data); else they are an error.
    """

    posts: list[Post] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    sources: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    drops_empty: bool = False


class _EmptyTextError(InputError):
    """A text that is there and holds nothing."""


def post_key(title: str, post: str) -> str:
    """Equal for two copies of one post, even where one was cut later in its text.

    Letters and digits only, lower case: the whole title and the first 60 of the post.
    """
    start = _letters(post[: 10 * KEY_LETTERS])  # as good as always long enough, and fast
    if len(start) < KEY_LETTERS:
        start = _letters(post)
    return f"{_letters(title)}|{start[:KEY_LETTERS]}"


def _letters(text: str) -> str:
    return NO_LETTER.sub("", text.lower())


def kind_of(row: Mapping[str, Any]) -> str | None:
    """The format of a row by its columns; None if it is none of those read here."""
    columns = set(row)
    if {"summaries", "choice", "info"} & columns and "chosen" not in columns:
        return "comparisons"
    if {"chosen", "rejected"} <= columns:
        return "prompt preferences" if "prompt" in columns else "preferences"
    if {"prompt", "completion"} <= columns:
        return "prompt posts"
    return "posts" if {"post", "summary"} <= columns else None


def add_row(
    corpus: Corpus, row: Any, kind: str, source: str, place: str, split: str | None
) -> None:
    """Parse one row and put it where it belongs. Raises InputError naming the place."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: a row is a JSON object, not {type(row).__name__}")
    try:
        _add(corpus, row, kind, source, place, split)
    except _EmptyTextError:
        if not corpus.drops_empty:
            raise
        corpus.dropped["rows with an empty text"] += 1


def _add(
    corpus: Corpus, row: dict[str, Any], kind: str, source: str, place: str, split: str | None
) -> None:
    if kind == "prompt preferences" and _is_news(row.get("prompt")):
        corpus.dropped["cnndm rows"] += 1
    elif kind == "comparisons":
        _add_comparison(corpus, row, source, place, split)
    elif kind in ("preferences", "prompt preferences"):
        post = _post(_fields(row, kind, place), None, split, source, place)
        _add_pair(corpus, post, row.get("chosen"), row.get("rejected"), place)
    else:
        summary = row.get("summary" if kind == "posts" else "completion")
        reference = _completion(summary, "summary", place)
        corpus.posts.append(_post(_fields(row, kind, place), reference, split, source, place))


def _add_comparison(
    corpus: Corpus, row: dict[str, Any], source: str, place: str, split: str | None
) -> None:
    """OpenAI's raw comparison: info, summaries[2], choice. News articles (cnndm) are dropped."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, dict):
        raise InputError(f"{place}: lacks info")
    if "cnndm" in str(row.get("batch", "")) or (info.get("article") and not info.get("post")):
        corpus.dropped["cnndm rows"] += 1
        return
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise InputError(f"{place}: lacks summaries (a list of two)")
    if choice not in (0, 1) or isinstance(choice, bool) or not isinstance(choice, int):
        raise InputError(f"{place}: choice = {choice!r} is neither 0 nor 1")
    texts = [s.get("text") if isinstance(s, dict) else None for s in summaries]
    named = row.get("split")
    if split is None and named is not None:
        if named not in SPLITS:
            raise InputError(f"{place}: split = {named!r} is none of {', '.join(SPLITS)}")
        split = SPLITS[named]
    post = _post(info, None, split, source, place)
    _add_pair(corpus, post, texts[choice], texts[1 - choice], place)


def _add_pair(corpus: Corpus, post: Post, chosen: Any, rejected: Any, place: str) -> None:
    """Identical texts hold no preference: dropped and counted."""
    chosen = _completion(chosen, "chosen summary", place)
    rejected = _completion(rejected, "rejected summary", place)
    if chosen == rejected:
        corpus.dropped["pairs of identical texts"] += 1
    else:
        corpus.pairs.append(Pair(post, chosen, rejected))


def _is_news(prompt: Any) -> bool:
    """Whether a complete prompt is about a news article, as a re-packaged data set holds them."""
    return isinstance(prompt, str) and NEWS.fullmatch(prompt) is not None


def _fields(row: dict[str, Any], kind: str, place: str) -> dict[str, Any]:
    """subreddit, title and post, taken out of a complete prompt where the row holds one."""
    if not kind.startswith("prompt"):
        return row
    found = PROMPT.fullmatch(row["prompt"]) if isinstance(row.get("prompt"), str) else None
    if not found:
        raise InputError(f"{place}: prompt is not 'SUBREDDIT: ... TITLE: ... POST: ... TL;DR:'")
    return dict(zip(("subreddit", "title", "post"), found.groups(), strict=True))


def _post(
    row: Mapping[str, Any], reference: str | None, split: str | None, source: str, place: str
) -> Post:
    for name in ("subreddit", "title", "post"):
        if not isinstance(row.get(name), str):
            raise InputError(f"{place}: {name} = {row.get(name)!r} is not a text")
    for name in ("subreddit", "post"):
        if not row[name].strip():
            raise _EmptyTextError(f"{place}: {name} is empty")
    key = post_key(row["title"], row["post"])
    subreddit = row["subreddit"].strip().removeprefix("r/")
    return Post(key, subreddit, row["title"], row["post"], reference, split, source, place)


def _completion(text: Any, what: str, place: str) -> str:
    """A completion without white space around it."""
    if not isinstance(text, str):
        raise InputError(f"{place}: {what} = {text!r} is not a text")
    if not text.strip():
        raise _EmptyTextError(f"{place}: {what} is empty")
    return text.strip()
