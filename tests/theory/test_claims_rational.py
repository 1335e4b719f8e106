"""The theorems in exact fractions: residual exactly 0, wrong parts noticed."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from theory.certificate import MIN_VIOLATION
from theory.claims.base import generator, run_claim
from theory.claims.rational import (
    CLAIMS,
    instances,
    lemmas,
    roads,
    theorem_2_2,
    theorem_2_3,
    theorem_3_1,
)
from theory.rational import (
    ExactTree,
    argmax,
    likelihood,
    normalised,
    path_probabilities,
    soft_policy,
)
from theory.tree import TokenTree

TRIALS = 21  # each shape of the trees once


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_the_claim_holds_exactly_and_its_twins_fail(claim):
    result = run_claim(claim, trials=TRIALS, seed=3)
    assert result.passes
    assert result.worst.residual == 0.0
    assert result.worst.slack == 0.0
    assert 2 * result.nonvacuous >= result.trials
    assert len(result.twins) >= 2
    assert all(twin.violation >= MIN_VIOLATION for twin in result.twins)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_certificate_has_slack_zero_and_says_its_part(claim):
    for index in range(4):
        certificates = claim.trial(generator(0, claim.name, index), index).certificates
        assert all(c.slack == 0.0 and c.claim == claim.name for c in certificates)
        assert all(c.part for c in certificates)


def test_trials_are_a_function_of_seed_claim_and_index():
    one, two = (
        theorem_2_3.trial(generator(5, theorem_2_3.NAME, 4), 4).certificates for _ in range(2)
    )
    assert one == two


# --- what is drawn -------------------------------------------------------------------------------


def test_the_trees_cover_the_range_and_have_eos_and_forbidden_tokens():
    trees = []
    for index in range(5 * len(instances.SHAPES)):
        trees.append(instances.random_tree(generator(0, "trees", index), index).tree)
    assert {tree.vocab for tree in trees} == {2, 3, 4, 5, 6}
    assert {tree.horizon for tree in trees} == {1, 2, 3, 4, 5, 6}
    assert {tree.n_prompts for tree in trees} == {1, 2, 3, 4, 5}
    assert min(len(tree.leaves) for tree in trees) >= 3
    assert max(len(tree.leaves) for tree in trees) <= instances.MOST
    assert 0.3 < np.mean([tree.eos is not None for tree in trees]) < 0.7
    assert np.mean([bool(tree.forbidden) for tree in trees]) > 0.3


def test_the_comparisons_are_of_the_kind_they_are_called():
    for index in range(12):
        rng = generator(0, "pairs", index)
        tree = instances.random_tree(rng, index)
        connected, disconnected, separable = (
            instances.random_comparisons(rng, tree, kind) for kind in instances.KINDS[:3]
        )
        back = {(p.prompt, p.loser, p.winner) for p in connected}
        assert back == {(p.prompt, p.winner, p.loser) for p in connected}
        assert not {(p.prompt, p.loser, p.winner) for p in separable} & {
            (p.prompt, p.winner, p.loser) for p in separable
        }
        of_first = [part for prompt, part in instances.components(tree, disconnected) if not prompt]
        assert len(of_first) > 1


def test_planted_ties_tie_exactly_and_the_near_tie_does_not():
    rng = generator(0, "ties", 0)
    tree = instances.random_tree(rng, 1)
    pairs = instances.random_comparisons(rng, tree, "disconnected")
    tables = [instances.random_distribution(rng, tree) for _ in range(3)]
    planted = instances.planted_list(rng, tree, pairs, tables, beta=2, distributions=True)
    values = [likelihood(table, pairs, beta=2) for table in planted.tables]
    assert len(planted.ties) == 3
    for a, b in planted.ties:
        assert values[a] == values[b]
        assert planted.tables[a] != planted.tables[b]
    assert max(Counter(map(float, values)).values()) == 3  # floats tie the near one with two
    assert max(Counter(values).values()) == 2


def test_realised_comparisons_are_maximised_by_their_own_rewards():
    for index in range(6):
        rng = generator(0, "realised", index)
        tree = instances.random_tree(rng, index)
        y, beta = instances.whole_table(rng, tree), instances.random_beta(rng)
        pairs = instances.realised_comparisons(rng, tree, y, beta)
        slopes = theorem_2_2.gradient(tree, pairs, y, beta)
        assert all(value == 0 for row in slopes for value in row)


# --- deliberately wrong parts --------------------------------------------------------------------


def noticed(claim, trials=8):
    return not run_claim(claim, trials=trials, seed=3).holds


def test_a_road_that_forgets_beta_is_noticed(monkeypatch):
    right = roads.policy_likelihood

    def unscaled(tree, policy, pairs, *, beta, reference=None):
        return right(tree, policy, pairs, beta=1, reference=reference)

    monkeypatch.setattr(roads, "policy_likelihood", unscaled)
    assert noticed(theorem_2_2.CLAIM, 20)


def test_a_road_that_forgets_the_reference_is_noticed(monkeypatch):
    def forgets(tree, y, reference=None):
        return path_probabilities(tree, soft_policy(tree, y))

    monkeypatch.setattr(roads, "optimum", forgets)
    assert noticed(theorem_2_3.CLAIM)


def test_a_tie_that_is_lost_is_noticed_by_each_theorem(monkeypatch):
    monkeypatch.setattr(roads, "argmax", lambda values: argmax(values)[:1])
    for claim in (theorem_2_2.CLAIM, theorem_2_3.CLAIM, theorem_3_1.CLAIM):
        assert noticed(claim)


def test_a_tie_at_the_20th_digit_is_noticed(monkeypatch):
    def offline(tree, policies, pairs, *, beta):
        values = [roads.policy_likelihood(tree, pi, pairs, beta=beta) for pi in policies]
        return argmax([float(value) for value in values])

    monkeypatch.setattr(theorem_2_2, "offline", offline)
    assert noticed(theorem_2_2.CLAIM)


def test_a_reward_off_by_one_part_in_10_to_the_30_is_noticed(monkeypatch):
    calls = itertools.count()

    def off(rng, tree, y):
        table = instances.prompt_shift(rng, tree, y)
        if next(calls) % 2:
            return table
        first = (table[0][0] * (1 + Fraction(1, 10**30)), *table[0][1:])
        return (first, *table[1:])

    for module, claim in (
        (theorem_2_2, theorem_2_2.CLAIM),
        (theorem_2_3, theorem_2_3.CLAIM),
        (theorem_3_1, theorem_3_1.CLAIM),
        (lemmas, lemmas.EQ_11),
    ):
        monkeypatch.setattr(module, "prompt_shift", off)
        assert noticed(claim)


def failing(claim, trials=8):
    """The parts of the certificates that fail in the first trials."""
    certificates = itertools.chain.from_iterable(
        claim.trial(generator(3, claim.name, i), i).certificates for i in range(trials)
    )
    return {c.part for c in certificates if not c.holds}


def test_a_local_reward_that_is_not_the_reward_is_noticed_by_its_likelihood(monkeypatch):
    part = "r_pi of pi in Pi(R_sim) has the likelihood of its reward"
    assert not failing(theorem_3_1.CLAIM)
    right = roads.policy_likelihood
    monkeypatch.setattr(
        theorem_3_1,
        "policy_likelihood",
        lambda tree, policy, pairs, *, beta: right(tree, policy, pairs, beta=1),
    )
    assert failing(theorem_3_1.CLAIM) == {part}


def test_equation_14_holds_for_the_image_of_the_mle_alone():
    tree = ExactTree(TokenTree(("a", "b"), 1, ("x",), (1.0,)))
    half, ref = (tree.table([[p, 1 - p]]) for p in (Fraction(1, 2), Fraction(3, 5)))
    assert theorem_2_3._equation_14([half], [ref], ref).holds
    assert theorem_2_3._equation_14([half], [ref, half], ref).lhs == 1


@pytest.mark.parametrize("name", ["lemma-2.1", "lemma-b.1"])
def test_a_target_off_by_one_part_in_10_to_the_30_is_noticed(name, monkeypatch):
    def off(table):
        rows = normalised(table)
        step = Fraction(1, 10**30)
        return ((rows[0][0] + step, rows[0][1] - step, *rows[0][2:]), *rows[1:])

    monkeypatch.setattr(lemmas, "normalised", off)
    claim = next(claim for claim in CLAIMS if claim.name == name)
    assert noticed(claim, 4)


def test_a_list_that_misses_the_hypothesis_is_vacuous(monkeypatch):
    monkeypatch.setattr(theorem_2_3, "mixture", lambda table, reference: table)
    trial = theorem_2_3.trial(generator(0, theorem_2_3.NAME, 0), 0)
    assert trial.vacuous
    assert trial.certificates
