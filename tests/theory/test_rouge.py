"""ROUGE-L as an automaton: against the rouge_score package, brute force, and what is read off."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.automaton import (
    minimise,
    pointer_automaton,
    read_off,
    rouge_l_states,
    rouge_l_verifier,
    solve_automaton,
    solve_automaton_hard,
)
from theory.errors import InputError

EOS = "</s>"
WORDS = ("the", "cat", "sat", "on", "mat", "dog")
references = st.lists(st.sampled_from(WORDS[:4]), min_size=1, max_size=6)


def package_f1(reference, words):
    package = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = package.RougeScorer(["rougeL"], use_stemmer=False)
    return scorer.score(" ".join(reference), " ".join(words))["rougeL"].fmeasure


def lcs_row(words, reference):
    """The textbook dynamic program, one cell at a time."""
    row = [0] * (len(reference) + 1)
    for word in words:
        new = [0]
        for j, other in enumerate(reference):
            new.append(row[j] + 1 if word == other else max(row[j + 1], new[j]))
        row = new
    return tuple(row)


@given(references, st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), st.booleans())
def test_f1_is_that_of_the_rouge_score_package(reference, words, ended):
    exact = package_f1(reference, words)
    verifier = rouge_l_verifier((*WORDS, EOS), reference, 9, eos=EOS)
    padded = [*words, EOS] if ended else words
    assert abs(verifier.reward(padded) - exact) < 1e-15


def test_a_long_reference_against_the_package():
    """26 words with repeats, H = 53: the states reached along real sentences, not all of them."""
    rng = np.random.default_rng(1)
    reference = [WORDS[i] for i in rng.integers(0, 2, 26)]
    verifier = rouge_l_verifier((*WORDS, EOS), reference, 53, eos=EOS)
    for _ in range(20):
        words = [WORDS[i] for i in rng.integers(0, 3, rng.integers(1, 53))]
        error = verifier.reward([*words, EOS]) - package_f1(reference, words)
        assert abs(error) < 1e-15


# --- how the automaton grows ----------------------------------------------------------------------


@given(st.lists(st.sampled_from(WORDS[:3]), min_size=1, max_size=5))
def test_states_are_the_rows_that_completions_reach(reference):
    """Every completion of at most 2 m words; and each two rows have different futures."""
    m = len(reference)
    rows, frontier = set(), {lcs_row((), reference)}
    reached = {lcs_row((), reference): ()}
    while frontier:  # one completion for each row is enough: the next row depends on the row alone
        rows |= frontier
        ahead = {}
        for row in frontier:
            for word in set(reference):
                words = (*reached[row], word)
                ahead.setdefault(lcs_row(words, reference), words)
        frontier = set(ahead) - rows
        reached.update({row: ahead[row] for row in frontier})
    assert rouge_l_states(reference) == len(rows)
    futures = {
        tuple(lcs_row((*words, *reference[j:]), reference)[-1] for j in range(m + 1))
        for words in reached.values()
    }
    assert len(futures) == len(rows)


def test_every_sequence_of_words_has_a_row_among_the_states():
    reference = ["the", "cat", "the", "dog"]
    rows = {
        lcs_row(words, reference)
        for n in range(7)
        for words in itertools.product(("the", "cat", "dog"), repeat=n)
    }
    assert rouge_l_states(reference) == len(rows)


def test_growth_with_the_reference():
    """Measured: k words in turn make prod_i (times of word i + 1) states, 2**m for k = m."""
    for m in range(1, 15):
        assert rouge_l_states([f"w{j}" for j in range(m)]) == 2**m
        for k in (1, 2, 3, 4):
            times = [len(range(i, m, k)) for i in range(k)]
            in_turn = rouge_l_states([f"w{j % k}" for j in range(m)])
            assert in_turn == math.prod(n + 1 for n in times)
    with pytest.raises(InputError, match="more than 1,000 states"):
        rouge_l_states([f"w{j}" for j in range(30)], max_states=1000)


def test_growth_is_exponential_when_few_words_come_in_random_order():
    """Measured: from three words at least 1.4**m states, about 1.65**m on average."""
    rng = np.random.default_rng(0)
    for m in (6, 10, 14):
        for _ in range(4):
            states = rouge_l_states([WORDS[i] for i in rng.integers(0, 3, m)])
            assert 1.4**m < states <= 2**m


def test_states_met_after_some_steps_are_binomial_sums():
    """A row with k rises needs k words: after h words, sum over k <= h of (m choose k) rows."""
    reference = [f"w{j}" for j in range(9)]
    for h in range(12):
        assert rouge_l_states(reference, steps=h) == sum(math.comb(9, k) for k in range(h + 1))


def test_no_smaller_automaton_gives_rouge_l():
    """Moore's minimisation finds nothing to merge, for LCS and length together."""
    for reference in (["the", "cat", "sat", "on"], ["the", "cat", "the", "cat"]):
        verifier = rouge_l_verifier((*WORDS, EOS), reference, 8, eos=EOS)
        small, _ = minimise(verifier)
        assert small.machine.n_states == verifier.machine.n_states
        assert verifier.machine.n_states == rouge_l_states(reference) + len(reference) + 1


# --- what can be read off -------------------------------------------------------------------------


def test_the_hard_optimum_is_the_reference_alone():
    for reference in (["the", "cat", "sat"], ["the", "the", "cat", "the"]):
        verifier = rouge_l_verifier((*WORDS, EOS), reference, 7, eos=EOS)
        hard = solve_automaton_hard(verifier, 7)
        assert hard.best == 1.0
        assert hard.log_optima == 0.0
        assert verifier.machine.log_prob(hard.log_policy, [*reference, EOS]) == 0.0


def test_without_eos_every_completion_with_the_reference_in_it_is_optimal():
    """F1 = 2 m / (H + m), shared by all sequences of H words that have the reference inside."""
    reference, horizon = ["the", "cat"], 5
    verifier = rouge_l_verifier(WORDS[:3], reference, horizon)
    hard = solve_automaton_hard(verifier, horizon)
    best = [
        words
        for words in itertools.product(WORDS[:3], repeat=horizon)
        if lcs_row(words, reference)[-1] == 2
    ]
    assert hard.best == 4 / 7
    assert abs(hard.log_optima - math.log(len(best))) < 1e-12


def test_the_soft_optimum_against_enumeration():
    """All completions of at most 4 words, one by one: log Z and the reference's probability."""
    reference, beta = ["the", "cat", "sat"], 0.2
    tokens = ("the", "cat", "sat", "dog", EOS)
    verifier = rouge_l_verifier(tokens, reference, 4, eos=EOS)
    scores = {}
    for n in range(5):
        for words in itertools.product(tokens[:4], repeat=n):
            scores[words] = 2 * lcs_row(words, reference)[-1] / (n + 3)
    log_z = math.log(math.fsum(math.exp(score / beta) for score in scores.values()))
    soft = solve_automaton(verifier, 4, beta=beta)
    assert abs(soft.log_z - log_z) < 1e-12
    log_p = verifier.machine.log_prob(soft.log_policy, [*reference, EOS])
    assert abs(log_p - (1.0 / beta - log_z)) < 1e-12


def test_a_finger_in_the_reference_loses_the_soft_optimum_at_finite_beta():
    """Measured: the loss is small at both ends of beta, largest between, and 0 for one word.

    At a large beta the reward does not matter; at a small one only the reference is left.
    """
    tokens = (*WORDS, EOS)
    reference = ["the", "cat", "sat", "on", "mat"]
    lost = [
        read_off(tokens, reference, 10, eos=EOS, beta=b).kl_pointer for b in (100.0, 0.05, 0.005)
    ]
    assert lost[1] > 0.2
    assert max(lost[0], lost[2]) < 1e-3
    one = read_off(tokens, ["the"], 10, eos=EOS, beta=0.1)
    assert abs(one.kl_pointer) < 1e-12
    assert one.states == 2


def test_the_soft_optimum_needs_all_the_rows():
    """Nearly every (step, row) that is met has a row of probabilities of its own."""
    tokens = (*WORDS, EOS)
    for m, horizon in ((3, 8), (5, 10)):
        found = read_off(tokens, WORDS[:m], horizon, eos=EOS, beta=0.1)
        met = sum(math.comb(m, k) for h in range(horizon) for k in range(min(h, m) + 1))
        assert found.states == 2**m
        assert found.reachable_rows == met
        assert found.distinct_rows > found.pointer_rows
        assert found.best == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: rouge_l_verifier(WORDS, [], 5),
        lambda: rouge_l_verifier(WORDS, ["bird"], 5),
        lambda: rouge_l_verifier((*WORDS, EOS), [EOS], 5, eos=EOS),
        lambda: rouge_l_verifier(WORDS, ["cat"], 0),
        lambda: rouge_l_states(["cat"] * 63),
        lambda: pointer_automaton(WORDS, ["bird"]),
        lambda: read_off((*WORDS, EOS), ["cat"] * 5, 5, eos=EOS, beta=0.1),
    ],
)
def test_bad_references_are_refused(make):
    with pytest.raises(InputError):
        make()
