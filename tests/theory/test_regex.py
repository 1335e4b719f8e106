"""Regular expressions over tokens against Python's own, and the smallest automaton."""

from __future__ import annotations

import contextlib
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.automaton import (
    escape,
    regex_automaton,
    regex_constraint,
    regex_verifier,
    solve_automaton,
)
from theory.errors import InputError

LETTERS = ("a", "b", "c")  # c is named in no pattern: it stands for every other token


def patterns(depth=3):
    """(tokens as this module reads them, the same as Python's re reads it)."""
    leaf = st.sampled_from([("a", "a"), ("b", "b"), (".", "."), ("()", "(?:)")])
    return st.recursive(
        leaf,
        lambda inner: (
            st.tuples(inner, inner).map(lambda t: (f"{t[0][0]} {t[1][0]}", t[0][1] + t[1][1]))
            | st.tuples(inner, inner).map(
                lambda t: (f"({t[0][0]}|{t[1][0]})", f"(?:{t[0][1]}|{t[1][1]})")
            )
            | st.tuples(inner, st.sampled_from("*+?")).map(
                lambda t: (f"({t[0][0]}){t[1]}", f"(?:{t[0][1]}){t[1]}")
            )
        ),
        max_leaves=6,
    )


@given(patterns())
def test_matches_are_those_of_pythons_re(pattern):
    mine, theirs = pattern
    verifier, exact = regex_verifier(mine, LETTERS, value=2.0), re.compile(theirs)
    for n in range(1, 6):
        for words in itertools.product(LETTERS, repeat=n):
            expected = 2.0 if exact.fullmatch("".join(words)) else 0.0
            assert verifier.reward(words) == expected, (mine, words)


@given(patterns())
def test_no_two_states_are_equal_and_all_are_reached(pattern):
    """Table filling: mark pairs told apart until nothing new; every pair must be marked."""
    machine, matched = regex_automaton(pattern[0], LETTERS)
    states = machine.n_states
    apart = matched[:, None] != matched[None, :]
    for _ in range(states):
        ahead = apart[machine.next[:, None, :], machine.next[None, :, :]].any(axis=2)
        apart = apart | ahead
    assert (apart | np.eye(states, dtype=bool)).all()
    reached = {machine.start}
    for _ in range(states):
        reached |= {int(t) for s in reached for t in machine.next[s]}
    assert len(reached) == states


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("a", 3),  # before, after, never
        (".*", 1),
        ("", 2),
        ("a*", 2),
        (". . .", 5),
        (".* a . .", 8),  # the third token from the end: 2**3
        ("(a b)* | (b a)*", 6),
        ("a | b | c", 3),
        ("((((a))))?+*", 2),
    ],
)
def test_known_sizes(pattern, states):
    assert regex_automaton(pattern, LETTERS)[0].n_states == states


def test_tokens_are_words_and_eos_is_outside_the_match():
    tokens = ("the", "cat", "etc.", "*", "</s>")
    verifier = regex_verifier(r"the+ cat\* | etc\. \* ?".replace(r"\* |", "|"), tokens, eos="</s>")
    assert verifier.reward(["the", "the", "cat", "</s>"]) == 1.0
    assert verifier.reward(["etc.", "</s>"]) == 1.0
    assert verifier.reward(["etc.", "*"]) == 1.0
    assert verifier.reward(["</s>"]) == 0.0
    assert verifier.reward(["cat"]) == 0.0
    for token in tokens[:4]:
        assert regex_verifier(escape(token), tokens, eos="</s>").reward([token, "</s>"]) == 1.0
    assert regex_verifier(".*", tokens, eos="</s>").reward(["*", "</s>"]) == 1.0


def test_a_constraint_keeps_exactly_the_matching_completions():
    """Of a (b|c)* with 53 tokens there are 2**52; of at most 53 with EOS, 2**53 - 1 and 2**52."""
    log_z = solve_automaton(regex_constraint("a (b|c)*", LETTERS), 53).log_z
    assert abs(log_z - 52 * math.log(2)) < 1e-12
    ended = regex_constraint("a (b|c)*", (*LETTERS, "."), eos=".")
    count = sum(2 ** (n - 1) for n in range(1, 53)) + 2**52  # n words and EOS, or 53 words
    assert abs(solve_automaton(ended, 53).log_z - math.log(count)) < 1e-12
    with pytest.raises(InputError, match="does not accept"):
        ended.reward(["b", "."])


def test_a_large_vocabulary_costs_one_column_a_named_token():
    tokens = tuple(f"t{i}" for i in range(4096))
    machine, matched = regex_automaton(".* t7 .* t9 .*", tokens)
    assert (machine.n_states, int(matched.sum())) == (3, 1)
    assert machine.next.shape == (3, 4096)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a (b", r"unclosed '\(' at position 2"),
        ("a ) b", r"unmatched '\)' at position 2"),
        ("* a", r"nothing before '\*' at position 0"),
        ("a | +", r"nothing before '\+' at position 4"),
        ("a  dog", r"unknown token 'dog' .* at position 3"),
        ("ab", r"unknown token 'ab'"),
        ("a <e>", r"unknown token '<e>' \(EOS is none here\)"),
        ("a \\", "nothing after the backslash at position 2"),
        ("(" * 51 + "a" + ")" * 51, "nested deeper than 50 at position 50"),
        ("a " * 1001, "2,002 characters, more than 2,000"),
        (".* a" + " ." * 12, "more than 4,096 states"),
    ],
)
def test_bad_patterns_name_the_position(pattern, message):
    with pytest.raises(InputError, match=message):
        regex_automaton(pattern, (*LETTERS, "<e>"), eos="<e>")


@given(st.text("ab .|*+?()\\d\t", max_size=25))
def test_any_text_is_a_pattern_or_an_input_error(text):
    with contextlib.suppress(InputError):
        machine, matched = regex_automaton(text, LETTERS)
        assert machine.n_states == len(matched)


def test_many_letters_are_answered_or_refused():
    """300 letters at up to 4,096 sets of states, which took minutes before sets were bits."""
    words = tuple(f"w{i}" for i in range(300))
    pattern, tokens = "(" + "|".join(words) + "| .)* a" + " ." * 9, (*words, "a")
    machine, matched = regex_automaton(pattern, tokens)
    assert (machine.n_states, int(matched.sum())) == (2**10, 2**9)
    with pytest.raises(InputError, match="more than 1,000 states"):
        regex_automaton(pattern, tokens, max_states=1_000)
    with pytest.raises(InputError, match="more than 4,096 states"):
        regex_automaton(pattern + " . . .", tokens)
