"""The theorems in exact fractions: residual exactly 0, twins from files, wrong parts noticed."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from theory.certificate import MIN_VIOLATION
from theory.claims.base import generator, run_claim, run_twin
from theory.claims.rational import (
    CLAIMS,
    instances,
    lemmas,
    replayed,
    roads,
    theorem_2_2,
    theorem_2_3,
    theorem_3_1,
)
from theory.claims.rational.replayed import exact
from theory.claims.replay import TWINS, load_replay, twin_file
from theory.errors import InputError
from theory.rational import (
    ExactTree,
    argmax,
    comparisons,
    likelihood,
    normalised,
    over,
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


# --- twins and their files -----------------------------------------------------------------------


def test_twin_names_and_files_match():
    from theory.claims import CLAIMS as FLOAT

    taken = {(claim.name, broken.name) for claim in FLOAT for broken in claim.broken}
    for claim in CLAIMS:
        names = [broken.name for broken in claim.broken]
        assert all(name.startswith("exact-") for name in names)
        assert len(set(names)) == len(names)
        assert not taken & {(claim.name, name) for name in names}
        files = sorted(path.stem for path in (TWINS / claim.name).glob("exact-*.json"))
        assert files == sorted(names)
        for name in names:
            replay = load_replay(twin_file(claim.name, name))
            assert (replay.claim, replay.twin) == (claim.name, name)


@pytest.mark.parametrize(
    ("claim", "twin", "nats"),
    [
        ("theorem-2.2", "exact-reward-missing", math.log(1.25)),
        ("theorem-2.3", "exact-uncovered", math.log(1.5)),
        ("theorem-2.3", "exact-printed", math.log(2)),
        (
            "theorem-2.3",
            "exact-outside",  # odds 20 by DPO, 5 by RLHF
            5 / 6 * math.log(5 / 6 * 21 / 20) + 1 / 6 * math.log(21 / 6),
        ),
        ("lemma-2.1", "exact-entropy-dropped", math.log(2)),
        ("lemma-b.1", "exact-joint", math.log(2)),
    ],
)
def test_violations_worked_out_by_hand(claim, twin, nats):
    found = next(c for c in CLAIMS if c.name == claim)
    violation = run_twin(found.twin(twin), load_replay(twin_file(claim, twin))).violation
    assert violation == pytest.approx(nats, rel=1e-14)


@pytest.mark.parametrize(
    ("twin", "image", "kept"), [("exact-outside", False, True), ("exact-back-outside", True, False)]
)
def test_a_half_of_the_condition_of_theorem_2_3_is_broken_alone(twin, image, kept, tmp_path):
    file = exact(load_replay(twin_file("theorem-2.3", twin)))
    policies = [soft_policy(file.tree, table) for table in file.policies]
    reference = soft_policy(file.tree, file.given_reference)
    (mle,) = roads.offline(file.tree, policies, file.pairs, beta=file.beta)
    (dpo,) = roads.offline(file.tree, policies, file.pairs, beta=file.beta, reference=reference)
    into = theorem_2_3.mixture(file.policies[mle], file.given_reference)
    back = normalised(over(file.policies[dpo], file.given_reference))
    assert (into in file.policies, back in file.policies) == (image, kept)
    changed = body("theorem-2.3", twin)  # both halves broken: the twin decides nothing
    changed["instance"]["reference"]["x"] = {"a": 1 / 7, "b": 6 / 7}
    violation = theorem_2_3.CLAIM.twin(twin).violation
    assert math.isnan(violation(replayed_from(tmp_path, changed)))
    changed = body("theorem-2.3", twin)  # R is not R(Pi): another assumption
    changed["policies"].append({"x": {"a": 0.5, "b": 0.5}})
    assert math.isnan(violation(replayed_from(tmp_path, changed)))


def body(claim="theorem-2.2", twin="exact-reward-missing"):
    return json.loads(twin_file(claim, twin).read_text())


def replayed_from(tmp_path, changed):
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(changed))
    return load_replay(path)


def test_a_file_whose_assumption_holds_again_shows_no_violation(tmp_path):
    changed = body()
    changed["policies"] = changed["policies"][:2]  # R = R(Pi)
    violation = theorem_2_2.CLAIM.twin("exact-reward-missing").violation
    assert violation(replayed_from(tmp_path, changed)) == 0.0


def test_numbers_are_read_as_the_fractions_they_were(tmp_path):
    file = exact(replayed_from(tmp_path, body("theorem-2.3", "exact-back-outside")))
    assert file.policies == (
        ((Fraction(1, 2), Fraction(1, 2)),),
        ((Fraction(1, 3), Fraction(2, 3)),),
    )
    assert file.reference == ((Fraction(1, 3), Fraction(2, 3)),)
    assert file.rewards == file.policies


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.update(beta=1.5), "whole number beta"),
        (lambda b: b["numbers"].update(policies=9), "numbers.policies must be a whole number"),
        (lambda b: b["numbers"].update(policies=1.5), "numbers.policies must be a whole number"),
        (lambda b: b["numbers"].clear(), "needs numbers.policies"),
        (
            lambda b: b["policies"][0].update(x={"a": math.pi / 4, "b": 1 - math.pi / 4}),
            "is no fraction with a denominator up to 1,000,000",
        ),
        (lambda b: b["policies"][0].update(x={"a": 0.0, "b": 1.0}), "'a' is compared"),
        (lambda b: b["instance"].update(preferences=[["x", "a", "b", 1.5]]), "count must be"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, change, words):
    changed = body()
    change(changed)
    replay = replayed_from(tmp_path, changed)
    with pytest.raises(InputError, match=words):
        theorem_2_2.CLAIM.twin("exact-reward-missing").violation(replay)


@pytest.mark.parametrize(
    ("claim", "twin"),
    [("eq-11", "exact-no-backup"), ("eq-11", "exact-beta-ignored"), ("lemma-b.1", "exact-joint")],
)
@pytest.mark.parametrize("listed", [1, 2])
def test_a_reward_with_a_point_mass_is_refused_with_its_place(claim, twin, listed, tmp_path):
    changed = body(claim, twin)
    for policy in changed["policies"]:
        first, *rest = policy["x"]
        policy["x"] = {first: 1.0, **dict.fromkeys(rest, 0.0)}
    changed["numbers"]["policies"] = listed
    violation = next(c for c in CLAIMS if c.name == claim).twin(twin).violation
    with pytest.raises(InputError, match=r"exp\(r / beta\) must be > 0, got 0 at prompt 'x'"):
        violation(replayed_from(tmp_path, changed))


def test_the_printed_equation_needs_positive_probabilities(tmp_path):
    changed = body("theorem-2.3", "exact-printed")
    del changed["instance"]["preferences"]
    changed["policies"][0]["x"] = {"a": 0.0, "b": 1.0}
    violation = theorem_2_3.CLAIM.twin("exact-printed").violation
    with pytest.raises(InputError, match="a probability must be > 0, got 0 at prompt 'x'"):
        violation(replayed_from(tmp_path, changed))


@pytest.mark.parametrize(
    ("claim", "twin"),
    [
        ("eq-11", "exact-beta-ignored"),
        ("lemma-2.1", "exact-beta-ignored"),
        ("theorem-2.3", "exact-printed"),
        ("theorem-2.2", "exact-unscaled"),
    ],
)
@pytest.mark.parametrize("beta", [1e6, 1e8, 1e300])
def test_powers_too_long_are_refused_with_their_size(claim, twin, beta, tmp_path):
    violation = next(c for c in CLAIMS if c.name == claim).twin(twin).violation
    with pytest.raises(InputError, match=r"powers at beta 1e\+\d+ .* bits; the limit is 262,144"):
        violation(replayed_from(tmp_path, {**body(claim, twin), "beta": beta}))


def test_counts_too_large_are_refused_with_the_size(tmp_path):
    changed = body("theorem-2.3", "exact-printed")
    changed["instance"]["preferences"][0][3] = 10**9
    violation = theorem_2_3.CLAIM.twin("exact-printed").violation
    with pytest.raises(InputError, match=r"take up to 2e\+10 bits; the limit is 262,144"):
        violation(replayed_from(tmp_path, changed))


NUMBERS = [(claim, broken.name) for claim in CLAIMS for broken in claim.broken]


def places(value, at=()):
    """The path of every number of a file."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path for key, inner in items for path in places(inner, (*at, key))]
    return [at] if isinstance(value, int | float) else []


@pytest.mark.parametrize(("claim", "twin"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_any_number_of_a_file_changed_gives_a_number_or_an_input_error(claim, twin, tmp_path):
    whole = body(claim.name, twin)
    for path in places(whole):
        for change in (None, 0, -1, 10**9, 1e300):
            changed = copy.deepcopy(whole)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if change is None:
                del inner[path[-1]]
            else:
                inner[path[-1]] = change
            try:
                found = claim.twin(twin).violation(replayed_from(tmp_path, changed))
            except InputError:
                continue
            assert found >= 0 or math.isnan(found)


def test_a_reference_that_is_missing_is_named(tmp_path):
    changed = body("theorem-2.3", "exact-printed")
    del changed["instance"]["reference"]
    replay = replayed_from(tmp_path, changed)
    with pytest.raises(InputError, match=r"instance\.reference"):
        theorem_2_3.CLAIM.twin("exact-printed").violation(replay)


def test_the_distance_of_sets_is_zero_only_if_they_are_equal():
    tree = ExactTree(TokenTree(("a", "b"), 1, ("x",), (1.0,)))
    half, most = (tree.table([[p, 1 - p]]) for p in (Fraction(1, 2), Fraction(4, 5)))
    assert roads.distance(tree, [half, most], [most, half]) == 0.0
    assert roads.distance(tree, [half], [half, most]) == pytest.approx(math.log(1.25))
    assert roads.distance(tree, [half, most], [half]) == pytest.approx(math.log(1.25))


def test_no_twin_of_one_comparison_replaces_those_with_two():
    """With one comparison each road is monotone in the odds: an extra reward changes nothing."""
    tree = ExactTree(TokenTree(("a", "b"), 1, ("x",), (1.0,)))
    pairs = comparisons(tree, [(0, 0, 1, 1)])
    grid = [tree.table([[Fraction(n, 8), Fraction(8 - n, 8)]]) for n in range(1, 8)]
    for one in grid:
        for two in grid:
            for extra in grid:
                file = replayed.Exact(tree, pairs, 1, (one, two), (one, two, extra), None)
                assert replayed.miss(file) == 0.0
