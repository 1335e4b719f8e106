"""Soft value iteration over (step, automaton state) against the dense tree, and its symmetries."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.automaton import (
    Automaton,
    Verifier,
    expected_reward,
    expected_term,
    leaf_log_probs_of,
    occupancy,
    pair_states,
    policy_entropy,
    policy_kl,
    policy_kl_between,
    product,
    sample_completions,
    solve_automaton,
    solve_automaton_hard,
    table_sizes,
    to_tree,
)
from theory.errors import InputError
from theory.soft import entropy, kl, leaf_log_probs, log_optimal, soft_value_iteration
from theory.soft import expected_reward as tree_reward

TOL = 1e-12
SHAPES = [((3, 3, 3), True), ((4, 2, 5), False)]  # S, V, H, and whether there is EOS
KINDS = [(0, 0), (2, 3), (3, 2)]  # dimensions of the step terms and of the reference
instances = st.tuples(st.integers(0, 10**6), st.sampled_from(SHAPES)).map(
    lambda drawn: (drawn[0], *drawn[1])
)
betas = st.floats(0.1, 10.0)


def random_machine(rng, states, vocab, eos, strict=True):
    forbidden = (rng.random((states, vocab)) < 0.2) if strict and rng.random() < 0.5 else None
    accepting = (rng.random(states) < 0.7) if strict and rng.random() < 0.5 else None
    return Automaton(
        (*"abcdef"[: vocab - 1], "." if eos else "z"),
        rng.integers(0, states, (states, vocab)),
        int(rng.integers(states)),
        "." if eos else None,
        forbidden,
        accepting,
    )


def random_instance(seed, shape, eos):
    """A verifier that keeps some completion, its horizon, and perhaps a reference."""
    states, vocab, horizon = shape
    rng = np.random.default_rng(seed)
    while True:
        machine = random_machine(rng, states, vocab, eos)
        if machine.completable(horizon)[0, machine.start]:
            break
    final = rng.normal(0, 2, [(states,), (horizon + 1, states)][rng.integers(2)])
    of_step, of_ref = KINDS[rng.integers(3)]
    step = rng.normal(0, 1, (horizon, states, vocab)[-of_step:]) if of_step else None
    ref = random_policy(rng, (horizon, states, vocab)[-of_ref:]) if of_ref else None
    return Verifier(machine, final, step), horizon, ref


def random_policy(rng, shape):
    logits = rng.normal(0, 1, shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def both(verifier, horizon, ref, beta):
    """The tree, the automaton's solution, and the tree's log P of each completion."""
    tree, r = to_tree(verifier, horizon)
    log_ref = None if ref is None else leaf_log_probs_of(tree, verifier.machine, ref)
    solution = solve_automaton(verifier, horizon, beta=beta, log_ref=ref)
    return tree, r, log_ref, solution, log_optimal(tree, r, beta, log_ref)


def close(a, b, scale=0.0):
    assert abs(a - b) <= TOL * max(1.0, abs(a), abs(b), scale)


# --- agreement with the tree ----------------------------------------------------------------------


@given(instances, betas)
def test_policy_and_log_z_equal_the_tree(instance, beta):
    verifier, horizon, ref = random_instance(*instance)
    tree, r, log_ref, solution, log_p = both(verifier, horizon, ref, beta)
    mask = tree.leaf_mask
    mine = leaf_log_probs_of(tree, verifier.machine, solution.log_policy)[0, mask]
    scale = float(np.abs(r).max()) / beta
    assert np.abs(mine - log_p[0, mask]).max() <= TOL * max(1.0, scale)
    score = r[0, mask] / beta + (0.0 if log_ref is None else log_ref[0, mask])
    top = score.max()
    close(solution.log_z, top + math.log(math.fsum(np.exp(score - top))), scale)
    assert not np.isnan(np.asarray(solution.log_policy)).any()
    assert not np.isnan(np.asarray(solution.values)).any()


@settings(max_examples=12)
@given(instances, betas)
def test_values_equal_the_trees_values_at_every_prefix(instance, beta):
    """V of a prefix is what the step terms so far add to the value of (step, state)."""
    verifier, horizon, _ = random_instance(*instance)
    machine = verifier.machine
    tree, r = to_tree(verifier, horizon)
    solution = solve_automaton(verifier, horizon, beta=beta)
    levels = [np.asarray(v) for v in soft_value_iteration(tree, r, beta=beta).values]
    values = np.asarray(solution.values)
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        states, gained = machine.path(words), 0.0
        for h in range(len(words)):
            value = float(levels[h][0, leaf // tree.vocab ** (horizon - h)])
            close(gained + float(values[h, states[h]]), value, np.abs(r).max())
            if verifier.step is not None:
                table = verifier.step if verifier.step.ndim == 2 else verifier.step[h]
                gained += table[states[h], machine.tokens.index(words[h])]


@given(instances, betas)
def test_expectations_equal_the_trees(instance, beta):
    verifier, horizon, ref = random_instance(*instance)
    machine = verifier.machine
    tree, r, log_ref, solution, log_p = both(verifier, horizon, ref, beta)
    policy = solution.log_policy
    close(expected_reward(verifier, policy), tree_reward(tree, log_p, r))
    close(policy_entropy(machine, policy), entropy(tree, log_p))
    if log_ref is not None:
        close(policy_kl(machine, policy, ref), kl(tree, log_p, log_ref))
    where = occupancy(machine, policy)
    final, lengths = np.zeros(machine.n_states), np.zeros(horizon + 1)
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        final[machine.path(words)[-1]] += math.exp(log_p[0, leaf])
        lengths[len(words)] += math.exp(log_p[0, leaf])
    assert np.abs(where.final - final).max() <= TOL
    assert np.abs(where.lengths - lengths).max() <= TOL


@given(instances, st.integers(0, 10**6), betas)
def test_kl_of_policies_on_different_automata_equals_the_trees(instance, seed, beta):
    first, horizon, _ = random_instance(*instance)
    second, _, _ = random_instance(seed, *instance[1:])
    p = solve_automaton(first, horizon, beta=beta).log_policy
    q = solve_automaton(second, horizon, beta=beta).log_policy
    tree, _ = to_tree(first, horizon)
    legal = np.zeros((1, tree.n_leaves))
    for leaf in tree.leaves:
        try:
            legal[0, leaf] = second.machine.log_prob(q, tree.leaf_tokens(int(leaf)))
        except InputError:  # the second automaton has no such completion
            legal[0, leaf] = -math.inf
    exact = kl(tree, leaf_log_probs_of(tree, first.machine, p), legal)
    mine = policy_kl_between(first.machine, p, second.machine, q)
    assert mine == exact == math.inf or abs(mine - exact) <= TOL * max(1.0, exact)


@given(instances, betas)
def test_free_energy_identity(instance, beta):
    """E[r] + beta H(pi) = beta log Z, or with a reference E[r] - beta KL (Lemmas 2.1 and B.1)."""
    verifier, horizon, ref = random_instance(*instance)
    solution = solve_automaton(verifier, horizon, beta=beta, log_ref=ref)
    policy, machine = solution.log_policy, verifier.machine
    term = policy_entropy(machine, policy) if ref is None else -policy_kl(machine, policy, ref)
    close(expected_reward(verifier, policy) + beta * term, beta * solution.log_z, 10 * beta)


@settings(max_examples=5)
@given(st.integers(0, 10**6), betas)
def test_product_adds_rewards(seed, beta):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        machine = random_machine(rng, 3, 3, True, strict=False)
        parts.append(Verifier(machine, rng.normal(size=3), rng.normal(size=(3, 3))))
    summed = product(*parts)
    tree, r = to_tree(summed, 3)
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        close(r[0, leaf], parts[0].reward(words) + parts[1].reward(words))
    solution = solve_automaton(summed, 3, beta=beta)
    exact = leaf_log_probs(tree, soft_value_iteration(tree, r, beta=beta).log_policy)
    mine = leaf_log_probs_of(tree, summed.machine, solution.log_policy)
    held = tree.leaf_mask
    error = np.abs(mine[0, held] - np.asarray(exact)[0, held]).max()
    assert error <= TOL * max(1, np.abs(r).max() / beta)
    # a policy of one part, lifted to the pairs, is the same policy
    alone = np.asarray(solve_automaton(parts[0], 3, beta=beta).log_policy)
    pairs, table = pair_states(parts[0].machine, parts[1].machine)
    lifted = Automaton(parts[0].machine.tokens, table, 0, ".")
    close(policy_entropy(lifted, alone[:, pairs[:, 0]]), policy_entropy(parts[0].machine, alone))


# --- symmetries -----------------------------------------------------------------------------------


@given(instances, betas, st.floats(-50, 50))
def test_shift_of_the_final_reward_moves_log_z_alone(instance, beta, shift):
    verifier, horizon, ref = random_instance(*instance)
    moved = Verifier(verifier.machine, verifier.final + shift, verifier.step)
    one = solve_automaton(verifier, horizon, beta=beta, log_ref=ref)
    two = solve_automaton(moved, horizon, beta=beta, log_ref=ref)
    assert abs(two.log_z - one.log_z - shift / beta) <= TOL * (100 + 100 / beta)
    p, q = (np.exp(np.asarray(s.log_policy)) for s in (one, two))
    assert np.abs(p - q).max() <= TOL * (1 + 100 / beta)


@given(instances, betas, st.integers(0, 10**6))
def test_renaming_states_changes_nothing(instance, beta, seed):
    verifier, horizon, _ = random_instance(*instance)
    machine = verifier.machine
    order = np.random.default_rng(seed).permutation(machine.n_states)  # new number -> old
    rank = np.argsort(order)
    renamed = Automaton(
        machine.tokens,
        rank[machine.next[order]],
        int(rank[machine.start]),
        machine.eos,
        ~machine.allowed[order],
        machine.ends[order],
    )
    step = None if verifier.step is None else verifier.step[..., order, :]
    other = Verifier(renamed, verifier.final[..., order], step)
    one = solve_automaton(verifier, horizon, beta=beta)
    two = solve_automaton(other, horizon, beta=beta)
    close(one.log_z, two.log_z)
    np.testing.assert_allclose(
        np.exp(one.log_policy)[:, order], np.exp(two.log_policy), rtol=0, atol=TOL
    )


# --- the limit beta -> 0 --------------------------------------------------------------------------


@given(instances)
def test_hard_value_iteration_shares_ties_by_completions(instance):
    """Against the best completions of the tree; rewards in halves, so that ties are exact."""
    verifier, horizon, ref = random_instance(*instance)
    step = None if verifier.step is None else np.round(verifier.step)
    verifier = Verifier(verifier.machine, np.round(verifier.final) / 2, step)
    tree, r = to_tree(verifier, horizon)
    hard = solve_automaton_hard(verifier, horizon, log_ref=ref)
    mask = tree.leaf_mask
    best = r[0, mask] == r[0, mask].max()
    mass = np.zeros(mask.sum())
    if ref is not None:
        mass = leaf_log_probs_of(tree, verifier.machine, ref)[0, mask]
    mass = np.where(best, np.exp(mass), 0.0)
    assert hard.best == r[0, mask].max()
    close(hard.log_optima, math.log(mass.sum()))
    mine = np.exp(leaf_log_probs_of(tree, verifier.machine, hard.log_policy)[0, mask])
    assert np.abs(mine - mass / mass.sum()).max() <= TOL
    soft = solve_automaton(verifier, horizon, beta=0.01, log_ref=ref)
    limit = np.exp(leaf_log_probs_of(tree, verifier.machine, soft.log_policy)[0, mask])
    assert np.abs(limit - mine).max() <= 1e-9  # the next reward is at least 50 nats below


# --- dead states and long horizons ----------------------------------------------------------------


def test_states_without_completions_are_minus_infinity_never_nan():
    """State 1 is a trap that never accepts; state 2 has no token at all."""
    machine = Automaton(
        ("a", "b"),
        np.array([[0, 1], [1, 1], [0, 0]]),
        forbidden=np.array([[False, False], [False, False], [True, True]]),
        accepting=np.array([True, False, True]),
    )
    solution = solve_automaton(Verifier(machine, np.zeros(3)), 4)
    values, policy = np.asarray(solution.values), np.asarray(solution.log_policy)
    assert not np.isnan(values).any()
    assert not np.isnan(policy).any()
    assert np.isneginf(values[:, 1]).all()
    assert np.isneginf(values[:4, 2]).all()
    assert np.isneginf(policy[:, 1:]).all()
    np.testing.assert_array_equal(policy[:, 0], np.broadcast_to([0.0, -np.inf], (4, 2)))
    assert solution.log_z == 0.0
    closed = Automaton(("a", "b"), machine.next, 1, None, None, machine.accepting)
    for solve in (solve_automaton, solve_automaton_hard):
        with pytest.raises(InputError, match="no completion of horizon 4 exists"):
            solve(Verifier(closed, np.zeros(3)), 4)
    with pytest.raises(InputError, match="no completion"):
        to_tree(Verifier(closed, np.zeros(3)), 4)


@pytest.mark.parametrize("eos", [True, False])
def test_log_z_counts_completions_at_length_53(eos):
    """With reward 0, Z is the number of completions: whole-number arithmetic, 1e-12 relative."""
    rng = np.random.default_rng(5)
    machine = random_machine(rng, 6, 4, eos)
    while not machine.completable(53)[0, machine.start]:
        machine = random_machine(rng, 6, 4, eos)
    counts = [int(x) for x in machine.ends]
    for _ in range(53):
        counts = [
            sum(
                int(machine.ends[t]) if v == machine.end else counts[t]
                for v, t in enumerate(machine.next[s])
                if machine.allowed[s, v]
            )
            for s in range(6)
        ]
    log_z = solve_automaton(Verifier(machine, np.zeros(6)), 53).log_z
    assert counts[machine.start] > 10**15
    close(log_z, math.log(counts[machine.start]))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ("a", "a")}, "'a' is named twice"),
        ({"tokens": ("a", "b c")}, "white space"),
        ({"tokens": ()}, "no tokens"),
        ({"next": np.zeros((2, 3), dtype=int)}, r"shape \(2, 3\)"),
        ({"next": np.zeros((2, 2))}, "state numbers"),
        ({"next": np.array([[0, 1], [2, 0]])}, r"next\[1, 'a'\] is 2"),
        ({"start": 2}, "start is 2"),
        ({"eos": "."}, "eos '.'"),
        ({"forbidden": np.zeros((2, 2))}, "forbidden must be booleans"),
        ({"accepting": np.zeros(3, dtype=bool)}, "accepting must be booleans"),
    ],
)
def test_bad_automata_are_refused(change, message):
    good = {"tokens": ("a", "b"), "next": np.zeros((2, 2), dtype=int)}
    Automaton(**good)
    with pytest.raises(InputError, match=message):
        Automaton(**{**good, **change})


def test_bad_rewards_references_and_policies_are_refused():
    machine = Automaton(("a", "b"), np.zeros((2, 2), dtype=int))
    with pytest.raises(InputError, match=r"final has shape \(3,\)"):
        Verifier(machine, np.zeros(3))
    with pytest.raises(InputError, match=r"step\[1, 0\] is .*nan"):
        Verifier(machine, np.zeros(2), np.array([[0.0, 0.0], [np.nan, 0.0]]))
    verifier = Verifier(machine, np.zeros(2))
    for bad in (
        lambda: solve_automaton(verifier, 0),
        lambda: solve_automaton(verifier, 3, beta=0.0),
        lambda: solve_automaton(Verifier(machine, np.zeros((5, 2))), 3),
        lambda: solve_automaton(verifier, 3, log_ref=np.zeros((2, 2))),
        lambda: solve_automaton(verifier, 3, log_ref=np.full((2, 2), np.nan)),
        lambda: solve_automaton(verifier, 3, log_ref=np.full((2, 3), -1.0)),
        lambda: solve_automaton(verifier, 3, max_bytes=95),
        lambda: solve_automaton_hard(verifier, 3, tie=-1.0),
        lambda: policy_entropy(machine, np.zeros((3, 2, 3))),
        lambda: policy_entropy(machine, np.full((3, 2, 2), np.nan)),
        lambda: table_sizes(machine, np.zeros((3, 2, 2)), precision=0.0),
        lambda: sample_completions(machine, np.zeros((3, 2, 2)), jax.random.key(0), 0),
        lambda: product(verifier, verifier, max_states=0),
        lambda: product(verifier, Verifier(Automaton(("a", "c"), machine.next), np.zeros(2))),
        lambda: verifier.reward(["c"]),
        lambda: Verifier(machine, np.zeros((3, 2))).reward(["a"] * 3),
        lambda: machine.log_prob(np.zeros((2, 2, 2)), ["a"] * 3),
        lambda: policy_kl(machine, np.zeros((3, 2, 2)), np.full((2, 2), np.nan)),
        lambda: expected_term(machine, np.zeros((3, 2, 2)), np.full((2, 2), -np.inf)),
    ):
        with pytest.raises(InputError):
            bad()
