"""Train, validation and test: by post where the seed divides, as published where a source says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import numpy as np

from llm.data.config import DataConfig
from llm.data.example import Pair, Post
from llm.data.rows import Corpus
from llm.errors import InputError

SHARE = 10  # one in ten is held out, where there is no official split and no number is asked for
Row = TypeVar("Row", Post, Pair)
PARTS = ("train", "validation", "test")
Roles = dict[str, str]  # post key -> "train", "validation" or "test"


@dataclass(frozen=True)
class Split:
    """The rows of each part, in seeded order.

    kind: how test and validation posts were chosen. left_out: reason -> rows that no part can use
    (rows beyond the numbers asked for are not among them). shared: posts in two of train,
    validation and test, before any number limits them: 0 where the seed divides; official splits
    are left as they are.
    """

    sft: tuple[Post, ...]
    pairs: tuple[Pair, ...]
    validation_pairs: tuple[Pair, ...]
    test: tuple[Post, ...]
    kind: str
    left_out: dict[str, int]
    shared: dict[str, int]


def split_by_post(
    corpus: Corpus, limits: DataConfig, seed: int, *, unfit: Container[str | None] = ()
) -> Split:
    """Divide the corpus, deterministic in seed. Raises InputError where there are too few rows.

    unfit: references that are too long for SFT; their posts may still be test posts.

    Official splits stand where the source has a "train" part: every row stays where its source
    puts it, and posts that stand in two parts are counted, not moved. A row that names no part
    follows its post. A part that is then missing is drawn by seed, post by post: test from posts
    with a reference, validation from posts with comparisons; drawn posts leave every other part.
    """
    parts = _Parts(*_official_roles(corpus))
    kind = ["official" if parts.official else "by seed"]
    n_of = Counter(pair.post.key for pair in corpus.pairs)
    if not any(parts.of(post) == "test" for post in corpus.posts):
        kind += ["test by seed"] if parts.official else []
        _draw_test(parts, corpus.posts, n_of, limits.n_test, np.random.default_rng([seed, 0]))
    if not any(parts.of(pair.post) == "validation" for pair in corpus.pairs):
        kind += ["validation by seed"] if parts.official else []
        rng = np.random.default_rng([seed, 1])
        _draw_validation(parts, n_of, limits.n_validation_pairs, rng)
    posts, pairs = _divided(parts, corpus)
    fits = [p for p in posts["train"] if p.reference not in unfit]
    return Split(
        test=_take(posts["test"], "n_test", limits, [seed, 5]),
        validation_pairs=_take(pairs["validation"], "n_validation_pairs", limits, [seed, 4]),
        sft=_take(fits, "n_sft", limits, [seed, 2]) if limits.has_references else (),
        pairs=_take_posts(pairs["train"], limits, [seed, 3]),
        kind=", ".join(kind),
        left_out={
            "training rows of posts held out by seed": parts.moved(corpus),
            "comparisons of test posts": len(pairs["test"]),
            "references of validation posts": len(posts["validation"]),
            "further references of a post": len(corpus.posts) - sum(map(len, posts.values())),
            "references too long for SFT": len(posts["train"]) - len(fits),
        },
        shared=_shared(posts, pairs),
    )


@dataclass(frozen=True)
class _Parts:
    """Which part a row belongs to. drawn: posts that the seed moved."""

    roles: Roles
    official: bool
    drawn: Roles = field(default_factory=dict)

    def of(self, row: Post) -> str:
        """ "train", "validation" or "test": drawn by seed, else the row's own, else its post's."""
        if row.key in self.drawn:
            return self.drawn[row.key]
        return row.split if self.official and row.split is not None else self.roles[row.key]

    def moved(self, corpus: Corpus) -> int:
        """Official training rows whose posts the seed holds out."""
        rows = [*corpus.posts, *(pair.post for pair in corpus.pairs)]
        return sum(row.split == "train" and row.key in self.drawn for row in rows)


def _divided(parts: _Parts, corpus: Corpus) -> tuple[dict[str, list[Post]], dict[str, list[Pair]]]:
    """(posts, comparisons) of each part in file order; of one post's references the first."""
    first: dict[str, dict[str, Post]] = {part: {} for part in PARTS}
    for post in corpus.posts:
        first[parts.of(post)].setdefault(post.key, post)
    pairs: dict[str, list[Pair]] = {part: [] for part in PARTS}
    for pair in corpus.pairs:
        pairs[parts.of(pair.post)].append(pair)
    return {part: list(posts.values()) for part, posts in first.items()}, pairs


def _shared(posts: Mapping[str, list[Post]], pairs: Mapping[str, list[Pair]]) -> dict[str, int]:
    """Posts in two parts: "train & test" -> number."""
    keys = {
        "train": {p.key for p in posts["train"]} | {p.post.key for p in pairs["train"]},
        "validation": {p.post.key for p in pairs["validation"]},
        "test": {p.key for p in posts["test"]},
    }
    return {f"{a} & {b}": len(keys[a] & keys[b]) for a, b in combinations(keys, 2)}


def _official_roles(corpus: Corpus) -> tuple[Roles, bool]:
    """The role of every post by the official splits, if there is a train part; else all train."""
    rows = [*corpus.posts, *(pair.post for pair in corpus.pairs)]
    roles: Roles = dict.fromkeys((row.key for row in rows), "train")
    if not any(row.split == "train" for row in rows):
        return roles, False
    for part in ("validation", "test"):  # test has the last word
        roles.update((row.key, part) for row in rows if row.split == part)
    return roles, True


def _draw_test(
    parts: _Parts,
    posts: Sequence[Post],
    n_pairs_of: Counter[str],
    wanted: int | None,
    rng: np.random.Generator,
) -> None:
    """Draw n posts with a reference for the test; held-out posts that nobody uses go first."""
    spare = {p.key for p in posts if parts.of(p) == "validation" and not n_pairs_of[p.key]}
    train = {p.key for p in posts if parts.of(p) == "train"} - spare
    keys = _shuffled(spare, rng) + _shuffled(train, rng)
    n = (len(keys) + SHARE - 1) // SHARE if wanted is None else wanted
    parts.drawn.update((key, "test") for key in keys[:n])


def _draw_validation(
    parts: _Parts, n_pairs_of: Counter[str], wanted: int | None, rng: np.random.Generator
) -> None:
    """Draw posts for the validation until they hold the wanted number of comparisons."""
    held_out = {key for key, role in (parts.roles | parts.drawn).items() if role != "train"}
    keys = [key for key in n_pairs_of if key not in held_out]
    n = (sum(n_pairs_of[key] for key in keys) + SHARE - 1) // SHARE if wanted is None else wanted
    for key in _shuffled(keys, rng):
        if n <= 0:
            break
        parts.drawn[key] = "validation"
        n -= n_pairs_of[key]


def _shuffled(keys: Iterable[str], rng: np.random.Generator) -> list[str]:
    ordered = sorted(keys)
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _take_posts(pairs: Sequence[Pair], limits: DataConfig, seed: list[int]) -> tuple[Pair, ...]:
    """`limits.n_pairs` comparisons, whole posts in seeded order, the last one cut.

    Whole posts keep the number of prompts, and with it the sampling of online methods, small.
    """
    _check_enough(pairs, "n_pairs", limits)
    rng = np.random.default_rng(seed)
    of_post: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_post.setdefault(pair.post.key, []).append(pair)
    taken = [pair for key in _shuffled(of_post, rng) for pair in of_post[key]][: limits.n_pairs]
    return tuple(taken)


def _take(rows: Sequence[Row], name: str, limits: DataConfig, seed: list[int]) -> tuple[Row, ...]:
    """The first `limits.<name>` rows in seeded order, all if None."""
    _check_enough(rows, name, limits)
    order = np.random.default_rng(seed).permutation(len(rows))
    return tuple(rows[i] for i in order[: getattr(limits, name)])


def _check_enough(rows: Sequence[object], name: str, limits: DataConfig) -> None:
    n = getattr(limits, name)
    if n is not None and n > len(rows):
        what = "comparisons" if name.endswith("pairs") else "posts with a reference summary"
        raise InputError(
            f"{name} = {n}, but the data leave {len(rows)} {what} for it "
            f"(asked for: n_sft = {limits.n_sft}, n_test = {limits.n_test}, "
            f"n_pairs = {limits.n_pairs}, n_validation_pairs = {limits.n_validation_pairs})"
        )
