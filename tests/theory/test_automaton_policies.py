"""Sampling, merged states and table sizes of policies over (step, automaton state)."""

from __future__ import annotations

from fractions import Fraction

import jax
import numpy as np
import pytest

from theory.automaton import (
    Automaton,
    Verifier,
    count_verifier,
    expected_reward,
    expected_term,
    merge_states,
    policy_entropy,
    policy_kl,
    policy_kl_between,
    sample_completions,
    solve_automaton,
    table_sizes,
    to_tree,
)
from theory.errors import InputError
from theory.soft import log_optimal

TOL = 1e-12


def random_machine(seed, states, vocab, eos):
    rng = np.random.default_rng(seed)
    tokens = (*"abcdef"[: vocab - 1], "." if eos else "z")
    return Automaton(tokens, rng.integers(0, states, (states, vocab)), 0, "." if eos else None)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [True, False])
def test_samples_have_the_policys_distribution(eos):
    """Each completion's frequency within 5 standard errors; no completion of probability 0."""
    free = random_machine(11, 3, 3, eos)
    forbidden = np.array([[False, False, True], [True, False, False], [False, True, False]])
    machine = Automaton(free.tokens, free.next, 0, free.eos, forbidden)
    verifier = Verifier(machine, np.array([1.0, 0.0, -0.5]))
    solution = solve_automaton(verifier, 3)
    tree, r = to_tree(verifier, 3)
    log_p = log_optimal(tree, r)
    n = 40_000
    samples = sample_completions(verifier.machine, solution.log_policy, jax.random.key(3), n)
    counts = np.zeros(tree.n_leaves)
    rows, first, times = np.unique(samples.tokens, axis=0, return_index=True, return_counts=True)
    for row, length, seen in zip(rows, samples.lengths[first], times, strict=True):
        words = [verifier.machine.tokens[v] for v in row[:length]]
        assert all(verifier.machine.tokens[v] == "." for v in row[length:])
        counts[tree.leaf_index(words)] += seen
    p = np.exp(log_p[0])
    error = np.sqrt(np.maximum(p * (1 - p) / n, 1e-12))
    assert (np.abs(counts / n - p) <= 5 * error + 1 / n).all()
    assert (counts[p == 0] == 0).all()
    again = sample_completions(verifier.machine, solution.log_policy, jax.random.key(3), n)
    assert (again.tokens == samples.tokens).all()


# --- what is no policy ----------------------------------------------------------------------------


def test_what_is_no_policy_is_refused_with_its_place():
    free = random_machine(2, 2, 3, True)
    forbidden = np.array([[False, False, False], [False, True, False]])
    machine = Automaton(free.tokens, free.next, 0, ".", forbidden)
    good = np.array(solve_automaton(Verifier(machine, np.ones(2)), 4).log_policy)
    heavy, astray, rounded = good.copy(), good.copy(), good + 5e-10
    heavy[2, 1] += 0.5
    astray[3, 1] = np.log([0.5, 0.25, 0.25])
    reward = Verifier(machine, np.ones(2))
    assert abs(expected_reward(reward, good) - 1.0) <= TOL
    assert abs(expected_reward(reward, rounded) - 1.0) <= 1e-8
    for use in (
        lambda policy: expected_reward(reward, policy),
        lambda policy: policy_kl(machine, policy, good),
        lambda policy: policy_kl_between(machine, policy, machine, good),
        lambda policy: policy_entropy(machine, policy),
        lambda policy: sample_completions(machine, policy, jax.random.key(0), 2),
    ):
        with pytest.raises(InputError, match=r"log_policy\[2, 1\] sums to 1\.648.*tolerance 1e-09"):
            use(heavy)
        with pytest.raises(
            InputError, match=r"log_policy\[3, 1, 1\] is .*'b' is forbidden in state 1"
        ):
            use(astray)
    for second in (
        lambda policy: policy_kl(machine, good, policy),
        lambda policy: policy_kl_between(machine, good, machine, policy),
    ):
        with pytest.raises(InputError, match=r"log_q\[2, 1\] sums to 1\.648"):
            second(heavy)
        assert second(astray) > 0.0  # the second may use what the first never does
    with pytest.raises(InputError, match=r"log_q\[1\] sums to 1\.648"):
        policy_kl(machine, good, heavy[2])


def test_a_policy_that_comes_to_a_row_of_nothing_is_refused():
    machine = Automaton(("a", "b"), np.array([[0, 1], [1, 1]]))
    policy = np.log(np.full((3, 2, 2), 0.5))
    policy[2, 1] = -np.inf
    with pytest.raises(InputError, match=r"log_policy\[2, 1\] is -inf .* with probability 0\.75"):
        policy_entropy(machine, policy)
    with np.errstate(divide="ignore"):
        policy[:2, 0] = np.log([1.0, 0.0])  # now it never comes there
    assert abs(policy_entropy(machine, policy) - np.log(2.0)) <= TOL


# --- merged states, sizes -------------------------------------------------------------------------


def test_merged_policy_is_the_best_that_sees_the_label():
    rng, horizon = np.random.default_rng(8), 5
    machine = random_machine(8, 4, 3, True)
    logits = rng.normal(0, 1, (horizon, 4, 3))
    policy = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    same, none_lost = merge_states(machine, policy, np.arange(4))
    assert abs(none_lost) <= TOL
    merged, lost = merge_states(machine, policy, np.array([0, 1, 0, 1]))
    assert lost > 0.001
    assert abs(lost - policy_kl(machine, policy, merged)) <= TOL
    for _ in range(20):  # any other policy of the labels loses more
        tilt = rng.normal(0, 0.1, (horizon, 2, 3))[:, [0, 1, 0, 1]]
        weights = np.exp(merged + tilt)
        total = weights.sum(axis=2, keepdims=True)
        with np.errstate(divide="ignore"):
            other = np.log(weights / np.where(total > 0, total, 1.0))
        assert policy_kl(machine, policy, other) >= lost - TOL
    assert same.shape == merged.shape == policy.shape


def test_sizes_count_rows_that_are_reached_and_differ():
    """The last token must make the number of a's even: one free row, and two at the end."""
    parity = Automaton(("a", "b"), np.array([[1, 0], [0, 1]]), accepting=np.array([True, False]))
    solution = solve_automaton(Verifier(parity, np.zeros(2)), 6)
    sizes = table_sizes(parity, solution.log_policy)
    assert (sizes.verifier, sizes.reachable_rows) == (6, 11)  # the start alone at step 0
    assert (sizes.distinct_rows, sizes.generator) == (3, 6)
    tilted = solve_automaton(
        Verifier(parity, np.zeros(2), np.arange(24.0).reshape(6, 2, 2) ** 2 / 100), 6
    )
    assert table_sizes(parity, tilted.log_policy).distinct_rows > 3


def test_the_generators_table_is_h_times_the_verifiers_only_if_states_are_not_forgotten():
    """Measured: a count keeps H S rows; a random automaton forgets, and most rows are the same.

    With 16 tokens and 8 states every state is about as good as another far from the end, so the
    soft policy there does not depend on the step.
    """
    rng, horizon = np.random.default_rng(4), 40
    count = count_verifier(["a", "b"], ["a"], 40, score=list(rng.normal(size=41)))
    kept = table_sizes(count.machine, solve_automaton(count, horizon).log_policy)
    assert kept.reachable_rows == kept.distinct_rows == horizon * (horizon + 1) // 2
    tokens = tuple(f"t{v}" for v in range(16))
    mixing = Verifier(Automaton(tokens, rng.integers(0, 8, (8, 16))), rng.normal(size=8))
    lost = table_sizes(mixing.machine, solve_automaton(mixing, horizon).log_policy)
    assert lost.reachable_rows > 8 * (horizon - 3)
    assert lost.distinct_rows < lost.reachable_rows / 2


def test_expected_term_counts_tokens():
    machine = Automaton(("a", "b", "."), np.zeros((1, 3), dtype=int), eos=".")
    policy = np.log(np.broadcast_to([0.5, 0.25, 0.25], (3, 1, 3)))
    got = expected_term(machine, policy, np.array([[1.0, 0.0, 0.0]]))
    alive = [Fraction(1), Fraction(3, 4), Fraction(9, 16)]
    assert abs(got - float(sum(alive) / 2)) <= TOL
