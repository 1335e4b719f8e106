"""Twin files: read whole or refused, and each twin reads the numbers of its file."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from theory.certificate import MIN_VIOLATION
from theory.claims import find
from theory.claims.base import run_twin
from theory.claims.replay import load_replay, twin_file
from theory.classes import LogLinearPolicies
from theory.errors import InputError
from theory.projection import soft_rl
from theory.soft import kl, leaf_log_probs
from theory.tree import TokenTree


def odds(value):
    return {"x": {"a": value / (1 + value), "b": 1 / (1 + value)}}


def log_odds(value):
    return {"x": {"a": math.log(value / (1 + value)), "b": math.log(1 / (1 + value))}}


def numbers(**values):
    return lambda body: body["numbers"].update(
        {k.replace("_of_", " "): v for k, v in values.items()}
    )


def put(key, index, value):
    return lambda body: body[key].__setitem__(index, value)


def add(key, value):
    return lambda body: body[key].append(value)


def instance(**values):
    return lambda body: body["instance"].update(values)


def one_prompt(body):
    for table in (body["instance"]["reward"], body["instance"]["reference"], *body["policies"]):
        del table["y"]
    body["instance"]["prompts"] = {"x": 1.0}


def over_all_policies(body):
    body["numbers"]["over_pi"] = 0.0
    body["policies"][1] = odds(4)


# What makes the broken assumption hold again.
REPAIRS = {
    ("lemma-2.1", "other-beta"): numbers(target_beta=0.5),
    ("lemma-2.1", "no-entropy"): numbers(entropy_weight=1.0),
    ("lemma-2.1", "other-reward"): put("rewards", 0, {"x": {"a": 1.0, "b": 0.0}}),
    ("lemma-b.1", "pooled"): one_prompt,
    ("lemma-b.1", "no-reference"): instance(reference=odds(1)),
    ("lemma-b.1", "other-beta"): numbers(target_beta=0.5),
    ("lemma-b.1", "tempered-reference"): numbers(reference_power=1.0),
    ("theorem-2.2", "fewer-rewards"): add("rewards", log_odds(4)),
    ("theorem-2.2", "more-rewards"): lambda body: body["rewards"].pop(),
    ("theorem-2.2", "unscaled"): numbers(local_beta=2.0),
    ("theorem-2.2", "smaller-step"): numbers(kept=2),
    ("theorem-2.2", "drift"): numbers(step=0.01, steps=500),
    ("theorem-2.2", "not-fitted"): put("rewards", 0, log_odds(4)),
    ("theorem-2.2", "no-weight"): numbers(weight_of_x=0.5, weight_of_y=0.5),
    ("theorem-2.3", "image-outside"): add("policies", odds(8)),
    ("theorem-2.3", "source-outside"): add("policies", odds(3)),
    ("theorem-2.3", "uncovered"): instance(reference={"x": {"a": 0.3, "b": 0.2, "c": 0.5}}),
    ("theorem-2.3", "printed"): numbers(prompt_term=1.0),
    ("theorem-2.3", "other-rewards"): add("rewards", log_odds(3)),
    ("theorem-2.3", "other-beta"): numbers(local_beta=2.0),
    ("theorem-3.1", "optimum-outside"): put("policies", 1, odds(4)),
    ("theorem-3.1", "optimum-over-pi"): over_all_policies,
    ("theorem-3.1", "other-classes"): add("rewards", log_odds(4)),
    ("theorem-3.1", "other-beta"): numbers(local_beta=2.0),
}
# No edit of their data leaves two sets to compare: with a maximiser they must show nothing.
EMPTY = [("theorem-2.2", "no-maximiser"), ("theorem-2.3", "no-maximiser")]
CLAIMS = sorted({claim for claim, _ in REPAIRS})


def body_of(claim, twin):
    return json.loads(twin_file(claim, twin).read_text())


def saved(tmp_path, body):
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    return path


def test_every_twin_has_a_repair():
    assert {*REPAIRS, *EMPTY} == {(name, b.name) for name in CLAIMS for b in find(name).broken}


@pytest.mark.parametrize(("claim", "twin"), REPAIRS)
def test_a_twin_whose_assumption_holds_again_misses_by_nothing(claim, twin, tmp_path):
    broken = find(claim).twin(twin)
    assert run_twin(broken, load_replay(twin_file(claim, twin))).violation >= MIN_VIOLATION
    body = body_of(claim, twin)
    REPAIRS[claim, twin](body)
    found = run_twin(broken, load_replay(saved(tmp_path, body)))
    assert abs(found.violation) < 1e-9
    assert found.holds


def edited(claim, twin, edit, tmp_path):
    """The violation of a shipped twin whose file was edited."""
    body = body_of(claim, twin)
    edit(body)
    return run_twin(find(claim).twin(twin), load_replay(saved(tmp_path, body))).violation


@pytest.mark.parametrize(("claim", "twin"), EMPTY)
def test_two_sequences_without_a_maximiser_stay_apart(claim, twin, tmp_path):
    shipped = run_twin(find(claim).twin(twin), load_replay(twin_file(claim, twin))).violation
    limits = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    start = 0.4 * np.log(0.4 / 0.6) + 0.4 * np.log(0.4 / 0.2)
    assert shipped == pytest.approx(min(limits, start), abs=1e-12)
    both = [["x", "a", "b", 40], ["x", "b", "a", 10]]
    assert math.isnan(edited(claim, twin, instance(preferences=both), tmp_path))
    alike = put("policies", 1, body_of(claim, twin)["policies"][0])
    assert edited(claim, twin, alike, tmp_path) == pytest.approx(0.0, abs=1e-12)
    still = put("rewards", 0, {"x": {"a": 0.0, "b": 0.0, "c": 0.0}})  # no rise
    assert math.isnan(edited(claim, twin, still, tmp_path))
    wrong_way = put("rewards", 0, {"x": {"a": -1.0, "b": 0.0, "c": 0.0}})
    assert math.isnan(edited(claim, twin, wrong_way, tmp_path))


def test_the_supremum_counts_what_cannot_be_won_for_sure(tmp_path):
    """a beats b once, b and c each other: sequences that keep b and c even do not get there."""
    rows = [["x", "a", "b", 1], ["x", "b", "c", 4], ["x", "c", "b", 1]]
    rises = put("rewards", 0, {"x": {"a": 1.0, "b": 0.0, "c": 0.0}})

    def edit(body, policies):
        body["instance"]["preferences"] = rows
        body["policies"] = [{"x": p} for p in policies]
        body["beta"] = 1.0
        rises(body)

    even = [{"a": 0.4, "b": 0.3, "c": 0.3}, {"a": 0.4, "b": 0.48, "c": 0.12}]
    odds_four = [{"a": 0.4, "b": 0.48, "c": 0.12}, {"a": 0.2, "b": 0.64, "c": 0.16}]
    name = ("theorem-2.2", "no-maximiser")
    assert math.isnan(edited(*name, lambda body: edit(body, even), tmp_path))
    there = edited(*name, lambda body: edit(body, odds_four), tmp_path)
    assert there == pytest.approx(0.0, abs=1e-12)  # they reach the top, and end together


def test_a_run_that_starts_on_a_plateau_or_has_not_ended_is_no_drift(tmp_path):
    name = ("theorem-2.2", "drift")
    assert math.isnan(edited(*name, numbers(start=-40.0), tmp_path))
    assert math.isnan(edited(*name, numbers(step=0.001, steps=3), tmp_path))


def test_soft_rl_itself_can_run_past_the_optimum():
    """pi(1|s) = sigmoid(theta f_s), optimum at 2: from -4 there is a slope, and it ends far off."""
    wide = TokenTree(("0", "1"), 1, ("s0", "s1", "s2"), (1 / 3, 1 / 3, 1 / 3))
    f = np.asarray([1.0, 0.0, -20.0])
    features = np.zeros((3, 1, 2, 1))
    features[:, 0, 1, 0] = f
    policies = LogLinearPolicies((jnp.asarray(features),), (jnp.ones((1, 2), dtype=bool),))
    target = np.asarray(leaf_log_probs(wide, list(policies.log_policy(jnp.full(1, 2.0)))))
    good, lost = soft_rl(wide, policies, target, np.asarray([[1.5], [-4.0]]))
    slope = np.dot(f**2 * expit(-4.0 * f) * expit(4.0 * f), wide.rho0) * (-4.0 - 2.0)
    assert abs(slope) > 1e-3
    assert max(good.gradient, lost.gradient) < 1e-9
    assert kl(wide, good.log_p, target) < 1e-12
    assert kl(wide, lost.log_p, target) > 0.01


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda b: b.pop("beta"), r"missing keys \['beta'\], unknown keys \[\]"),
        (lambda b: b.update(note="x"), r"missing keys \[\], unknown keys \['note'\]"),
        (lambda b: b.update(claim=3), "claim must be a string, got 3"),
        (lambda b: b.update(beta=0), "beta must be > 0, got 0"),
        (lambda b: b.update(beta=True), "beta must be a number, got True"),
        (lambda b: b.update(beta=10**400), "beta must be finite"),
        (lambda b: b.update(numbers=[1]), "numbers must be an object"),
        (lambda b: b.update(numbers={"kept": "1"}), "numbers.kept must be a number, got '1'"),
        (lambda b: b.update(policies={}), "policies must be a list"),
        (lambda b: b.update(policies=[{"x": {"a": 0.5, "b": 0.6}}]), r"policies\[0\]"),
        (lambda b: b.update(rewards=[{"x": {"a": 0.5}}]), r"rewards\[0\]"),
        (lambda b: b.update(instance=None), "instance"),
        (lambda b: b["instance"].update(depth=3), "depth"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(edit, message, tmp_path):
    body = body_of("theorem-2.2", "smaller-step")
    edit(body)
    path = saved(tmp_path, body)
    with pytest.raises(InputError, match=message) as caught:
        load_replay(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"claim": 1, "claim": 2}', "NaN"])
def test_a_file_that_is_no_object_is_refused(text, tmp_path):
    path = tmp_path / "twin.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load_replay(path)
    with pytest.raises(InputError):
        load_replay(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("claim", "twin", "edit", "message"),
    [
        ("theorem-2.2", "unscaled", lambda b: b.pop("numbers"), "needs numbers.local_beta"),
        ("theorem-2.2", "fewer-rewards", lambda b: b.pop("rewards"), "needs at least 1 rewards"),
        ("theorem-2.2", "fewer-rewards", lambda b: b.pop("policies"), "at least 1 policies"),
        (
            "theorem-2.2",
            "fewer-rewards",
            lambda b: b["instance"].pop("preferences"),
            "needs instance.preferences",
        ),
        ("lemma-2.1", "other-beta", lambda b: b["instance"].pop("reward"), "instance.reward"),
        ("lemma-b.1", "pooled", lambda b: b["instance"].pop("reference"), "instance.reference"),
        ("theorem-2.2", "smaller-step", lambda b: b["numbers"].update(kept=9), "at least 9"),
        ("theorem-2.2", "smaller-step", lambda b: b["numbers"].update(kept=0), "kept"),
        ("theorem-2.2", "smaller-step", lambda b: b["numbers"].update(kept=1.5), "kept"),
        ("theorem-2.2", "drift", lambda b: b["numbers"].update(steps=1e9), "steps"),
        ("theorem-2.2", "no-maximiser", lambda b: b.pop("rewards"), "at least 1 rewards"),
        ("theorem-2.2", "drift", lambda b: b["instance"].update(tokens=["a", "b", "c"]), "token"),
    ],
)
def test_a_file_without_what_its_twin_needs_is_refused(claim, twin, edit, message, tmp_path):
    body = body_of(claim, twin)
    edit(body)
    with pytest.raises(InputError, match=message):
        run_twin(find(claim).twin(twin), load_replay(saved(tmp_path, body)))


def test_a_twin_on_data_without_a_maximiser_shows_nothing(tmp_path):
    body = body_of("theorem-2.2", "unscaled")
    body["instance"]["preferences"] = [["x", "a", "b", 1]]
    found = run_twin(find("theorem-2.2").twin("unscaled"), load_replay(saved(tmp_path, body)))
    assert math.isnan(found.violation)
    assert found.holds


def test_an_unknown_twin_lists_the_known_ones():
    with pytest.raises(InputError, match=r"theorem-2\.3 has no twin 'x'; known: image-outside"):
        find("theorem-2.3").twin("x")
