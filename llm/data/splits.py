"""Train, validation and test by post, never by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llm.data.config import DataConfig
from llm.data.example import Pair, Post
from llm.data.rows import Corpus
from llm.errors import InputError

SHARE = 10  # one in ten is held out, where there is no official split and no number is asked for
Row = TypeVar("Row", Post, Pair)
Roles = dict[str, str]  # post key -> "train", "validation" or "test"


@dataclass(frozen=True)
class Split:
    """The rows of each part, in seeded order; no post stands in two of train, validation, test.

    kind: how test and validation posts were chosen. left_out: reason -> rows that no part can use
    (rows beyond the numbers asked for are not among them).
    """

    sft: tuple[Post, ...]
    pairs: tuple[Pair, ...]
    validation_pairs: tuple[Pair, ...]
    test: tuple[Post, ...]
    kind: str
    left_out: dict[str, int]


def split_by_post(
    corpus: Corpus, limits: DataConfig, seed: int, *, unfit: Container[str | None] = ()
) -> Split:
    """Divide the corpus, deterministic in seed. Raises InputError where there are too few rows.

    unfit: references that are too long for SFT; their posts may still be test posts.

    Official splits stand where the source has a "train" part: a post is test if any of its rows
    says so, else validation if any does. A part that is then missing is drawn by seed: test from
    posts with a reference, validation from posts with comparisons; the rest is train.
    """
    posts = tuple({post.key: post for post in reversed(corpus.posts)}.values())[::-1]
    roles, official = _official_roles(corpus)
    kind = ["official" if official else "by seed"]
    n_of = Counter(pair.post.key for pair in corpus.pairs)
    if not any(roles[post.key] == "test" for post in posts):
        kind += ["test by seed"] if official else []
        _draw_test(roles, posts, n_of, limits.n_test, np.random.default_rng([seed, 0]))
    if not any(roles[key] == "validation" for key in n_of):
        kind += ["validation by seed"] if official else []
        rng = np.random.default_rng([seed, 1])
        _draw_validation(roles, n_of, limits.n_validation_pairs, rng)
    rows = [*corpus.posts, *(pair.post for pair in corpus.pairs)]

    def pairs_of(role: str) -> list[Pair]:
        return [pair for pair in corpus.pairs if roles[pair.post.key] == role]

    def posts_of(role: str) -> list[Post]:
        return [post for post in posts if roles[post.key] == role]

    train = posts_of("train")
    return Split(
        test=_take(posts_of("test"), "n_test", limits, [seed, 5]),
        validation_pairs=_take(pairs_of("validation"), "n_validation_pairs", limits, [seed, 4]),
        sft=_take([p for p in train if p.reference not in unfit], "n_sft", limits, [seed, 2]),
        pairs=_take_posts(pairs_of("train"), limits, [seed, 3]),
        kind=", ".join(kind),
        left_out={
            "official training rows of held-out posts": sum(
                row.split == "train" and roles[row.key] != "train" for row in rows
            ),
            "comparisons of test posts": len(pairs_of("test")),
            "references of validation posts": len(posts_of("validation")),
            "further references of a post": len(corpus.posts) - len(posts),
            "references too long for SFT": sum(p.reference in unfit for p in train),
        },
    )


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
    roles: Roles,
    posts: Sequence[Post],
    n_pairs_of: Counter[str],
    wanted: int | None,
    rng: np.random.Generator,
) -> None:
    """Give n posts with a reference the role "test"; held-out posts that nobody uses go first."""
    spare = [p.key for p in posts if roles[p.key] == "validation" and not n_pairs_of[p.key]]
    train = [p.key for p in posts if roles[p.key] == "train"]
    keys = _shuffled(spare, rng) + _shuffled(train, rng)
    n = (len(keys) + SHARE - 1) // SHARE if wanted is None else wanted
    roles.update((key, "test") for key in keys[:n])


def _draw_validation(
    roles: Roles, n_pairs_of: Counter[str], wanted: int | None, rng: np.random.Generator
) -> None:
    """Give posts the role "validation" until they hold the wanted number of comparisons."""
    keys = [key for key in n_pairs_of if roles[key] == "train"]
    n = (sum(n_pairs_of[key] for key in keys) + SHARE - 1) // SHARE if wanted is None else wanted
    for key in _shuffled(keys, rng):
        if n <= 0:
            break
        roles[key] = "validation"
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
