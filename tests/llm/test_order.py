"""How rows become passes: cuts by a budget, even cuts of a step, and scores in the rows' order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.models.packing import FILL
from llm.training.objectives import Row
from llm.training.order import Collator, LengthSampler, Rows, Shares, cuts, even_cuts, prompt_groups
from llm.training.train import score

PAD, EOS = 1, 0
costs_of = st.lists(st.integers(1, 30), max_size=12)


def _sums(costs, parts):
    return [sum(costs[i] for i in part) for part in parts]


def _dearest_of_best(costs, count):
    """The dearest part of the best split into at most `count` parts of neighbours: brute force."""
    best = sum(costs)
    for used in range(1, min(count, len(costs)) + 1):
        for inner in itertools.combinations(range(1, len(costs)), used - 1):
            ends = [0, *inner, len(costs)]
            parts = [range(a, b) for a, b in itertools.pairwise(ends)]
            best = min(best, max(_sums(costs, parts)))
    return best


# --- cuts -----------------------------------------------------------------------------------------


def test_cuts_by_hand():
    assert cuts([], 10) == []
    assert cuts([4, 6, 1, 30, 2, 8, 1], 10) == [
        range(0, 2),
        range(2, 3),
        range(3, 4),  # dearer than the budget: alone
        range(4, 6),
        range(6, 7),
    ]


@given(costs=costs_of, budget=st.integers(1, 60))
@settings(max_examples=100)
def test_cuts_are_neighbours_below_the_budget(costs, budget):
    """Everything once, in order; a part above the budget is one row; none could take one more."""
    parts = cuts(costs, budget)
    assert [i for part in parts for i in part] == list(range(len(costs)))
    assert all(len(part) for part in parts)
    sums = _sums(costs, parts)
    assert all(total <= budget or len(part) == 1 for total, part in zip(sums, parts, strict=True))
    for total, (_, after) in zip(sums, itertools.pairwise(parts), strict=False):
        assert total + costs[after[0]] > budget


@given(costs=st.lists(st.integers(1, 30), min_size=1, max_size=8), budget=st.integers(1, 60))
@settings(max_examples=60)
def test_no_split_below_the_budget_has_fewer_parts(costs, budget):
    bound = max(budget, *costs)
    count = len(cuts(costs, bound))
    assert _dearest_of_best(costs, count) <= bound
    assert count == 1 or _dearest_of_best(costs, count - 1) > bound


# --- even cuts ------------------------------------------------------------------------------------


@given(costs=st.lists(st.integers(1, 30), min_size=1, max_size=8), count=st.integers(1, 10))
@settings(max_examples=100)
def test_no_other_split_has_a_cheaper_dearest_part(costs, count):
    parts = even_cuts(costs, count)
    assert len(parts) == count
    assert [i for part in parts for i in part] == list(range(len(costs)))
    assert max(_sums(costs, parts)) == _dearest_of_best(costs, count)


def test_parts_of_as_many_rows_are_dearer():
    """The broken twin of an even cut, which goes by rows."""
    costs = [20, 20, 1, 1, 1, 1]
    by_rows = [range(0, 3), range(3, 6)]
    assert max(_sums(costs, by_rows)) == 41 > max(_sums(costs, even_cuts(costs, 2))) == 24


def test_no_part_is_empty_while_there_are_rows():
    """A pass without rows costs as much as one with a row."""
    parts = even_cuts([1] * 64, 48)
    assert len(parts) == 48
    assert all(parts)
    assert [i for part in parts for i in part] == list(range(64))


def test_more_parts_than_rows_leaves_the_last_ones_empty():
    assert [list(part) for part in even_cuts([3, 5], 4)] == [[0], [1], [], []]


# --- passes of a step -----------------------------------------------------------------------------


@st.composite
def samplers(draw):
    """A sampler of 1 to 40 rows, alone or in groups, and the lengths of its rows."""
    lengths = draw(st.lists(st.integers(2, 40), min_size=1, max_size=40))
    size = draw(st.integers(1, 3))
    groups = [list(range(i, min(i + size, len(lengths)))) for i in range(0, len(lengths), size)]
    return LengthSampler(
        lengths,
        batch_size=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 100)),
        groups=draw(st.sampled_from([groups, None])),
    )


def _passes(sampler, accumulation, processes, epoch):
    """Tokens of every pass of every process in an epoch."""
    ranks = [
        Shares(sampler, accumulation=accumulation, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    sampler.set_epoch(epoch)
    places = (part for rank in ranks for part in rank)
    return [sum(sampler.lengths[place.index] for place in part) for part in places]


@given(
    sampler=samplers(),
    processes=st.integers(1, 4),
    budget=st.integers(1, 200),
    epochs=st.integers(1, 3),
)
@settings(max_examples=80)
def test_no_pass_of_any_step_is_above_the_budget(sampler, processes, budget, epochs):
    """In any epoch; a row dearer than the budget is a bound of its own."""
    accumulation = sampler.passes(budget, processes, epochs)
    assert 1 <= accumulation <= math.ceil(sampler.batch_size / processes)
    allowed = max(budget, *sampler.lengths)
    found = [_passes(sampler, accumulation, processes, epoch) for epoch in range(epochs)]
    assert max(map(max, found)) <= allowed


def _worst(sampler, accumulation, processes, epochs=2):
    return max(max(_passes(sampler, accumulation, processes, epoch)) for epoch in range(epochs))


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_one_pass_fewer_is_above_the_budget(processes):
    lengths = torch.randint(2, 90, (101,), generator=torch.Generator().manual_seed(1)).tolist()
    sampler = LengthSampler(lengths, batch_size=16, seed=0)
    passes = sampler.passes(160, processes, 2)
    assert passes > 2
    assert _worst(sampler, passes, processes) <= 160 < _worst(sampler, passes - 1, processes)


def test_an_epoch_that_needs_more_passes_decides():
    """Which rows share a step differs from epoch to epoch; here the fourth is the worst."""
    lengths = torch.randint(2, 90, (101,), generator=torch.Generator().manual_seed(1)).tolist()
    groups = [list(range(i, min(i + 3, 101))) for i in range(0, 101, 3)]
    sampler = LengthSampler(lengths, batch_size=16, seed=0, groups=groups)
    needed = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        order = [lengths[i] for i in sampler]
        needed.append(max(len(cuts(order[i : i + 16], 120)) for i in range(0, 101, 16)))
    assert needed[:3] == [needed[0]] * 3 < needed[3:4]
    sampler.set_epoch(0)
    for epochs in range(1, 7):
        assert sampler.passes(120, 1, epochs) == max(needed[:epochs])


def test_counting_passes_leaves_the_epoch_as_it_was():
    sampler = LengthSampler([5, 9, 2, 7, 3, 8], batch_size=2, seed=0)
    sampler.set_epoch(4)
    before = list(sampler)
    sampler.passes(9, 2, 3)
    assert sampler.epoch == 4
    assert list(sampler) == before


@given(sampler=samplers(), epoch=st.integers(0, 3))
@settings(max_examples=60)
def test_an_epoch_visits_every_row_once(sampler, epoch):
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(sampler)))


# --- rows of a pass -------------------------------------------------------------------------------


def _rows(n, seed=0, k=2):
    generator = torch.Generator().manual_seed(seed)

    def ids(high):
        length = int(torch.randint(1, high, (1,), generator=generator))
        return tuple(torch.randint(2, 9, (length,), generator=generator).tolist())

    prompts = [ids(30) for _ in range(n // 2 + 1)]
    return [
        Row(prompts[i % len(prompts)], tuple((*ids(12), EOS) for _ in range(k)), (-1.0 * i, 2.0))
        for i in range(n)
    ]


def test_a_pass_has_the_rows_of_its_places():
    rows = _rows(11)
    sampler = LengthSampler([row.tokens for row in rows], batch_size=4, seed=0)
    data, collator = Rows(rows), Collator(PAD)
    assert len(data) == len(rows)
    for places in Shares(sampler, accumulation=2):
        tensors = collator([data[place] for place in places])
        assert tensors["reference"].tolist() == [list(rows[p.index].reference) for p in places]
        assert tensors["share"] == places[0].share
        assert len(tensors["member"]) == len(places)
        held = int((tensors["segment"] != FILL).sum())
        assert held <= sum(rows[p.index].tokens for p in places)  # shared prompts stand once
    alone = Collator(PAD)([(Row(rows[0].prompt, rows[0].completions), 1.0)])
    assert "reference" not in alone


def test_groups_are_the_rows_of_a_prompt():
    rows = _rows(9)
    groups = prompt_groups(rows)
    assert sorted(i for group in groups for i in group) == list(range(9))
    assert groups[0] == [0, 5]
    for group in groups:
        assert len({rows[i].prompt for i in group}) == 1


# --- score ----------------------------------------------------------------------------------------


def _sizes(seen):
    """A measure: each completion's length and 1/100 of its prompt's; notes (rows, tokens) seen."""

    def measure(batch):
        seen.append((len(batch.member), int((batch.segment != FILL).sum())))
        last = batch.positions[0, batch.places[:, 0]] + 1
        return (batch.completion_mask.sum(1) + last / 100)[batch.member]

    return measure


@given(n=st.integers(0, 20), k=st.integers(1, 4), tokens=st.integers(1, 300))
@settings(max_examples=40)
def test_scores_are_in_the_rows_order_and_passes_below_the_budget(n, k, tokens):
    rows = [(row.prompt, row.completions) for row in _rows(n, seed=n, k=k)] if n else []
    seen: list[tuple[int, int]] = []
    fractions: list[float] = []
    values = score(_sizes(seen), rows, pad=PAD, tokens=tokens, report=fractions.append)
    expected = [tuple(len(c) + len(prompt) / 100 for c in group) for prompt, group in rows]
    assert [pytest.approx(e, abs=1e-5) for e in expected] == values
    assert sum(count for count, _ in seen) == len(rows)
    assert all(total <= tokens or count == 1 for count, total in seen)
    assert fractions == sorted(fractions)
    assert fractions[-1:] == [1.0][: len(rows)]


def test_more_tokens_a_pass_are_fewer_passes():
    rows = [(row.prompt, row.completions) for row in _rows(20)]
    counts = []
    for tokens in (1, 80, 10**6):
        seen: list[tuple[int, int]] = []
        score(_sizes(seen), rows, pad=PAD, tokens=tokens)
        counts.append(len(seen))
    assert counts[0] == 20 > counts[1] > counts[2] == 1


def test_an_empty_completion_among_many_is_refused():
    with pytest.raises(ValueError, match="empty"):
        score(_sizes([]), [((2,), [(3, 0)]), ((2,), [()])], pad=PAD, tokens=100)
