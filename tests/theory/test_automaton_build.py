"""Verifiers from tables and counts against plain counting; minimisation against brute force."""

from __future__ import annotations

import contextlib
import copy
import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import theory.automaton
from theory.automaton import (
    Automaton,
    Verifier,
    count_verifier,
    coverage_verifier,
    length_verifier,
    minimise,
    modulo_verifier,
    product,
    solve_automaton,
    verifier_from_table,
)
from theory.errors import InputError

TOKENS = ("a", "b", "c", ".")
TABLE = {
    "tokens": ["a", "b", "."],
    "start": "even",
    "eos": ".",
    "states": {
        "odd": {"next": {"a": "even"}, "default": "odd", "final": -1, "accepting": True},
        "even": {
            "next": {"a": "odd", ".": "even"},
            "forbidden": ["b"],
            "final": 2.5,
            "step": {"a": 0.25},
        },
    },
}


def completions(tokens, eos, horizon):
    for words in itertools.product([t for t in tokens if t != eos], repeat=horizon):
        for n in range(horizon):
            if eos is not None and set(words[n:]) == {tokens[0]}:  # each prefix once
                yield (*words[:n], eos)
        yield words


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_gives_the_written_rewards():
    verifier = verifier_from_table(TABLE)
    assert verifier.reward(["."]) == 2.5
    assert verifier.reward(["a", "b", "b"]) == 0.25 - 1
    assert verifier.reward(["a", "a", "."]) == 0.25 + 2.5  # the step term stands at "even" only
    with pytest.raises(InputError, match="'b', number 1 of 'b a', is forbidden"):
        verifier.reward(["b", "a"])
    with pytest.raises(InputError, match="goes on after EOS"):
        verifier.reward([".", "."])
    assert solve_automaton(verifier, 2).log_z == pytest.approx(
        math.log(math.exp(2.5) + math.exp(-0.75) * 2 + math.exp(0.25 + 2.5)), rel=1e-14
    )


def change(path, value):
    table = copy.deepcopy(TABLE)
    place = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["extra"], 1, "unknown key 'extra'"),
        (["tokens"], "ab.", "list of strings"),
        (["tokens"], ["a", "b", ".", "d"], "state 'even' has no successor for token 'd'"),
        (["eos"], "!", "eos '!'"),
        (["eos"], 3, "'eos' must be"),
        (["start"], "none", "unknown state 'none' in 'start'"),
        (["start"], [1], "unknown state"),
        (["states"], {}, "at least one state"),
        (["states", "odd"], [], "state 'odd' must be an object"),
        (["states", "odd", "finale"], 0, "state 'odd' has the unknown key 'finale'"),
        (["states", "odd", "default"], "ever", "unknown state 'ever' in state 'odd', 'default'"),
        (["states", "odd", "final"], math.nan, "must be finite, got nan"),
        (["states", "odd", "final"], 10**400, "must be finite, got inf"),
        (["states", "odd", "final"], True, "must be a number, got True"),
        (["states", "odd", "accepting"], 1, "must be true or false"),
        (["states", "odd", "next"], {"d": "odd"}, "unknown token 'd' in state 'odd', 'next'"),
        (["states", "odd", "next"], ["a"], "must be an object"),
        (["states", "even", "forbidden"], "b", "must be a list"),
        (["states", "even", "step"], {"a": "1"}, "'step' of 'a' must be a number"),
    ],
)
def test_a_faulty_table_names_its_fault(path, value, message):
    with pytest.raises(InputError, match=message):
        verifier_from_table(change(path, value))


keys = st.sampled_from(["tokens", "start", "eos", "states", "next", "default", "a", "s", "final"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["tokens", "start", "eos", "states"]), junk, junk)
def test_any_table_is_a_verifier_or_an_input_error(key, value, state):
    table = {"tokens": ["a", "s"], "start": "s", "states": {"s": state}, key: value}
    with contextlib.suppress(InputError):
        assert isinstance(verifier_from_table(table), Verifier)


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [".", None])
def test_counting_verifiers_count(eos):
    tokens = TOKENS if eos else TOKENS[:3]
    cover = coverage_verifier(tokens, ["a", "c"], eos=eos)
    capped = count_verifier(tokens, ["b", "c"], 2, eos=eos)
    length = length_verifier(tokens, 3, eos=eos, score=[0.0, 1.0, 4.0, 9.0])
    modulo = modulo_verifier(tokens, ["a"], 3, eos=eos)
    summed = product(cover, product(capped, modulo))
    assert [v.machine.n_states for v in (cover, capped, length, modulo)] == [4, 3, 4, 3]
    for words in completions(tokens, eos, 4):
        said = [word for word in words if word != eos]
        parts = (
            len({"a", "c"} & set(said)),
            min(2, sum(word in ("b", "c") for word in said)),
            said.count("a") % 3,
        )
        assert cover.reward(words) == parts[0]
        assert capped.reward(words) == parts[1]
        assert modulo.reward(words) == parts[2]
        assert length.reward(words) == min(3, len(said)) ** 2
        assert summed.reward(words) == sum(parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: coverage_verifier(TOKENS, ["a", "a"]),
        lambda: coverage_verifier(TOKENS, []),
        lambda: coverage_verifier(TOKENS, ["d"]),
        lambda: coverage_verifier(TOKENS, ["."], eos="."),
        lambda: coverage_verifier([f"w{i}" for i in range(30)], [f"w{i}" for i in range(30)]),
        lambda: coverage_verifier(TOKENS, ["a"], score=[0.0]),
        lambda: coverage_verifier(TOKENS, ["a"], score=[0.0, math.inf]),
        lambda: count_verifier(TOKENS, ["a"], 0),
        lambda: count_verifier(TOKENS, ["a"], 10**12),
        lambda: modulo_verifier(TOKENS, ["a"], 0),
        lambda: modulo_verifier(TOKENS, ["a"], 10**12),
    ],
)
def test_bad_counts_are_refused(make):
    with pytest.raises(InputError):
        make()


# --- the smallest automaton -----------------------------------------------------------------------


def futures(verifier, state, depth):
    """Everything that completions of at most `depth` more tokens show of a state."""
    machine, seen = verifier.machine, []
    frontier = [((), state, ())]
    for _ in range(depth + 1):
        ahead = []
        for words, here, gained in frontier:
            seen.append((words, gained, verifier.final[here], bool(machine.ends[here])))
            for v in np.flatnonzero(machine.allowed[here]):
                gain = 0.0 if verifier.step is None else verifier.step[here, v]
                ahead.append(((*words, int(v)), int(machine.next[here, v]), (*gained, gain)))
        frontier = ahead
    return tuple(seen)


@given(st.integers(0, 10**6), st.booleans())
def test_minimise_keeps_rewards_and_no_two_equal_states(seed, with_step):
    """Oracle: two of S states differ iff some S - 1 tokens tell them apart."""
    rng = np.random.default_rng(seed)
    states = 6
    machine = Automaton(
        ("a", "b"),
        rng.integers(0, states, (states, 2)),
        0,
        None,
        rng.random((states, 2)) < 0.15,
        rng.random(states) < 0.8,
    )
    step = rng.integers(0, 2, (states, 2)).astype(float) if with_step else None
    verifier = Verifier(machine, rng.integers(0, 2, states).astype(float), step)
    small, labels = minimise(verifier)
    met = np.flatnonzero(labels >= 0)
    kinds = {futures(verifier, int(state), states - 1) for state in met}
    assert small.machine.n_states == len(kinds) == labels.max() + 1
    assert futures(small, 0, states) == futures(verifier, 0, states)
    for state in met:
        assert futures(small, int(labels[state]), 3) == futures(verifier, int(state), 3)


def test_minimise_finds_known_sizes():
    """Coverage with all-or-nothing reward still needs 2**k; a count by two automata needs one."""
    words = ["a", "b", "c"]
    assert (
        minimise(coverage_verifier(words, words, score=[0.0, 0.0, 0.0, 1.0]))[0].machine.n_states
        == 8
    )
    same = count_verifier(words, ["a"], 3)
    assert minimise(product(same, same))[0].machine.n_states == 4
    assert minimise(modulo_verifier(words, ["a"], 6, score=[0.0, 1.0] * 3))[0].machine.n_states == 2


def test_the_example_in_the_package_docstring_runs():
    result = doctest.testmod(theory.automaton)
    assert result.attempted > 3
    assert result.failed == 0
