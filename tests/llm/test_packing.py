"""The packed row against one made by hand, and its blocks against the dense T x T visibility."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.models.packing import BLOCK, FILL, Batch, collate

PAD = 1


def _parts(prompts, completions):
    """The row, part by part: (ids, first position, place of its prompt among the parts)."""
    parts = []
    for i, prompt in enumerate(prompts):
        if prompt in prompts[:i]:
            continue
        groups = [g for p, g in zip(prompts, completions, strict=True) if p == prompt]
        distinct = []
        for ids in (ids for group in groups for ids in group):
            if ids not in distinct:
                distinct.append(ids)
        head = len(parts)
        parts.append((prompt, 0, head))
        parts += [(ids, len(prompt), head) for ids in distinct]
    return parts


def _visible(parts, length):
    """(length, length) whether a query sees a key: in its part or its prompt's, up to itself."""
    owner = [n for n, (ids, _, _) in enumerate(parts) for _ in ids]
    owner = torch.tensor(owner + [len(parts)] * (length - len(owner)))
    head = torch.tensor([*(head for _, _, head in parts), len(parts)])
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    own, prompt = owner[key] == owner[query], owner[key] == head[owner[query]]
    return (own | prompt) & (key <= query)


def _blocks(seen):
    """For each block of queries, the set of blocks in which any of them sees a key."""
    count = len(seen) // BLOCK
    tiles = seen.view(count, BLOCK, count, BLOCK).any(3).any(1)
    return [set(row.nonzero()[:, 0].tolist()) for row in tiles]


def _listed(batch):
    """The same, as the batch lists them; every row of `block_ids` names every block once."""
    assert batch.blocks.dtype == batch.block_ids.dtype == torch.int32
    everything = list(range(len(batch.blocks)))
    assert all(sorted(row) == everything for row in batch.block_ids.tolist())
    pairs = zip(batch.blocks.tolist(), batch.block_ids.tolist(), strict=True)
    return [set(row[:count]) for count, row in pairs]


def _filled(values, length, fill):
    return [*values, *[fill] * (length - len(values))]


# --- by hand --------------------------------------------------------------------------------------


def test_two_prompts_stand_once_each_followed_by_their_completions():
    batch = collate([[5, 6, 7], [8]], [[[9, 0], [4, 3, 0]], [[0], [2, 0]]], pad=PAD)
    #         prompt   | 1st | 2nd    | p | 3rd | 4th
    ids = [5, 6, 7, 9, 0, 4, 3, 0, 8, 0, 2, 0]
    assert batch.ids.tolist() == [_filled(ids, BLOCK, PAD)]
    assert batch.positions[0, :12].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1, 2]
    segment = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 5]
    assert batch.segment.tolist() == _filled(segment, BLOCK, FILL)
    assert batch.prompt[:12].tolist() == [0] * 8 + [3] * 4
    assert not set(batch.prompt[12:].tolist()) & set(segment)  # the fill continues nothing
    assert batch.places.tolist() == [[2, 3, 4, 4], [2, 5, 6, 7], [8, 9, 9, 9], [8, 10, 11, 11]]
    assert batch.completion_ids.tolist() == [[9, 0, 1], [4, 3, 0], [0, 1, 1], [2, 0, 1]]
    assert batch.completion_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.member.tolist() == [[0, 1], [2, 3]]
    assert batch.blocks.tolist() == [1]
    assert batch.block_ids.tolist() == [[0]]


def test_what_is_equal_stands_once():
    """A prompt that comes again is continued; a completion of another prompt is another one."""
    prompts = [(5, 6), (7,), (5, 6), (5,)]
    completions = [[[3, 0], [4, 0]], [[3, 0], [3, 0]], [[2, 0], [3, 0]], [[6, 3, 0], [3, 0]]]
    batch = collate(prompts, completions, pad=PAD)
    row = [5, 6, 3, 0, 4, 0, 2, 0, 7, 3, 0, 5, 6, 3, 0, 3, 0]
    assert batch.ids[0].tolist() == _filled(row, BLOCK, PAD)
    assert batch.member.tolist() == [[0, 1], [2, 2], [3, 0], [4, 5]]
    assert batch.places[3].tolist() == [1, 6, 7, 7]  # asked for third, stands with the first prompt
    assert batch.completion_ids[batch.member[2, 0]].tolist() == [2, 0, PAD]


def test_lists_and_tuples_are_the_same_ids():
    mixed = collate([[5], (5,)], [[(2, 0)], [[2, 0]]], pad=PAD)
    assert mixed.member.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("tokens", "length"), [(BLOCK - 1, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK)]
)
def test_only_the_end_is_filled(tokens, length):
    batch = collate([[2] * (tokens - 4)], [[[3, 0], [4, 0]]], pad=PAD)
    assert batch.ids.shape == batch.positions.shape == (1, length)
    assert (batch.segment != FILL).tolist() == [True] * tokens + [False] * (length - tokens)
    assert (batch.ids[0, tokens:] == PAD).all()


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        ([[]], [[[0]]]),
        ([[2]], [[[]]]),
        ([[2]], [[[3, 0], []]]),
        ([[2]], [[]]),
        ([[2], [3]], [[[0]], [[]]]),
    ],
)
def test_an_empty_prompt_or_completion_is_refused(prompts, completions):
    with pytest.raises(ValueError, match="empty prompt or completion"):
        collate(prompts, completions, pad=PAD)


def test_prompts_need_the_same_number_of_completions():
    with pytest.raises(ValueError, match="length"):
        collate([[2], [3]], [[[0], [4, 0]], [[0]]], pad=PAD)
    with pytest.raises(ValueError, match="shorter"):
        collate([[2], [3]], [[[0]]], pad=PAD)


def test_a_batch_moves_whole():
    batch = collate([[5]], [[[2, 0]]], pad=PAD)
    moved = batch.to("meta")
    for field in fields(Batch):
        tensor = getattr(moved, field.name)
        assert tensor.device.type == "meta"
        assert tensor.shape == getattr(batch, field.name).shape
        assert tensor.dtype == getattr(batch, field.name).dtype


# --- against brute force --------------------------------------------------------------------------


@st.composite
def layouts(draw, longest=300):
    """Prompts and their completions, lengths 1 to `longest`, some of each equal to another."""
    lengths = st.one_of(st.integers(1, 8), st.integers(1, longest))
    ids = st.builds(lambda n, token: [token] * n, lengths, st.integers(2, 4))
    pool = draw(st.lists(ids, min_size=1, max_size=5))
    count = draw(st.integers(1, 3))
    group = st.lists(st.sampled_from(pool), min_size=count, max_size=count)
    completions = draw(st.lists(group, min_size=1, max_size=4))
    rows = len(completions)
    prompts = draw(st.lists(st.sampled_from(pool), min_size=rows, max_size=rows))
    return prompts, completions


@given(layout=layouts(longest=40))
@settings(max_examples=60)
def test_every_field_is_that_of_the_parts(layout):
    prompts, completions = layout
    batch, parts = collate(prompts, completions, pad=PAD), _parts(prompts, completions)
    length = batch.ids.shape[1]
    row = [token for ids, _, _ in parts for token in ids]
    assert length % BLOCK == 0
    assert 0 <= length - len(row) < BLOCK
    assert batch.ids[0].tolist() == _filled(row, length, PAD)
    positions = [first + i for ids, first, _ in parts for i in range(len(ids))]
    assert batch.positions[0, : len(row)].tolist() == positions
    segment = [n for n, (ids, _, _) in enumerate(parts) for _ in ids]
    assert batch.segment.tolist() == _filled(segment, length, FILL)
    owner = [head for ids, _, head in parts for _ in ids]
    assert batch.prompt[: len(row)].tolist() == owner


@given(layout=layouts(longest=40))
@settings(max_examples=60)
def test_each_completion_asked_for_is_found_in_the_row(layout):
    """Through `member`, `places` and the mask, whatever stands once."""
    prompts, completions = layout
    batch = collate(prompts, completions, pad=PAD)
    asked = {(tuple(p), tuple(c)) for p, g in zip(prompts, completions, strict=True) for c in g}
    assert len(batch.places) == len(asked) == int(batch.member.max()) + 1
    for prompt, group, rows in zip(prompts, completions, batch.member.tolist(), strict=True):
        for ids, row in zip(group, rows, strict=True):
            last, *places = batch.places[row].tolist()
            assert batch.completion_mask[row].tolist() == _filled([1] * len(ids), len(places), 0)
            assert batch.completion_ids[row].tolist() == _filled(ids, len(places), PAD)
            assert batch.ids[0, last - len(prompt) + 1 : last + 1].tolist() == prompt
            assert batch.ids[0, places[0] : places[0] + len(ids)].tolist() == ids
            first = places[0]
            assert places == [first + min(i, len(ids) - 1) for i in range(len(places))]
            assert batch.positions[0, last] == len(prompt) - 1
            assert batch.segment[last] == batch.prompt[last] == batch.prompt[first]


@given(layout=layouts())
@settings(max_examples=60)
def test_blocks_are_those_of_the_dense_mask(layout):
    prompts, completions = layout
    batch = collate(prompts, completions, pad=PAD)
    seen = _visible(_parts(prompts, completions), batch.ids.shape[1])
    assert _listed(batch) == _blocks(seen)


def test_a_block_too_few_is_noticed():
    """Prompt, a completion that fills blocks of its own, one whose queries skip those blocks."""
    prompts, completions = [[2] * BLOCK], [[[3] * 2 * BLOCK, [4] * 20]]
    batch = collate(prompts, completions, pad=PAD)
    expected = _blocks(_visible(_parts(prompts, completions), batch.ids.shape[1]))
    assert _listed(batch) == expected == [{0}, {0, 1}, {0, 1, 2}, {0, 3}]
    fewer = replace(batch, blocks=batch.blocks - torch.tensor([0, 0, 0, 1], dtype=torch.int32))
    assert _listed(fewer) != expected


def test_what_fills_the_row_points_at_no_position_that_a_model_may_lack():
    assert (collate([[5]], [[[2, 0]]], pad=PAD).positions[0, 3:] == 0).all()


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="without rows"):
        collate([], [], pad=PAD)
