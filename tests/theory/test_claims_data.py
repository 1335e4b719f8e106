"""Eqs. 2-3, sampler invariance (A.1), coverage (A.2): they hold, their twins fail."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from theory.certificate import MIN_VIOLATION, SLACK
from theory.claims import coverage, eqs_2_3, sampler_invariance
from theory.claims.base import generator, run_trials, run_twin, run_twins
from theory.claims.instances import (
    one_step_tree,
    random_log_p,
    random_reward,
    random_tree,
    two_way_pairs,
)
from theory.claims.replay import load_replay, twin_file
from theory.classes import TabularPolicies
from theory.errors import InputError
from theory.fit import TabularOptima, fit_tabular
from theory.fit_policy import fit_policy
from theory.preferences import PairData
from theory.soft import kl, log_optimal, soft_value_iteration
from theory.tree import TokenTree

MODULES = (eqs_2_3, sampler_invariance, coverage)
TRIALS = {"eqs-2-3": (1, 8, 15), "sampler-invariance": (1, 8), "coverage": (1, 8)}
TWINS = [(m, broken.name) for m in MODULES for broken in m.CLAIM.broken]


def twin_names(pair) -> str:
    return pair if isinstance(pair, str) else pair.NAME


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_the_claim_holds_and_its_twins_fail(module):
    result = run_trials(module.CLAIM, TRIALS[module.NAME], seed=11)
    assert result.holds, result.worst
    assert result.worst.slack == SLACK <= 1e-10
    assert result.worst.residual <= 1e-11
    assert result.nonvacuous == 2
    assert {twin.name for twin in result.twins} == {b.name for b in module.CLAIM.broken}
    assert all(twin.violation >= MIN_VIOLATION for twin in result.twins)
    assert result.passes


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_a_claim_is_said_in_words(module):
    claim = module.CLAIM
    assert claim.name == module.NAME
    assert min(len(claim.statement), len(claim.left_out)) > 100
    for broken in claim.broken:
        assert broken.assumption
        assert broken.smallest
        replay = load_replay(twin_file(claim.name, broken.name))
        assert (replay.claim, replay.twin) == (claim.name, broken.name)


# --- twins ---------------------------------------------------------------------------------------

EVEN = [["x", "a", "b", 2], ["x", "b", "a", 2]]
MENDED = {
    ("eqs-2-3", "one-after-the-other"): {"preferences": EVEN},
    ("eqs-2-3", "dpo-for-eq-2"): {"preferences": EVEN},
    ("eqs-2-3", "summed"): {"numbers": {"divisor": 2.0}},
    ("sampler-invariance", "misspecified"): {
        "reward": {"x": {"a": 0.0, "b": math.log(0.4), "c": math.log(0.6)}}
    },
    ("sampler-invariance", "no-support"): {
        "policies": [{"x": {"a": 0.5, "b": 0.4, "c": 0.1}}, {"x": {"a": 1, "b": 1, "c": 1}}]
    },
    ("sampler-invariance", "other-labels"): {"numbers": {"win": 0.5}},
    ("coverage", "reference-masses"): {"preferences": EVEN},
    ("coverage", "least-norm"): {"preferences": EVEN},
    ("coverage", "connected"): {"preferences": EVEN},
}
MENDED["sampler-invariance", "no-support"]["policies"][1] = {"x": dict.fromkeys("abc", 1 / 3)}


@pytest.mark.parametrize(("module", "twin"), TWINS, ids=twin_names)
def test_with_the_assumption_back_in_the_file_nothing_is_violated(module, twin, tmp_path):
    body = json.loads(twin_file(module.NAME, twin).read_text())
    for key, value in MENDED[module.NAME, twin].items():
        outer = key in ("rewards", "policies", "numbers", "beta")
        (body if outer else body["instance"])[key] = value
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    result = run_twin(module.CLAIM.twin(twin), load_replay(path))
    assert abs(result.violation) < 1e-10
    assert result.holds


def test_violations_are_what_the_hand_finds():
    found = {(m.NAME, twin.name): twin.violation for m in MODULES for twin in run_twins(m.CLAIM)}
    inside = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)  # KL(P_C || P_ref in C)
    nearest = -np.log(0.5 * np.exp(-inside) + 0.5)
    assert found["coverage", "reference-masses"] == pytest.approx(0.5 * inside - nearest)
    lost = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert found["coverage", "connected"] == pytest.approx(lost)
    third = (2 * np.log(4 / 3) + np.log(2 / 3)) / 3
    assert found["sampler-invariance", "no-support"] == pytest.approx(third)
    p = np.exp(eqs_2_3.two_completions(0.8)[0])
    apart = 0.8 * np.log(0.8 / p) + 0.2 * np.log(0.2 / (1 - p))
    assert found["eqs-2-3", "one-after-the-other"] == pytest.approx(apart)


@pytest.mark.parametrize("rows", [[["x", "a", "b", 1]], [["x", "a", "b", 1], ["x", "b", "a", 1]]])
def test_less_than_two_wins_of_one_completion_do_not_tell_sum_from_mean(rows, tmp_path):
    body = json.loads(twin_file("eqs-2-3", "summed").read_text())
    assert sum(row[3] for row in body["instance"]["preferences"]) == 2
    body["instance"]["preferences"] = rows
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    assert abs(run_twin(eqs_2_3.CLAIM.twin("summed"), load_replay(path)).violation) < 1e-10


def test_the_optimum_of_the_sum_by_hand():
    """Two wins of a over b at beta = 1: F falls until log odds of p = wins / (divisor p)."""
    (found,) = [t for t in run_twins(eqs_2_3.CLAIM) if t.name == "summed"]
    grid = np.linspace(0.5, 1 - 1e-6, 500_001)
    summed, mean = (grid[np.argmin(np.abs(np.log(grid / (1 - grid)) - n / grid))] for n in (2, 1))
    apart = summed * np.log(summed / mean) + (1 - summed) * np.log((1 - summed) / (1 - mean))
    assert found.violation == pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize("divisor", [0.0, -1.0])
def test_a_divisor_that_is_not_positive_is_refused(divisor, tmp_path):
    body = json.loads(twin_file("eqs-2-3", "summed").read_text())
    body["numbers"]["divisor"] = divisor
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"numbers.divisor must be > 0, got"):
        run_twin(eqs_2_3.CLAIM.twin("summed"), load_replay(path))


@pytest.mark.parametrize(("module", "twin"), TWINS, ids=twin_names)
def test_a_file_with_no_comparison_is_refused(module, twin, tmp_path):
    body = json.loads(twin_file(module.NAME, twin).read_text())
    if "preferences" not in body["instance"]:
        return  # the labels of these come from a reward
    body["instance"]["preferences"] = []
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match="at least one comparison"):
        run_twin(module.CLAIM.twin(twin), load_replay(path))


def test_a_policy_that_is_no_optimum_is_no_twin():
    replay = load_replay(twin_file("sampler-invariance", "no-support"))
    replay.policies[1] = np.log([[0.3, 0.2, 0.5]])
    assert np.isnan(sampler_invariance.CLAIM.twin("no-support").violation(replay))


# --- deliberately wrong parts --------------------------------------------------------------------


def off(tree, r, *, beta=1.0):
    return soft_value_iteration(tree, np.asarray(r) * (1 + 1e-6), beta=beta)


def off_fit(tree, data):
    """The fit whose reward is off by a millionth."""
    optima = fit_tabular(tree, data)
    r = None if optima.r is None else optima.r * (1 + 1e-6)
    return TabularOptima(r, optima.graph, optima.log_likelihood)


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (eqs_2_3, "soft_value_iteration", off),
        (eqs_2_3, "fit_tabular", off_fit),
        (sampler_invariance, "soft_value_iteration", off),
        (sampler_invariance, "fit_tabular", off_fit),
        (coverage, "soft_value_iteration", off),
        (coverage, "fit_tabular", off_fit),
        (
            coverage,
            "nearest_masses",
            lambda inside, log_ref: inside.per_prompt(
                np.log(inside.totals(np.where(inside.tree.leaf_mask, np.exp(log_ref), 0.0)))
            ),
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "NAME", "wrong"),
)
def test_a_wrong_part_is_noticed(module, name, wrong, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    trial = module.trial(generator(11, module.NAME, 1), 1)
    assert not all(c.holds for c in trial.certificates)


def test_even_data_and_separable_data_are_counted_as_vacuous():
    for index in (3, 5):
        trial = eqs_2_3.trial(generator(0, "eqs-2-3", index), index)
        assert trial.vacuous
        assert all(c.holds for c in trial.certificates)


# --- Eqs. 2 and 3 --------------------------------------------------------------------------------


def test_two_completions_at_a_preference_of_four_fifths():
    descended, root = (float(np.exp(x)) for x in eqs_2_3.two_completions(0.8))
    assert descended == pytest.approx(0.655, abs=5e-4)
    assert descended == pytest.approx(root, abs=1e-12)
    tree = one_step_tree("a", "b")
    data = PairData.of(tree, [(0, 0, 1, 4.0), (0, 1, 0, 1.0)])
    policies, flat = TabularPolicies.of(tree), eqs_2_3.flat_log_p(tree)
    mle = fit_policy(policies, data, np.zeros(policies.dimension))
    rlhf = eqs_2_3.Joint(tree, data, flat, flat, 1.0, 5.0).roads()
    np.testing.assert_allclose(np.exp([mle.log_p[0], rlhf[0]]), [[0.8, 0.2]] * 2, atol=1e-12)
    grid = np.linspace(1e-3, 1 - 1e-3, 200_001)
    f = -0.8 * np.log(grid) - 0.2 * np.log(1 - grid)
    f += grid * np.log(grid) + (1 - grid) * np.log(1 - grid)
    assert grid[np.argmin(f)] == pytest.approx(root, abs=1e-5)


def joint_of_three(rng: np.random.Generator) -> eqs_2_3.Joint:
    tree = one_step_tree("a", "b", "c")
    data = two_way_pairs(rng, tree, connected=True)
    log_ref, flat = random_log_p(rng, tree), eqs_2_3.flat_log_p(tree)
    return eqs_2_3.Joint(tree, data, log_ref, flat, 1.0, data.total)


@pytest.mark.parametrize("seed", range(3))
def test_descent_reaches_the_least_of_a_grid(seed):
    joint = joint_of_three(np.random.default_rng(seed))
    end = joint.value(joint.descend(joint.roads()))
    cells = [(i / 60, j / 60) for i in range(1, 60) for j in range(1, 60 - i)]
    least = min(joint.value(np.log([[p, q, 1 - p - q]])) for p, q in cells)
    assert end <= least <= end + 1e-3


@given(st.integers(0, 2**32 - 1), st.floats(-3.0, 3.0))
def test_gradient_and_curvature_by_differences_and_blind_to_a_shift(seed, shift):
    rng = np.random.default_rng(seed)
    joint = joint_of_three(rng)
    u = rng.normal(size=3)
    log_p = joint.normalised(u)
    np.testing.assert_allclose(joint.normalised(u + shift), log_p, atol=1e-12)
    prior, data = joint.sides(log_p)
    for k in range(3):
        step = 1e-5 * np.eye(3)[k]
        up, down = (joint.normalised(u + s) for s in (step, -step))
        slope = (joint.value(up) - joint.value(down)) / 2e-5
        assert (prior - data)[0, k] == pytest.approx(slope, abs=1e-8)
        sides = [np.subtract(*joint.sides(end))[0] for end in (up, down)]
        bend = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(joint.curvature(log_p)[k], bend, atol=1e-8)


# --- A.1 -----------------------------------------------------------------------------------------


def test_a_population_by_enumeration():
    rng = np.random.default_rng(4)
    tree = random_tree(rng, (2, 3, 2))
    r, log_q = random_reward(rng, tree, 1.0), random_log_p(rng, tree)
    data = sampler_invariance.population(tree, r, log_q)
    table = {
        (int(x), int(a), int(b)): n
        for x, a, b, n in zip(data.prompt, data.winner, data.loser, data.count, strict=True)
    }
    q = np.exp(log_q)
    for x in range(2):
        for a, b in itertools.permutations(tree.leaves, 2):
            both_orders = 2 * tree.weights[x] * q[x, a] * q[x, b] * expit(r[x, a] - r[x, b])
            assert table[x, a, b] == pytest.approx(sampler_invariance.PAIRS * both_orders)
    kept = np.dot(tree.rho0, 1.0 - (q[:, tree.leaves] ** 2).sum(axis=1))
    assert data.total == pytest.approx(sampler_invariance.PAIRS * kept)


def test_each_sampler_and_the_fresh_pairs_have_fits_of_their_own(monkeypatch):
    """A DPO fit that forgets its reference is noticed on every one of them; MLE has none."""

    def forgets(tree, data, start, beta, log_ref):
        return fit_dense(tree, data, start, beta, None)

    fit_dense = sampler_invariance.fit_dense
    monkeypatch.setattr(sampler_invariance, "fit_dense", forgets)
    trial = sampler_invariance.trial(generator(11, "sampler-invariance", 5), 5)
    samplers = [f"pairs from {name}" for name in ("the reference", "the optimum", "another policy")]
    broken = {c.part for c in trial.certificates if not c.holds}
    assert {f"{part}: DPO's policy" for part in samplers} <= broken
    assert "imputed labels, DPO on fresh pairs and RLHF" in broken
    held = {c.part for c in trial.certificates if c.holds}
    for part in samplers:
        at_rest = f"{part}: DPO: gradient where the fit ended"
        assert {f"{part}: RLHF's policy", f"{part}: MLE's policy", at_rest} <= held


def test_sure_labels_have_no_maximiser():
    """Why imputed labels must be drawn: the winner by the reward always wins."""
    tree = one_step_tree("a", "b", "c")
    data = PairData.of(tree, [(0, 0, 1, 1.0), (0, 1, 2, 1.0), (0, 0, 2, 1.0)])
    assert fit_tabular(tree, data).empty


# --- A.2 -----------------------------------------------------------------------------------------


def inside_of_four() -> tuple[coverage.Inside, np.ndarray]:
    """Two components of two completions each, a reference that favours the first."""
    tree = TokenTree(("a", "b"), 2, ("x",), (1.0,))
    rows = [(0, 0, 1, 4.0), (0, 1, 0, 1.0), (0, 2, 3, 1.0), (0, 3, 2, 1.0)]
    log_ref = np.log([[0.4, 0.3, 0.2, 0.1]])
    return coverage.Inside.of(tree, fit_tabular(tree, PairData.of(tree, rows)), 1.0, None), log_ref


def test_nearest_masses_by_hand_and_on_a_grid():
    inside, log_ref = inside_of_four()
    np.testing.assert_allclose(np.exp(inside.log_inside), [[0.8, 0.2, 0.5, 0.5]], atol=1e-12)
    apart = [
        0.8 * np.log(0.8 / 0.4) + 0.2 * np.log(0.2 / 0.3),
        0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.1),
    ]
    by_hand = np.exp(-np.asarray(apart)) / np.exp(-np.asarray(apart)).sum()
    masses = np.exp(coverage.nearest_masses(inside, log_ref))
    np.testing.assert_allclose(masses, by_hand, atol=1e-12)
    grid = np.linspace(0.001, 0.999, 999)
    values = [kl(inside.tree, inside.member(np.log([m, 1 - m])), log_ref) for m in grid]
    assert grid[int(np.argmin(values))] == pytest.approx(masses[0], abs=1e-3)


@given(st.floats(-5.0, 5.0), st.integers(0, 2**32 - 1))
def test_masses_do_not_depend_on_a_shift_of_the_start(shift, seed):
    inside, log_ref = inside_of_four()
    start = np.random.default_rng(seed).normal(size=2)
    masses = [coverage.descend_masses(inside, log_ref, start + s) for s in (0.0, shift)]
    np.testing.assert_allclose(masses[0], masses[1], atol=1e-12)
    np.testing.assert_allclose(masses[0], coverage.nearest_masses(inside, log_ref), atol=1e-12)


def test_without_free_masses_the_nearest_optimum_is_the_only_one():
    tree = one_step_tree("a", "b")
    data = PairData.of(tree, [(0, 0, 1, 4.0), (0, 1, 0, 1.0)])
    optima = fit_tabular(tree, data)
    log_ref = np.log([[0.9, 0.1]])
    inside = coverage.Inside.of(tree, optima, 1.0, None)
    member = inside.member(coverage.nearest_masses(inside, log_ref))
    r = optima.member(np.zeros(1))
    np.testing.assert_allclose(member, log_optimal(tree, r), atol=1e-14)
