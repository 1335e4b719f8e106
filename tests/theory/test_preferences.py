"""Bradley-Terry by hand, and existence of the maximiser against a linear program."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.fit import separating_direction
from theory.preferences import (
    PairData,
    bt_gradient,
    bt_log_likelihood,
    bt_probability,
    comparison_graph,
    sample_pairs,
)
from theory.tree import TokenTree

TREE = TokenTree(("a", "b"), 2, ("x", "y"), (0.5, 0.5))
pair = st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)).filter(
    lambda p: p[1] != p[2]
)
pair_lists = st.lists(pair, min_size=1, max_size=14)


def test_likelihood_by_hand():
    data = PairData.of(TREE, [(0, 1, 0, 2.0), (1, 2, 3, 0.5)])
    r = np.asarray([[0.0, 1.0, 9.0, 9.0], [9.0, 9.0, -1.0, 2.0]])
    first, second = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(3.0))
    np.testing.assert_allclose(bt_probability(r, data), [first, second], atol=1e-15)
    by_hand = 2.0 * math.log(first) + 0.5 * math.log(second)
    assert bt_log_likelihood(r, data) == pytest.approx(by_hand, abs=1e-14)


@given(pair_lists, st.integers(0, 10**6))
def test_the_gradient_is_the_slope_of_the_likelihood(pairs, seed):
    rng = np.random.default_rng(seed)
    data = PairData.of(TREE, [(*p, float(rng.uniform(0.5, 3))) for p in pairs])
    r, move = rng.normal(size=(2, 2, 4))
    step = 1e-6
    slope = bt_log_likelihood(r + step * move, data) - bt_log_likelihood(r - step * move, data)
    assert slope / (2 * step) == pytest.approx(float((bt_gradient(r, data) * move).sum()), abs=1e-7)


@given(pair_lists, st.floats(-5, 5), st.floats(-5, 5))
def test_a_shift_a_prompt_is_not_seen(pairs, first, second):
    data = PairData.of(TREE, [(*p, 1.0) for p in pairs])
    r = np.random.default_rng(0).normal(size=(2, 4))
    moved = r + np.asarray([[first], [second]])
    assert bt_log_likelihood(moved, data) == pytest.approx(bt_log_likelihood(r, data), abs=1e-11)


@given(pair_lists)
def test_existence_by_components_equals_existence_by_linear_program(pairs):
    data = PairData.of(TREE, [(*p, 1.0) for p in pairs])
    d = np.zeros((data.size, 8))
    d[np.arange(data.size), data.prompt * 4 + data.winner] = 1
    d[np.arange(data.size), data.prompt * 4 + data.loser] = -1
    graph = comparison_graph(TREE, data)
    assert graph.exists == (separating_direction(d) is None)
    if graph.witness is not None:
        inside, prompt = set(graph.witness.leaves), graph.witness.prompt
        rows = list(zip(data.prompt, data.winner, data.loser, strict=True))
        assert any(p == prompt and w in inside and x not in inside for p, w, x in rows)
        assert not any(p == prompt and x in inside and w not in inside for p, w, x in rows)


@given(pair_lists)
def test_the_components_are_those_of_networkx(pairs):
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from((p, leaf) for p in range(2) for leaf in range(4))
    graph.add_edges_from(((p, a), (p, b)) for p, a, b in pairs)
    found = comparison_graph(TREE, PairData.of(TREE, [(*p, 1.0) for p in pairs]))
    assert found.n_components == nx.number_connected_components(graph)
    for group in nx.connected_components(graph):
        assert len({int(found.component[node]) for node in group}) == 1


def test_masked_slots_belong_to_no_component():
    tree = TokenTree(("a", "e"), 2, ("x",), (1.0,), eos="e")
    graph = comparison_graph(tree, PairData.of(tree, [(0, 0, 1, 1.0), (0, 1, 0, 1.0)]))
    assert graph.component[0, 2] == -1
    assert (graph.n_components, graph.dimension, graph.exists) == (2, 1, True)


def test_sampled_pairs_follow_bradley_terry():
    r = np.asarray([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, 0.0]])
    data = sample_pairs(TREE, r, 60_000, seed=1)
    assert data.total == 60_000
    cells = {}
    for p, w, x, c in zip(data.prompt, data.winner, data.loser, data.count, strict=True):
        cells[int(p), int(w), int(x)] = float(c)
    assert len(cells) == 24
    for (p, w, x), wins in cells.items():
        n = wins + cells[p, x, w]
        expected = 1 / (1 + math.exp(r[p, x] - r[p, w]))
        assert abs(wins / n - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
        assert abs(n - 5000) < 5 * math.sqrt(5000)


def test_the_same_seed_gives_the_same_pairs():
    r = np.zeros((2, 4))
    one, two, other = (sample_pairs(TREE, r, 50, seed=s) for s in (3, 3, 4))
    assert one.count.tolist() == two.count.tolist()
    assert one.winner.tolist() == two.winner.tolist()
    assert (one.winner.tolist(), one.count.tolist()) != (
        other.winner.tolist(),
        other.count.tolist(),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((2, 0, 1, 1.0), "pair 1: no prompt 2"),
        ((0, 0, 4, 1.0), "pair 1: leaf 4"),
        ((0, 1, 1, 1.0), "pair 1: completion 1 is compared with itself"),
        ((0, 0, 1, 0.0), "pair 1: count must be > 0"),
        ((0, 0, 1, math.nan), "pair 1: count must be > 0"),
    ],
)
def test_bad_pairs_are_refused_by_row(row, message):
    with pytest.raises(InputError, match=message):
        PairData.of(TREE, [(0, 0, 1, 1.0), row])


@given(pair_lists)
def test_members_are_the_components_by_label(pairs):
    graph = comparison_graph(TREE, PairData.of(TREE, [(*p, 1.0) for p in pairs]))
    assert len(graph.members) == graph.n_components
    for label, (prompt, leaves) in enumerate(graph.members):
        assert np.flatnonzero(graph.component[prompt] == label).tolist() == list(leaves)
    assert sum(len(leaves) for _, leaves in graph.members) == 8
