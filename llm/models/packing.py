"""A batch as one row: every distinct prompt once, followed by all of its distinct completions.

    [ prompt 1 | completion | completion | prompt 2 | completion | ... ]

Nothing is padded: only the last block of the row is filled up (`FILL`). Which tokens see each other
is `llm.models.attention`'s; positions go on from the prompt in each of its completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

BLOCK = 128  # tokens; the row's length is a multiple of it, and attention goes by blocks of it
FILL = -1  # segment of the tokens that fill the last block
Ids = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """One row of T tokens, R distinct completions in it, and the B x K that were asked for."""

    ids: Tensor  # (1, T) int64
    positions: Tensor  # (1, T) the position that the model is told
    segment: Tensor  # (T,) which prompt or completion a token is of; FILL
    prompt: Tensor  # (T,) the segment of the prompt that it belongs to or continues
    places: Tensor  # (R, 1 + C) in the row: the prompt's last token, then the completion's
    completion_ids: Tensor  # (R, C)
    completion_mask: Tensor  # (R, C) 1 = a token, 0 = nothing (places: the last token again)
    member: Tensor  # (B, K) the row of `places` of each completion asked for
    blocks: Tensor  # (T / BLOCK,) int32, how many blocks of keys the queries of a block see
    block_ids: Tensor  # (T / BLOCK, T / BLOCK) int32, which: the first `blocks` of each row

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], *, pad: int) -> Batch:
    """B prompts with K completions each; what is equal stands in the row once.

    pad: any token of the vocabulary, to fill up with. Raises ValueError without rows, for an empty
    prompt or completion, and where prompts have different numbers of completions.
    """
    if not prompts:
        raise ValueError("a batch without rows")
    trees: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    member: list[list[int]] = []
    count = 0
    for prompt, group in zip(prompts, completions, strict=True):
        if not (len(prompt) and group and all(map(len, group))):
            raise ValueError("an empty prompt or completion cannot be scored")
        tree = trees.setdefault(tuple(prompt), {})
        for ids in map(tuple, group):
            if ids not in tree:
                tree[ids], count = count, count + 1
        member.append([tree[tuple(ids)] for ids in group])
    return _laid_out(trees, torch.tensor(member), pad)


def _laid_out(
    trees: dict[tuple[int, ...], dict[tuple[int, ...], int]], member: Tensor, pad: int
) -> Batch:
    """The row of prompts and their completions (completion -> its number)."""
    parts = [
        (ids, number)
        for prompt, tree in trees.items()
        for ids, number in ((prompt, None), *tree.items())
    ]
    row = [token for ids, _ in parts for token in ids]
    empty = -len(row) % BLOCK
    lengths = np.array([*(len(ids) for ids, _ in parts), empty])
    starts = lengths.cumsum() - lengths
    heads = np.array([*(number is None for _, number in parts), True])  # a prompt, or the fill
    owner = np.maximum.accumulate(np.where(heads, np.arange(len(heads)), 0))
    segment = np.arange(len(heads)).repeat(lengths)
    begins = np.where(heads, 0, lengths[owner])  # the position of a part's first token
    ids = np.array([*row, *[pad] * empty])
    position = np.arange(len(ids)) - starts[segment] + begins[segment]
    places, kept = _places(lengths[:-1], starts, owner, heads[:-1])
    found = [number for _, number in parts if number is not None]
    order = np.argsort(found)  # rows by number
    places, kept = places[order], kept[order]
    blocks, block_ids = _visible_blocks(segment, owner[segment], starts, lengths)
    arrays = {
        "ids": ids[None],
        "positions": np.where(segment < len(parts), position, 0)[None],
        "segment": np.where(segment < len(parts), segment, FILL),
        "prompt": owner[segment],
        "places": places,
        "completion_ids": np.where(kept, ids[places[:, 1:]], pad),
        "completion_mask": kept.astype(np.int64),
        "blocks": blocks,
        "block_ids": block_ids,
    }
    return Batch(member=member, **{name: torch.from_numpy(a) for name, a in arrays.items()})


def _places(
    lengths: np.ndarray, starts: np.ndarray, owner: np.ndarray, heads: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the completions in the row's order: (R, 1 + C) `places`, (R, C) whether there is one."""
    rows = np.flatnonzero(~heads)
    steps = np.arange(lengths[rows].max())
    kept = steps < lengths[rows, None]
    last = starts[owner[rows]] + lengths[owner[rows]] - 1
    tokens = starts[rows, None] + np.minimum(steps, lengths[rows, None] - 1)
    return np.column_stack([last, tokens]), kept


def _visible_blocks(
    segment: np.ndarray, prompt: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(how many, which first) blocks of keys hold any token that a block's queries see.

    A token sees its prompt and its own segment, both up to itself: two ranges of blocks.
    """
    token = np.arange(len(segment))
    closed = np.minimum(starts[prompt] + lengths[prompt] - 1, token)
    size = len(segment) // BLOCK
    steps = np.zeros((size, size + 1), dtype=np.int64)
    for low, high in ((starts[prompt], closed), (starts[segment], token)):
        np.add.at(steps, (token // BLOCK, low // BLOCK), 1)
        np.add.at(steps, (token // BLOCK, high // BLOCK + 1), -1)
    seen = steps.cumsum(axis=1)[:, :-1] > 0
    order = np.argsort(~seen, axis=1, kind="stable")
    return seen.sum(axis=1).astype(np.int32), order.astype(np.int32)
