"""Complexity of rewards and of their soft-optimal policies against definitions and known values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.complexity import (
    WalshCount,
    count_coefficients,
    generator_complexity,
    label_values,
    open_prefixes,
    strings,
    token_bits,
    verifier_complexity,
    walsh_coefficients,
)
from theory.errors import InputError
from theory.families import Automata, Coverage, GroundTruth, Lookup, Sat, Walsh
from theory.soft import soft_value_iteration
from theory.tree import TokenTree
from theory.walsh import all_bits, features, subsets

BINARY = TokenTree(("0", "1"), 4, ("x",), (1.0,))
ENDING = TokenTree(("a", "b", "c", "."), 2, ("x",), (1.0,), eos=".")
THREE = TokenTree(("a", "b", "."), 3, ("x",), (1.0,), eos=".")
LIMITED = TokenTree(("a", "b"), 3, ("x",), (1.0,), forbidden=(("a", "b"), ("b", "a", "a")))
TREES = (BINARY, ENDING, THREE, LIMITED)


def truth_of(tree: TokenTree, reward: np.ndarray) -> GroundTruth:
    table = np.where(tree.leaf_mask, reward, 0.0).reshape(tree.n_prompts, -1)
    return GroundTruth("any", {}, tree, table, np.zeros((*table.shape, 0)), None)


def drawn(tree: TokenTree, seed: int, levels: int = 2) -> GroundTruth:
    """A reward of few different values, so that prefixes do fall together."""
    return truth_of(tree, np.random.default_rng(seed).integers(levels, size=tree.n_leaves) * 1.0)


# --- Walsh scale ----------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(0, 2**32))
def test_the_fast_transform_is_the_mean_against_every_walsh_function(n: int, seed: int):
    values = np.random.default_rng(seed).normal(size=2**n)
    terms = subsets(n, n) if n else ()
    table = features(all_bits(n), terms)
    coefficients = walsh_coefficients(values)
    assert coefficients[0] == pytest.approx(values.mean(), abs=1e-12)
    for term, column in zip(terms, table.T, strict=True):
        place = sum(1 << (n - 1 - i) for i in term)
        assert coefficients[place] == pytest.approx(float(np.mean(values * column)), abs=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9), st.sampled_from([0.01, 0.1, 0.5]))
def test_the_bulk_is_the_fewest_coefficients_that_hold_the_variance(values, residual: float):
    power = [value * value for value in values]
    fewest = next(
        k
        for k in range(len(power) + 1)
        if any(
            sum(power) - sum(kept) <= residual * sum(power)
            for kept in itertools.combinations(power, k)
        )
    )
    tables = np.split(np.array(values, dtype=np.float64), [len(values) // 2])
    count = count_coefficients(tables, 1e-9, residual)
    assert count == WalshCount(float(sum(p > 0 for p in power)), float(fewest))


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_a_polynomial_has_all_coefficients_up_to_its_degree_and_q_more(degree: int):
    truth = Walsh(bits=6, degree=degree, horizon=6).draw()
    verifier, generator = verifier_complexity(truth), generator_complexity(truth, 1.0)
    assert verifier.walsh is not None
    assert generator.walsh_q is not None
    assert generator.walsh_logits is not None
    own = sum(math.comb(6, j) for j in range(1, degree + 1))
    assert verifier.walsh.nonzero == own
    assert verifier.walsh.bulk <= own
    if degree == 1:  # V is linear in the prefix: level h has h + 1 coefficients, one of its token
        assert generator.walsh_q.nonzero == 21
        assert generator.walsh_logits.nonzero == 6
    elif degree == 6:  # a lookup table: nothing can have more, and the logits have no more than r
        assert generator.walsh_q.nonzero == sum(2**h - 1 for h in range(1, 7))
        assert generator.walsh_logits.nonzero == own == 63
    else:
        assert own < generator.walsh_logits.nonzero < generator.walsh_q.nonzero


def test_a_parity_is_one_coefficient_for_both():
    last = truth_of(BINARY, np.prod(1.0 - 2.0 * all_bits(4), axis=1))
    verifier, generator = verifier_complexity(last), generator_complexity(last, 0.5)
    assert verifier.walsh == generator.walsh_q == generator.walsh_logits == WalshCount(1.0, 1.0)
    early = truth_of(BINARY, np.prod(1.0 - 2.0 * all_bits(4)[:, :2], axis=1))
    generator = generator_complexity(early, 0.5)
    assert generator.walsh_q == WalshCount(3.0, 3.0)  # Q carries it through levels 1, 2, 3
    assert generator.walsh_logits == WalshCount(1.0, 1.0)


def test_at_horizon_one_the_policy_has_the_coefficients_of_the_reward():
    truth = Walsh(bits=6, degree=2, horizon=1).draw()
    generator = generator_complexity(truth, 0.7)
    assert generator.walsh_q == generator.walsh_logits == verifier_complexity(truth).walsh


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.floats(0.3, 3.0))
def test_coefficients_of_q_are_those_of_soft_value_iteration(seed: int, beta: float):
    truth = drawn(BINARY, seed, levels=5)
    q = [np.asarray(v)[0] for v in soft_value_iteration(BINARY, truth.reward, beta=beta).values]
    every = logits = 0
    for h in range(4):
        terms = subsets(h + 1, h + 1)
        c = features(all_bits(h + 1), terms).T @ q[h + 1] / 2 ** (h + 1)
        keep = np.abs(c) > 1e-8
        every += keep.sum()
        logits += sum(h in term for term, k in zip(terms, keep, strict=True) if k)
    generator = generator_complexity(truth, beta)
    assert generator.walsh_q is not None
    assert generator.walsh_logits is not None
    assert generator.walsh_q.nonzero == every
    assert generator.walsh_logits.nonzero == logits


def test_strings_are_read_up_to_their_first_eos():
    for tree in (ENDING, THREE):
        for slot, node in enumerate(strings(tree)[-1]):
            digits = [slot // tree.vocab**k % tree.vocab for k in reversed(range(tree.horizon))]
            words = [tree.tokens[d] for d in digits]
            cut = words[: words.index(".") + 1] if "." in words else words
            assert tree.leaf_index(cut) == node


def test_only_whole_bits_have_walsh_coefficients():
    assert [token_bits(tree) for tree in TREES] == [1, 2, None, None]
    assert verifier_complexity(drawn(THREE, 0)).walsh is None
    assert generator_complexity(drawn(THREE, 0), 1.0).walsh_q is None


# --- states ---------------------------------------------------------------------------------------


def prefixes(tree: TokenTree, length: int) -> list[tuple[str, ...]]:
    leaves = [tree.leaf_tokens(int(i)) for i in tree.leaves]
    return sorted({words[:length] for words in leaves if len(words) > length})


def tails(truth: GroundTruth, prefix: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    tree, h = truth.tree, len(prefix)
    named = {tree.leaf_tokens(int(i)): float(truth.reward[0, i]) for i in tree.leaves}
    return {words[h:]: r for words, r in named.items() if words[:h] == prefix and len(words) > h}


def frozen(table: dict[tuple[str, ...], float], shift: float = 0.0) -> tuple:
    return tuple(sorted((words, round(r - shift, 6)) for words, r in table.items()))


@given(st.sampled_from(TREES), st.integers(0, 2**32), st.integers(2, 3))
def test_states_are_the_classes_of_rewards_ahead(tree: TokenTree, seed: int, levels: int):
    truth = drawn(tree, seed, levels)
    every = [[tails(truth, p) for p in prefixes(tree, h)] for h in range(tree.horizon)]
    verifier, generator = verifier_complexity(truth), generator_complexity(truth, 0.8)
    rewards = {float(r) for r in truth.reward[0, tree.leaves]}
    exact = [len({frozen(table) for table in level}) for level in every]
    assert verifier.states_by_level == (*exact, len(rewards))
    shifted = [len({frozen(t, max(t.values())) for t in level}) for level in every]
    assert generator.states_by_level == tuple(shifted)
    assert all(g <= v for g, v in zip(shifted, exact, strict=True))
    assert [int(live.sum()) for live in open_prefixes(tree)] == [len(level) for level in every]


@given(st.sampled_from(TREES), st.integers(0, 2**32))
def test_rows_are_the_different_conditionals(tree: TokenTree, seed: int):
    truth = drawn(tree, seed)
    generator = generator_complexity(truth, 0.8)
    policy = soft_value_iteration(tree, truth.reward, beta=0.8).log_policy
    levels = []
    for h, level in enumerate(policy):
        rows = [tree.leaf_tokens(int(i))[:h] for i in tree.leaves]
        states = {
            int(leaf) // tree.vocab ** (tree.horizon - h)
            for leaf, prefix in zip(tree.leaves, rows, strict=True)
            if len(prefix) == h and "." not in prefix
        }
        levels.append({tuple(np.round(np.asarray(level)[0, s], 7)) for s in states})
    assert generator.rows_by_level == tuple(len(level) for level in levels)
    assert generator.distinct_rows == len(set().union(*levels))
    assert generator.rows == sum(map(len, levels))
    assert generator.entries == generator.rows * tree.vocab


@pytest.mark.parametrize(
    ("spec", "states"),
    [
        (Automata(states=2), 2),
        (Automata(states=4), 4),
        (Automata(states=5, vocab=3, horizon=5), 5),
        (Automata(kind="pattern", states=3), 3),
        (Automata(kind="pattern", states=4), 4),
        (Automata(kind="brackets", states=4, vocab=3, horizon=6), 4),
        (Automata(kind="brackets", states=4), 3),  # without neutral tokens depth has a parity
    ],
)
def test_known_automata_show_all_their_states(spec: Automata, states: int):
    verifier = verifier_complexity(spec.draw())
    generator = generator_complexity(spec.draw(), 1.0)
    assert verifier.states == states
    assert verifier.entries == states * (spec.vocab + 1)
    assert generator.rows <= verifier.rows <= states * spec.horizon
    assert generator.entries > verifier.entries  # one table for all steps, against rows a step


def test_a_modular_sum_needs_a_row_for_every_step_and_rest():
    generator = generator_complexity(Automata(states=4, horizon=8).draw(), 1.0)
    assert generator.rows_by_level == (1, 2, 3, 4, 4, 4, 4, 4)
    parity = generator_complexity(Automata(states=2, horizon=8).draw(), 1.0)
    assert parity.rows_by_level == (1, 1, 1, 1, 1, 1, 1, 2)  # only the last token matters
    assert parity.distinct_rows == 3


def test_a_lookup_table_is_the_upper_end_of_both_scales():
    truth = Lookup(bits=6, horizon=3).draw()
    verifier, generator = verifier_complexity(truth), generator_complexity(truth, 1.0)
    assert verifier.walsh is not None
    assert generator.walsh_q is not None
    assert verifier.walsh.nonzero == 63
    assert generator.walsh_q.nonzero == 3 + 15 + 63
    assert verifier.states_by_level == (1, 4, 16, 64)
    assert generator.states_by_level == generator.rows_by_level == (1, 4, 16)
    assert generator.distinct_rows == 21
    for spec in (Walsh(bits=6, horizon=3, degree=3), Sat(bits=6, horizon=3, clauses=9)):
        other = spec.draw()
        mine, most = verifier_complexity(other).states_by_level, verifier.states_by_level
        assert all(a <= b for a, b in zip(mine, most, strict=True))
        less = generator_complexity(other, 1.0)
        rows = zip(less.rows_by_level, generator.rows_by_level, strict=True)
        assert all(a <= b for a, b in rows)
        assert less.walsh_q is not None
        assert less.walsh_q.nonzero <= generator.walsh_q.nonzero


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.floats(0.1, 10.0), st.floats(-5, 5))
def test_shifts_and_a_common_scale_of_reward_and_beta_change_nothing(seed, scale, shift):
    truth = drawn(BINARY, seed, 3)
    moved = truth_of(BINARY, truth.reward * scale + shift)
    assert verifier_complexity(moved) == verifier_complexity(truth)
    assert generator_complexity(moved, 0.8 * scale) == generator_complexity(truth, 0.8)


def test_a_constant_reward_has_one_state_and_no_coefficient():
    flat = truth_of(BINARY, np.full(16, 3.7))
    verifier, generator = verifier_complexity(flat), generator_complexity(flat, 1.0)
    assert verifier.walsh == generator.walsh_q == generator.walsh_logits == WalshCount(0.0, 0.0)
    assert verifier.states_by_level == (1,) * 5
    assert generator.rows_by_level == (1,) * 4


def test_several_prompts_are_counted_on_average():
    truth = Coverage(words=3, salient=2, prompts=3, horizon=3).draw()
    tree = TokenTree(truth.tree.tokens, 3, ("x",), (1.0,), eos=".")
    alone = [truth_of(tree, row) for row in truth.reward]
    together = generator_complexity(truth, 0.5)
    one = [generator_complexity(truth, 0.5) for truth in alone]
    assert together.rows == pytest.approx(np.mean([g.rows for g in one]))
    assert together.states == pytest.approx(np.mean([g.states for g in one]))
    assert verifier_complexity(truth).states == pytest.approx(
        np.mean([verifier_complexity(truth).states for truth in alone])
    )


def test_values_within_the_tolerance_are_one_value():
    labels = label_values(np.array([1.0, 5.0, 1.0 + 1e-12, 2.0]), 1e-9)
    assert labels[0] == labels[2]
    assert len(set(labels)) == 3


def test_bad_precision_beta_and_rewards_are_named():
    truth = drawn(BINARY, 0)
    with pytest.raises(InputError, match=r"precision.*0"):
        verifier_complexity(truth, precision=0.0)
    with pytest.raises(InputError, match=r"residual.*nan"):
        generator_complexity(truth, 1.0, residual=math.nan)
    with pytest.raises(InputError, match=r"beta.*-1"):
        generator_complexity(truth, -1.0)
    with pytest.raises(InputError, match="not finite"):
        verifier_complexity(truth_of(BINARY, np.full(16, math.inf)))
