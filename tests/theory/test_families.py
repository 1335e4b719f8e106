"""Families of ground-truth rewards against brute force, and what all of them promise."""

from __future__ import annotations

import doctest
import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import theory.families
from theory.automaton import minimise, rouge_l_verifier, to_tree
from theory.errors import InputError
from theory.families import (
    Automata,
    Coverage,
    Family,
    Lookup,
    Rouge,
    Sat,
    Walsh,
    make,
    orthonormal,
    walsh_reward,
)
from theory.tree import TokenTree

SPECS = [
    Walsh(),
    Walsh(bits=6, degree=3, horizon=2, sharpness=0.7, seed=5),
    Lookup(bits=6, horizon=3, seed=2),
    Sat(),
    Sat(bits=6, degree=2, clauses=7, horizon=3, sharpness=1, seed=4),
    Automata(),
    Automata(states=3, vocab=3, horizon=4, seed=1),
    Automata(kind="pattern", seed=3),
    Automata(kind="pattern", states=3, vocab=3, horizon=5, sharpness=4.0),
    Automata(kind="brackets"),
    Automata(kind="brackets", states=3, vocab=3, horizon=5),
    Coverage(),
    Coverage(words=3, salient=2, prompts=2, horizon=4, length_penalty=0.0, seed=7),
    Rouge(),
    Rouge(words=2, reference=4, prompts=2, horizon=5, seed=3),
]


def name_of(spec: Family) -> str:
    return f"{spec.family}-{SPECS.index(spec)}"


def rewards_by_name(truth: theory.families.GroundTruth, prompt: int = 0) -> dict[tuple, float]:
    leaves = truth.tree.leaves
    return {truth.tree.leaf_tokens(int(i)): float(truth.reward[prompt, i]) for i in leaves}


def assert_proportional(truth, brute, prompt: int = 0) -> float:
    """The reward is one factor times brute(tokens); returns the factor."""
    found = rewards_by_name(truth, prompt)
    wanted = np.array([brute(tokens) for tokens in found])
    values = np.array(list(found.values()))
    factor = float(values @ wanted / (wanted @ wanted))
    np.testing.assert_allclose(values, factor * wanted, atol=1e-12 * abs(values).max())
    assert factor > 0
    return factor


# --- what every family promises -------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_the_sharpness_is_the_standard_deviation_and_other_slots_are_zero(spec: Family):
    truth = spec.draw()
    mask = truth.tree.leaf_mask
    spread = truth.reward[:, mask].std(axis=1).mean()
    assert spread == pytest.approx(spec.sharpness, rel=1e-12)
    assert not truth.reward[:, ~mask].any()
    assert not truth.features[:, ~mask].any()


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_features_are_orthonormal_and_hold_the_reward_up_to_a_shift_a_prompt(spec: Family):
    truth = spec.draw()
    prompts, mask = truth.tree.n_prompts, truth.tree.leaf_mask
    live = truth.features[:, mask]
    np.testing.assert_allclose(live.mean(axis=1), 0.0, atol=1e-12)
    rows = live.reshape(prompts * mask.sum(), -1)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(rows.shape[1]), atol=1e-12)
    centred = truth.reward[:, mask] - truth.reward[:, mask].mean(axis=1, keepdims=True)
    theta = rows.T @ centred.reshape(-1) / len(rows)
    np.testing.assert_allclose(rows @ theta, centred.reshape(-1), atol=1e-11 * spec.sharpness)
    assert np.linalg.norm(theta) == pytest.approx(float(np.sqrt(np.mean(centred**2))))


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_the_parameters_make_it_again_after_a_trip_through_json(spec: Family):
    truth = spec.draw()
    again = make(truth.family, json.loads(json.dumps(truth.parameters, allow_nan=False)))
    assert again.parameters == truth.parameters
    np.testing.assert_array_equal(again.reward, truth.reward)
    np.testing.assert_array_equal(again.features, truth.features)
    assert again.tree == truth.tree


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_another_seed_is_another_reward_in_a_class_of_the_same_size(spec: Family):
    here = spec.draw()
    drawn = [make(spec.family, {**here.parameters, "seed": seed}) for seed in range(10, 18)]
    different = {truth.reward.tobytes() for truth in drawn}
    if here.parameters.get("kind") == "brackets":
        assert len(different) == 1
    else:
        assert len(different) >= 2
    assert {truth.features.shape for truth in drawn} == {here.features.shape}
    if spec.fixed_features:
        assert all(np.array_equal(truth.features, here.features) for truth in drawn)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_sharpness_scales_the_reward_alone_and_results_cannot_be_written(spec: Family):
    truth = spec.draw()
    twice = make(spec.family, {**truth.parameters, "sharpness": 2 * spec.sharpness})
    np.testing.assert_allclose(twice.reward, 2 * truth.reward, rtol=1e-14)
    np.testing.assert_array_equal(twice.features, truth.features)
    with pytest.raises(ValueError, match="read-only"):
        truth.reward[0, 0] = 1.0


def test_orthonormal_features_keep_the_span_and_drop_what_is_constant_or_repeated():
    tree = TokenTree(("a", "b", "."), 3, ("x", "y"), (0.5, 0.5), eos=".")
    generator = np.random.default_rng(0)
    raw = generator.normal(size=(2, tree.n_leaves, 3))
    more = np.concatenate([raw, raw @ generator.normal(size=(3, 2)), np.ones_like(raw)], axis=2)
    shifted = more + generator.normal(size=(2, 1, more.shape[2]))
    out = orthonormal(tree, shifted)
    assert out.shape == (2, tree.n_leaves, 3)
    live = raw[:, tree.leaf_mask]
    rows = (live - live.mean(axis=1, keepdims=True)).reshape(-1, 3)
    columns = out[:, tree.leaf_mask].reshape(-1, 3)
    np.testing.assert_allclose(columns @ (columns.T @ rows) / len(rows), rows, atol=1e-12)


def test_the_examples_in_the_package_run():
    result = doctest.testmod(theory.families)
    assert result.attempted > 0
    assert result.failed == 0


DIGEST = """
import hashlib
from theory.families import Automata, Coverage, Lookup, Rouge, Sat, Walsh
for spec in (Walsh(), Automata(), Coverage(), Sat(), Lookup(), Rouge()):
    truth = spec.draw()
    print(hashlib.sha256(truth.reward.tobytes() + truth.features.tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit():
    def digest(threads: str) -> str:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        run = [sys.executable, "-c", DIGEST]
        env = {**os.environ, **dict.fromkeys(names, threads)}
        return subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout

    assert digest("1") == digest("2")


# --- each family against brute force --------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 6), st.sampled_from([1, 2, 3, 6]))
def test_walsh_is_the_reward_of_the_sweep_bit_for_bit_at_every_horizon(seed, degree, horizon):
    truth = Walsh(bits=6, degree=degree, horizon=horizon, sharpness=1.5, seed=seed).draw()
    np.testing.assert_array_equal(truth.reward[0], walsh_reward(6, degree, 1.5, seed))
    assert truth.degree == degree
    assert truth.features.shape[2] == sum(math.comb(6, j) for j in range(1, degree + 1))
    first = truth.tree.leaf_tokens(5)
    assert "".join(first) == "000101"


def test_a_walsh_reward_is_the_polynomial_of_its_definition():
    truth = Walsh(bits=4, degree=2, horizon=4, seed=9).draw()
    terms = [s for k in (1, 2) for s in itertools.combinations(range(4), k)]
    draw = np.random.default_rng([9, 4, 2, 0]).standard_normal(len(terms))
    scaled = 2.0 * draw / math.sqrt(sum(x * x for x in draw))
    for tokens, value in rewards_by_name(truth).items():
        chi = [math.prod(-1 if tokens[i] == "1" else 1 for i in term) for term in terms]
        assert value == pytest.approx(float(np.dot(chi, scaled)), abs=1e-12)


def test_a_lookup_table_has_every_feature_and_does_not_see_the_horizon():
    truth, cut = Lookup(bits=6, horizon=6, seed=1).draw(), Lookup(bits=6, horizon=2, seed=1).draw()
    np.testing.assert_array_equal(truth.reward, cut.reward)
    assert truth.features.shape == (1, 64, 63)
    assert len(set(truth.reward[0])) == 64


@given(st.integers(0, 2**40), st.integers(1, 4), st.integers(1, 12), st.sampled_from([1, 2, 4]))
def test_sat_counts_the_clauses_that_hold(seed: int, k: int, clauses: int, horizon: int):
    spec = Sat(bits=4, degree=k, clauses=min(clauses, 4), horizon=horizon, seed=seed)
    drawn = spec.draw_clauses()
    assert len(set(drawn)) == spec.clauses
    assert all(len({i for i, _ in clause}) == k for clause in drawn)

    def brute(tokens: tuple[str, ...]) -> int:
        bits = [int(b) for b in "".join(tokens)]
        return sum(any(bits[i] == wanted for i, wanted in clause) for clause in drawn)

    counts = {brute(bits) for bits in itertools.product("01", repeat=4)}
    if len(counts) == 1:
        with pytest.raises(InputError, match="same reward"):
            spec.draw()
    else:
        assert_proportional(spec.draw(), brute)


def test_all_clauses_together_say_nothing():
    with pytest.raises(InputError, match=r"clauses=8.*same reward"):
        Sat(bits=3, degree=3, clauses=8, horizon=3).draw()


def test_modular_sums_count_every_token_by_its_value():
    spec = Automata(states=3, vocab=3, horizon=4, seed=1)
    scores = spec.verifier().final
    assert len(set(scores)) == 3
    truth = spec.draw()
    assert_proportional(truth, lambda tokens: scores[sum(map(int, tokens)) % 3])
    assert truth.features.shape[2] == 2


def test_a_pattern_is_found_anywhere_in_a_row():
    words = set()
    for seed in range(6):
        spec = Automata(kind="pattern", states=4, vocab=2, horizon=6, seed=seed)
        truth = spec.draw()
        hits = {"".join(tokens) for tokens, r in rewards_by_name(truth).items() if r > 0}
        found = [
            w
            for w in map("".join, itertools.product("ab", repeat=3))
            if hits == {x for x in map("".join, itertools.product("ab", repeat=6)) if w in x}
        ]
        assert len(found) == 1
        words.add(found[0])
        assert truth.features.shape[2] == 3
    assert len(words) > 1


@pytest.mark.parametrize(("states", "vocab", "horizon"), [(3, 2, 4), (4, 2, 8), (4, 3, 5)])
def test_brackets_match_up_to_their_depth(states: int, vocab: int, horizon: int):
    def brute(tokens: tuple[str, ...]) -> float:
        steps = [{"(": 1, ")": -1}.get(token, 0) for token in tokens]
        open_now = list(itertools.accumulate(steps))
        return float(open_now[-1] == 0 and min(open_now) >= 0 and max(open_now) <= states - 2)

    spec = Automata(kind="brackets", states=states, vocab=vocab, horizon=horizon)
    assert_proportional(spec.draw(), brute)


@given(
    st.sampled_from(["modulo", "pattern", "brackets"]),
    st.integers(3, 5),
    st.integers(2, 3),
    st.integers(0, 2**40),
)
def test_the_automaton_is_minimal_and_gives_the_reward(kind, states, vocab, seed):
    spec = Automata(kind=kind, states=states, vocab=vocab, horizon=6, seed=seed)
    verifier = spec.verifier()
    assert verifier.machine.n_states == states == minimise(verifier)[0].machine.n_states
    tree, reward = to_tree(verifier, 6)
    truth = spec.draw()
    assert tree == truth.tree
    np.testing.assert_allclose(truth.reward, reward * (2.0 / reward.std()), atol=1e-12)


@given(st.integers(0, 2**40), st.integers(1, 3), st.floats(0, 2), st.floats(0, 2))
def test_coverage_counts_salient_words_repeats_and_length(seed, salient, duplicates, length):
    spec = Coverage(
        words=3, salient=salient, prompts=1 + 2 * (salient < 3), horizon=3, seed=seed,
        duplicate_penalty=duplicates, length_penalty=length,
    )  # fmt: skip
    truth = spec.draw()
    assert len(set(truth.tree.prompts)) == spec.prompts
    factors = set()
    for x, prompt in enumerate(truth.tree.prompts):
        salient_words = frozenset(prompt.split())

        def brute(tokens: tuple[str, ...], wanted=salient_words) -> float:
            words = [token for token in tokens if token != "."]
            repeats = len(words) - len(set(words))
            return len(wanted & set(words)) - duplicates * repeats - length * len(words)

        assert len(prompt.split()) == salient
        factors.add(round(assert_proportional(truth, brute, x), 9))
    assert len(factors) == 1


@given(st.integers(0, 2**40))
def test_renaming_words_moves_the_reward_of_coverage_along(seed: int):
    truth = Coverage(words=3, salient=1, prompts=3, horizon=3, seed=seed).draw()
    tables = {p: rewards_by_name(truth, x) for x, p in enumerate(truth.tree.prompts)}
    swap = str.maketrans("ab", "ba")
    for tokens, value in tables["a"].items():
        assert tables["b"][tuple(t.translate(swap) for t in tokens)] == value


def lcs(left: tuple, right: tuple) -> int:
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return 1 + lcs(left[:-1], right[:-1])
    return max(lcs(left[:-1], right), lcs(left, right[:-1]))


@pytest.mark.parametrize("seed", range(3))
def test_rouge_is_the_f1_with_one_reference_a_prompt(seed: int):
    spec = Rouge(words=2, reference=3, prompts=2, horizon=4, seed=seed)
    truth = spec.draw()
    for x in range(2):
        names = rewards_by_name(truth, x)
        reference = max((t for t in names if len(t) == 4 and t[-1] == "."), key=names.__getitem__)
        words = reference[:-1]
        verifier = rouge_l_verifier(truth.tree.tokens, words, 4, eos=".")
        factor = assert_proportional(truth, verifier.reward, x)

        def brute(tokens: tuple[str, ...], words=words) -> float:
            said = tuple(t for t in tokens if t != ".")
            return 2 * lcs(said, words) / (len(said) + 3)

        assert assert_proportional(truth, brute, x) == pytest.approx(factor)


def test_the_class_of_rouge_holds_every_reference_of_every_prompt():
    truth = Rouge(words=2, reference=3, prompts=2, horizon=4).draw()
    assert truth.features.shape == (2, 81, 16)
    mask = truth.tree.leaf_mask
    rows = truth.features[:, mask].reshape(-1, 16)
    for x, words in itertools.product(range(2), itertools.product("ab", repeat=3)):
        verifier = rouge_l_verifier(truth.tree.tokens, words, 4, eos=".")
        reward = np.zeros((2, mask.sum()))
        reward[x] = [verifier.reward(truth.tree.leaf_tokens(int(i))) for i in truth.tree.leaves]
        centred = (reward - reward.mean(axis=1, keepdims=True)).reshape(-1)
        np.testing.assert_allclose(rows @ (rows.T @ centred) / len(rows), centred, atol=1e-10)
