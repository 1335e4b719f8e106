"""The twins' files in exact fractions: what they break, and what is refused in them."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction

import pytest

from theory.claims.base import run_twin
from theory.claims.rational import CLAIMS, replayed, roads, theorem_2_2, theorem_2_3
from theory.claims.rational.replayed import exact
from theory.claims.replay import TWINS, load_replay, twin_file
from theory.errors import InputError
from theory.rational import ExactTree, comparisons, normalised, over, soft_policy
from theory.tree import TokenTree


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


TWIN_LIST = [(claim.name, broken.name) for claim in CLAIMS for broken in claim.broken]


def places(value, at=()):
    """The path of every number of a file."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path for key, inner in items for path in places(inner, (*at, key))]
    return [at] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("claim", "twin"), TWIN_LIST, ids=lambda x: x if isinstance(x, str) else ""
)
def test_any_number_of_a_file_changed_gives_a_number_or_an_input_error(claim, twin, tmp_path):
    violation = next(c for c in CLAIMS if c.name == claim).twin(twin).violation
    whole = body(claim, twin)
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
                found = violation(replayed_from(tmp_path, changed))
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
