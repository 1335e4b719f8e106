"""Every claim holds, every twin fails, and a deliberately wrong part is noticed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from theory.certificate import MIN_VIOLATION, SLACK, Certificate
from theory.claims import (
    CLAIMS,
    find,
    lemma_2_1,
    lemma_b_1,
    theorem_2_2,
    theorem_2_3,
    theorem_2_3_twins,
    theorem_3_1,
)
from theory.claims.base import (
    Broken,
    Claim,
    Trial,
    generator,
    included,
    run_claim,
    run_trial,
    run_twin,
    summary,
    violation,
)
from theory.claims.instances import (
    KINDS,
    LINEAR_SHAPES,
    one_step_tree,
    random_beta,
    random_pairs,
    random_tree,
    two_way_pairs,
)
from theory.claims.replay import load_replay, twin_file
from theory.claims.restricted import fit_bigram_reward
from theory.classes import chain
from theory.errors import InputError
from theory.fit import ConvergenceError, LinearOptima, TabularOptima, fit_linear, fit_tabular
from theory.fit_policy import NoMaximiserError, PolicyFit, fit_policy
from theory.preferences import comparison_graph
from theory.soft import SoftSolution, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

TRIALS = {"lemma-2.1": 9, "lemma-b.1": 9, "theorem-2.2": 4, "theorem-2.3": 4, "theorem-3.1": 3}


@pytest.mark.parametrize("name", TRIALS)
def test_the_claim_holds_and_its_twins_fail(name):
    claim = find(name)
    result = run_claim(claim, trials=TRIALS[name], seed=11)
    assert result.holds, result.worst
    assert result.worst.slack == SLACK <= 1e-10
    assert result.worst.residual <= 1e-11  # an order to spare, or the fits have become worse
    assert 2 * result.nonvacuous >= result.trials
    assert len(result.twins) == len(claim.broken) > 0
    for twin in result.twins:
        assert twin.violation >= MIN_VIOLATION
        assert not twin.holds
    assert result.passes


def test_unplanted_comparisons_are_counted_as_vacuous():
    result = run_claim(theorem_2_2.CLAIM, trials=4, seed=0)
    assert 2 <= result.nonvacuous < 4


def test_what_was_drawn_is_counted():
    result = run_claim(lemma_2_1.CLAIM, trials=8, seed=11)
    found = summary(result.drawn)
    assert (found["trees"], found["tokens"], found["horizon"]) == (8, "2-6", "1-6")
    assert result.to_json()["drawn"] == found
    drawn = [theorem_2_2.trial(generator(0, "theorem-2.2", i), i).drawn for i in range(4)]
    assert [d.data for d in drawn if d is not None][:2] == ["connected", "disconnected"]
    assert summary(()) == {}


def test_the_claims_have_names_of_their_own_and_say_what_they_check():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    for claim in CLAIMS:
        assert all((claim.source, claim.statement, claim.broken))
        twins = [broken.name for broken in claim.broken]
        assert len(set(twins)) == len(twins)
        assert all(broken.assumption and broken.smallest for broken in claim.broken)
        assert all(twin_file(claim.name, name).is_file() for name in twins)


@pytest.mark.parametrize("error", [ConvergenceError("gradient 1 is left"), NoMaximiserError("no")])
def test_a_fit_without_an_end_fails_its_trial_and_its_twin(error):
    def trial(rng, index):
        if index == 2:
            raise error
        return Trial((Certificate("c", 0.0, 0.0),))

    def violation(replay):
        raise error

    twin = Broken("unscaled", "broken", "smallest", violation)
    claim = Claim("theorem-2.2", "", "s", "", trial, (twin,), 4)
    result = run_claim(claim)
    assert not result.holds
    assert result.worst_trial == 2
    assert result.nonvacuous == 3
    assert result.worst.part == f"no optimum: {error}"
    assert result.to_json()["worst_residual"] is None
    assert result.twins[0].holds


def test_trials_are_a_function_of_seed_claim_and_index():
    one, two, other = (
        generator(seed, "theorem-2.2", 3).normal(size=2).tolist() for seed in (1, 1, 2)
    )
    assert one == two != other
    assert generator(1, "theorem-2.3", 3).normal(size=2).tolist() != one
    results = [run_claim(lemma_2_1.CLAIM, trials=2, seed=5) for _ in range(2)]
    assert results[0] == results[1]


# --- deliberately wrong parts --------------------------------------------------------------------


def without_beta(tree, r, *, beta=1.0):
    """Soft value iteration that forgets beta."""
    return soft_value_iteration(tree, r, beta=1.0)


def slightly_off(tree, r, *, beta=1.0):
    """Soft value iteration whose root policy and values are off by one part in a million."""
    solution = soft_value_iteration(tree, np.asarray(r) * (1 + 1e-6), beta=beta)
    return SoftSolution(solution.values, solution.log_policy, solution.log_z)


MODULES = {
    "lemma-2.1": lemma_2_1,
    "lemma-b.1": lemma_b_1,
    "theorem-2.2": theorem_2_2,
    "theorem-2.3": theorem_2_3,
    "theorem-3.1": theorem_3_1,
}


@pytest.mark.parametrize("wrong", [without_beta, slightly_off])
@pytest.mark.parametrize("name", MODULES)
def test_a_wrong_soft_value_is_noticed_by_every_claim(name, wrong, monkeypatch):
    monkeypatch.setattr(MODULES[name], "soft_value_iteration", wrong)
    result = run_claim(find(name), trials=2, seed=11)
    assert not result.holds
    assert not result.passes


def test_a_wrong_reward_fit_is_noticed(monkeypatch):
    def off(tree, data):
        optima = fit_tabular(tree, data)
        assert optima.r is not None
        return TabularOptima(0.999 * optima.r, optima.graph, optima.log_likelihood)

    monkeypatch.setattr(theorem_2_3, "fit_tabular", off)
    assert not run_claim(theorem_2_3.CLAIM, trials=1, seed=11).holds


def test_a_dpo_fit_that_forgets_its_reference_is_noticed(monkeypatch):
    def forgets(policies, data, start, *, beta=1.0, log_ref=None):
        return fit_policy(policies, data, start, beta=beta)

    monkeypatch.setattr(theorem_2_3, "fit_policy", forgets)
    assert not run_claim(theorem_2_3.CLAIM, trials=1, seed=11).holds


def test_a_wrong_dimension_is_noticed(monkeypatch):
    def narrow(tree, rewards, data):
        o = fit_linear(tree, rewards, data)
        return LinearOptima(o.theta, o.kernel, o.witness, o.log_likelihood, o.policy_dimension + 1)

    monkeypatch.setattr(theorem_3_1, "fit_linear", narrow)
    assert not run_claim(theorem_3_1.CLAIM, trials=1, seed=11).holds


def stalling_at(calls, fits, gradient):
    """`fit_policy` of one trial with `fits` calls, of which those in `calls` return their start."""
    count = iter(range(10**6))

    def fit(policies, data, start, *, beta=1.0, log_ref=None):
        good = fit_policy(policies, data, start, beta=beta, log_ref=log_ref)
        if next(count) % fits not in calls:
            return good
        log_p = np.asarray(chain(policies.log_policy(jnp.asarray(start))))
        return PolicyFit(start, log_p, good.value, gradient, good.nullity, good.gap)

    return fit


# (claim, how often a trial fits policies, which of those calls start at the policy under test)
CHECKED_FITS = [
    ("theorem-2.2", 2, (1,)),
    ("theorem-2.3", 5, (2,)),
    ("theorem-2.3", 5, (3,)),
    ("theorem-2.3", 5, (4,)),
    ("theorem-3.1", 2, (1,)),
]


@pytest.mark.parametrize(("name", "fits", "calls"), CHECKED_FITS)
def test_an_optimiser_that_does_not_move_shows_nothing(name, fits, calls, monkeypatch):
    monkeypatch.setattr(MODULES[name], "fit_policy", stalling_at(calls, fits, 99.0))
    result = run_claim(find(name), trials=1, seed=11)
    assert not result.holds
    assert result.worst.lhs == 99.0
    assert "gradient" in result.worst.part


@pytest.mark.parametrize(("name", "fits", "calls"), CHECKED_FITS)
def test_a_wrong_policy_is_noticed_with_no_optimiser_at_all(name, fits, calls, monkeypatch):
    """The fit keeps what it is given and claims gradient 0; the likelihood still says no."""
    monkeypatch.setattr(MODULES[name], "fit_policy", stalling_at(calls, fits, 0.0))
    monkeypatch.setattr(MODULES[name], "soft_value_iteration", slightly_off_by_a_tenth)
    if name == "theorem-2.3":
        monkeypatch.setattr(theorem_2_3, "policy_from_leaves", tempered)
    parts = MODULES[name].trial(generator(11, name, 0), 0).certificates
    own = [c for c in parts if c.part.endswith("its own likelihood")]
    assert own
    assert not any(c.holds for c in own)


def slightly_off_by_a_tenth(tree, r, *, beta=1.0):
    return soft_value_iteration(tree, 0.9 * np.asarray(r), beta=beta)


def tempered(tree, log_p):
    return policy_from_leaves(tree, 0.9 * np.asarray(log_p))


def test_a_lost_tie_is_noticed(monkeypatch):
    """If one road keeps a single optimiser's answer in place of the set, the sets differ."""
    offline = theorem_2_2.offline

    def one_of_them(*args, **kwargs):
        return offline(*args, **kwargs)[:1]

    monkeypatch.setattr(theorem_2_2, "offline", one_of_them)
    assert not run_claim(theorem_2_2.CLAIM, trials=3, seed=11).holds


def test_a_lost_tie_of_dpo_is_noticed(monkeypatch):
    offline = theorem_2_3.offline

    def one_of_them(*args, **kwargs):
        found = offline(*args, **kwargs)
        return found if kwargs.get("log_ref") is None else found[:1]

    monkeypatch.setattr(theorem_2_3, "offline", one_of_them)
    result = run_claim(theorem_2_3.CLAIM, trials=1, seed=11)
    assert not result.holds
    assert result.worst.part == "a list: every RLHF policy is a DPO policy"


@pytest.mark.parametrize("seed", range(3))
def test_a_single_trial_of_theorem_2_3_says_something(seed):
    assert run_claim(theorem_2_3.CLAIM, trials=1, seed=seed).passes


def test_the_uncovered_twin_does_not_depend_on_an_optimiser(monkeypatch):
    replay = load_replay(twin_file("theorem-2.3", "uncovered"))
    broken = theorem_2_3.CLAIM.twin("uncovered")
    monkeypatch.setattr(theorem_2_3_twins, "fit_policy", stalling_at((0,), 1, 99.0))
    assert run_twin(broken, replay).violation == pytest.approx(np.log(1.5), abs=1e-12)

    def larger(tree, data):
        optima = fit_tabular(tree, data)
        assert optima.log_likelihood is not None
        return TabularOptima(optima.r, optima.graph, optima.log_likelihood + 1e-6)

    monkeypatch.setattr(theorem_2_3_twins, "fit_tabular", larger)
    assert run_twin(broken, replay).holds


def test_a_policy_class_without_the_soft_optima_breaks_the_hypothesis(monkeypatch):
    monkeypatch.setattr(theorem_3_1, "soft_value_iteration", slightly_off_by_a_tenth)
    parts = theorem_3_1.trial(generator(11, "theorem-3.1", 0), 0).certificates
    (hypothesis,) = [c for c in parts if c.part == theorem_3_1.HYPOTHESIS]
    assert not hypothesis.holds


@pytest.mark.parametrize(("seed", "index"), [(12, 197), (17, 23)])
def test_policies_beside_the_soft_optima_are_not_near_one_by_chance(seed, index):
    """At these draws a policy fell within 0.01 nats of a soft-optimal one."""
    rng = generator(seed, "theorem-3.1", index)
    tree = random_tree(rng, LINEAR_SHAPES[index % len(LINEAR_SHAPES)])
    found = theorem_3_1._finite(rng, tree, random_beta(rng))
    assert all(c.holds for c in found)


def test_a_list_with_nothing_beside_the_soft_optima_is_noticed(monkeypatch):
    monkeypatch.setattr(theorem_3_1, "DRAWS", 3)
    monkeypatch.setattr(theorem_3_1, "_nearest", lambda *args: 0.001)
    rng = generator(11, "theorem-3.1", 0)
    found = theorem_3_1._finite(rng, random_tree(rng, LINEAR_SHAPES[0]), 1.0)
    assert [c.part for c in found if not c.holds] == ["a list: the classes are not isomorphic"]


def claim_with(trial, *violations):
    """A claim whose twins, read from files of theorem 2.2, miss by these amounts."""
    names = ("unscaled", "drift")
    broken = tuple(
        Broken(name, "broken", "smallest", lambda replay, v=v: v)
        for name, v in zip(names, violations, strict=False)
    )
    return Claim("theorem-2.2", "source", "s", "", trial, broken, 3)


def test_a_twin_that_does_not_fail_is_noticed():
    good = Trial((Certificate("c", 0.0, 0.0),))
    weak = claim_with(lambda rng, i: good, 1.0, 0.001)
    none = claim_with(lambda rng, i: good)
    assert run_claim(weak).holds
    assert not run_claim(weak).passes
    assert not run_claim(none).passes
    assert run_claim(claim_with(lambda rng, i: good, 1.0, 0.02)).passes


def test_vacuous_trials_alone_show_nothing():
    empty = Trial((Certificate("c", 0.0, 0.0),), vacuous=True)
    assert not run_claim(claim_with(lambda rng, i: empty, 1.0)).holds
    said = Trial((Certificate("c", 0.0, 0.0),))
    one = claim_with(lambda rng, i: empty if i else said, 1.0)
    assert run_claim(one, trials=2).holds
    assert not run_claim(one, trials=3).holds  # less than half says too little


def test_separable_data_stop_both_roads():
    """The trials with separable data are vacuous, and say that no policy was returned."""
    for module in (theorem_2_2, theorem_2_3):
        trial = run_trial(module.CLAIM, 3, seed=11)
        assert trial.vacuous
        assert any("no policy is returned" in c.part for c in trial.certificates)
    trial = run_trial(theorem_3_1.CLAIM, 12, seed=11)
    assert trial.vacuous
    assert any("no policy is returned" in c.part for c in trial.certificates)


# --- the instruments -----------------------------------------------------------------------------


def test_set_comparison_by_hand():
    tree = one_step_tree("a", "b")
    p, q = np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]])
    assert included(tree, "c", "", np.stack([p]), np.stack([q, p])).holds
    assert not included(tree, "c", "", np.stack([p, q]), np.stack([p])).holds
    assert not included(tree, "c", "", np.zeros((0, 1, 2)), np.stack([p])).holds
    assert violation(tree, np.stack([p, q]), np.stack([q, p])) == pytest.approx(0.0, abs=1e-15)
    by_hand = 0.8 * np.log(1.6) + 0.2 * np.log(0.4)
    assert violation(tree, np.stack([p, q]), np.stack([p])) == pytest.approx(by_hand)


def test_planted_pairs_always_have_a_maximiser():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tree = random_tree(rng, (2, 3, 2))
        for connected in (True, False):
            data = two_way_pairs(rng, tree, connected=connected)
            graph = comparison_graph(tree, data)
            assert graph.exists
            assert (graph.dimension == 0) == connected
        assert not comparison_graph(tree, random_pairs(rng, tree, "separable")).exists
    assert KINDS == ("connected", "disconnected", "sampled", "separable")


def test_the_bigram_reward_is_a_local_reward():
    """On data that a bigram policy generates, the fit recovers its log-probabilities."""
    from theory.preferences import PairData

    rng = np.random.default_rng(3)
    tree = TokenTree(("a", "b"), 2, ("x",), (1.0,))
    start, after = rng.dirichlet([2, 2]), rng.dirichlet([2, 2], size=2)
    log_p = np.asarray([np.log(start[i] * after[i, j]) for i in (0, 1) for j in (0, 1)])
    rows = [
        (0, i, j, 1 / (1 + np.exp(log_p[j] - log_p[i])))
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    r = fit_bigram_reward(tree, PairData.of(tree, rows), 1.0, np.ones((1, 6)))
    np.testing.assert_allclose(r[0], log_p, atol=1e-10)


def test_unknown_claims_and_bad_counts_are_refused():
    with pytest.raises(InputError, match=r"unknown claim 'nope'; known: lemma-2\.1, lemma-b\.1"):
        find("nope")
    with pytest.raises(InputError, match="trials must be at least 1, got 0"):
        run_claim(lemma_2_1.CLAIM, trials=0)
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        run_claim(lemma_2_1.CLAIM, seed=-1)
