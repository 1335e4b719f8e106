"""Eq. 11, Bradley-Terry shifts, Eq. 22, tempering, limits in beta: they hold, their twins fail."""

from __future__ import annotations

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.certificate import MIN_VIOLATION, SLACK
from theory.claims import beta_limits, bt_shift, eq_11, eq_22, tempering
from theory.claims.base import generator, run_trials, run_twin, run_twins
from theory.claims.instances import one_step_tree, random_log_p, random_policy, random_reward
from theory.claims.leafwise import (
    at_most,
    below,
    close,
    conditionals,
    cumulative,
    leaves_below,
    path_sums,
)
from theory.claims.replay import load_replay, twin_file
from theory.errors import InputError
from theory.preferences import PairData
from theory.soft import leaf_log_probs, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

MODULES = (eq_11, bt_shift, eq_22, tempering, beta_limits)
TWINS = [(m, broken.name) for m in MODULES for broken in m.CLAIM.broken]
ragged = TokenTree(("a", "b", "c"), 3, ("x", "y"), (0.25, 0.75), "c", (("a", "b"), ("b", "b", "a")))


def twin_names(pair) -> str:
    return pair if isinstance(pair, str) else pair.NAME


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_the_claim_holds_and_its_twins_fail(module):
    result = run_trials(module.CLAIM, range(1, 4), seed=11)
    assert result.holds, result.worst
    assert result.worst.slack == SLACK <= 1e-10
    assert result.worst.residual <= 1e-11
    assert result.nonvacuous == 3
    assert {twin.name for twin in result.twins} == {b.name for b in module.CLAIM.broken}
    assert all(twin.violation >= MIN_VIOLATION for twin in result.twins)
    assert result.passes


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_a_claim_is_said_in_words(module):
    claim = module.CLAIM
    assert claim.name == module.NAME
    assert min(len(claim.statement), len(claim.left_out)) > 100
    assert claim.source
    for broken in claim.broken:
        assert broken.assumption
        assert broken.smallest
        replay = load_replay(twin_file(claim.name, broken.name))
        assert (replay.claim, replay.twin) == (claim.name, broken.name)


# --- violations by hand --------------------------------------------------------------------------

BY_HAND = {
    ("eq-11", "other-beta"): None,
    ("eq-11", "hard-values"): (2 * np.log(4 / 3) + np.log(2 / 3)) / 3,
    ("eq-11", "pooled"): np.log(2),
    ("eq-11", "all-strings"): np.log(2),
    ("bt-shift", "across-prompts"): np.log(2 / (1 + np.exp(-1))),
    ("bt-shift", "by-completion"): np.log((1 + np.e) / 2) - 0.5,
    ("bt-shift", "by-length"): np.log((1 + np.e) / 2) - 0.5,
    ("bt-shift", "by-component"): np.log((2 + np.e) / 3) - 1 / 3,
    ("eq-22", "state-shift"): np.log((1 + np.e) / 2) - 0.5,
    ("eq-22", "no-value"): 1.0,
    ("eq-22", "one-shift"): 1.0,
    ("eq-22", "unscaled"): np.log(1 + np.exp(0.5)),
    ("tempering", "lengths-differ"): 0.5 * np.log(1.5) + 0.5 * np.log(0.75),
    ("tempering", "soft-optimum"): None,
    ("tempering", "no-normaliser"): np.log(2),
    ("beta-limits", "ties-by-token"): (2 * np.log(4 / 3) + np.log(2 / 3)) / 3,
    ("beta-limits", "one-of-the-best"): np.log(2),
    ("beta-limits", "gap-below-beta"): np.log(1 + np.exp(-0.5)),
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_violations_are_what_the_hand_finds(module):
    found = {twin.name: twin.violation for twin in run_twins(module.CLAIM)}
    known = {name: v for (claim, name), v in BY_HAND.items() if claim == module.NAME and v}
    assert known
    for name, value in known.items():
        assert found[name] == pytest.approx(value, abs=1e-12)


# --- every number is read from the file, and the mended file shows no violation -----------------

MENDED = {
    ("eq-11", "other-beta"): {"numbers": {"target_beta": 0.5}},
    ("eq-11", "hard-values"): {"reward": {"x": {"a a": 50.0, "a b": -50.0, "b": 0.0}}},
    ("eq-11", "pooled"): {
        "prompts": {"x": 1.0},
        "reward": {"x": {"a": 0.0}},
    },
    ("eq-11", "all-strings"): {"eos": None, "reward": {"x": {"b a": 0.0, "b b": 0.0}}},
    ("bt-shift", "across-prompts"): {
        "rewards": [{"x": {"a": 1.0}, "y": {"a": 1.0}}, {"x": {"a": 2.0}, "y": {"a": 2.0}}]
    },
    ("bt-shift", "by-completion"): {"rewards": [{"x": {"a": 0, "b": 1}}, {"x": {"a": 2, "b": 3}}]},
    ("bt-shift", "by-length"): {"numbers": {"bonus": 0.0}},
    ("bt-shift", "by-component"): {
        "rewards": [{"x": {"a": 0, "b": 0, "c": 0}}, {"x": {"a": 1, "b": 1, "c": 1}}]
    },
    ("eq-22", "state-shift"): {"numbers": {"shift": 0.0}},
    ("eq-22", "no-value"): {"reward": {"x": {"a": 0.0}}},
    ("eq-22", "one-shift"): {"reward": {"x": {"a": 1.0}, "y": {"a": 1.0}}},
    ("eq-22", "unscaled"): {"numbers": {"scale": 2.0}},
    ("tempering", "lengths-differ"): {"numbers": {"tau": 1.0}},
    ("tempering", "reads-the-prefix"): {
        "policies": [{"x": {"a a": 0.32, "a b": 0.08, "b a": 0.48, "b b": 0.12}}]
    },
    ("tempering", "soft-optimum"): {"numbers": {"tau": 1.0}},
    ("tempering", "no-normaliser"): {"numbers": {"tau": 1.0}},
    ("beta-limits", "uniform-tokens"): {
        "forbidden": [["a", "b"]],
        "reward": {"x": {"a a": 0, "b": 0}},
    },
    ("beta-limits", "reference-forgotten"): {"reference": {"x": {"a": 0.5, "b": 0.5}}},
    ("beta-limits", "reward-grows"): {"reward": {"x": {"a": 1.0, "b": 0.0}}},
    ("beta-limits", "ties-by-token"): {
        "forbidden": [["a", "b"]],
        "reward": {"x": {"a a": 1, "b": 1}},
    },
    ("beta-limits", "one-of-the-best"): {"reward": {"x": {"a": 1.0, "b": 0.0}}},
    ("beta-limits", "gap-below-beta"): {"beta": 0.01},
}


def mended(tmp_path, claim: str, twin: str, changes: dict):
    """The replay of a twin's file with some keys (of the file or of its instance) replaced."""
    body = json.loads(twin_file(claim, twin).read_text())
    for key, value in changes.items():
        (body if key in ("rewards", "policies", "numbers", "beta") else body["instance"])[key] = (
            value
        )
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(body))
    return load_replay(path)


@pytest.mark.parametrize(("module", "twin"), TWINS, ids=twin_names)
def test_with_the_assumption_back_in_the_file_nothing_is_violated(module, twin, tmp_path):
    replay = mended(tmp_path, module.NAME, twin, MENDED[module.NAME, twin])
    result = run_twin(module.CLAIM.twin(twin), replay)
    assert abs(result.violation) < 1e-6
    assert result.holds


def test_a_twin_that_lacks_its_numbers_says_so(tmp_path):
    replay = mended(tmp_path, "tempering", "lengths-differ", {"numbers": {}})
    with pytest.raises(InputError, match=r"needs numbers\.tau"):
        run_twin(tempering.CLAIM.twin("lengths-differ"), replay)


def test_rewards_that_the_data_tell_apart_are_no_twin(tmp_path):
    rewards = [{"x": {"a": 0, "b": 0, "c": 0}}, {"x": {"a": 1, "b": 0, "c": 0}}]
    replay = mended(tmp_path, "bt-shift", "by-component", {"rewards": rewards})
    assert np.isnan(bt_shift.CLAIM.twin("by-component").violation(replay))


# --- deliberately wrong parts --------------------------------------------------------------------


def slightly_off(tree, r, *, beta=1.0):
    return soft_value_iteration(tree, np.asarray(r) * (1 + 1e-6), beta=beta)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_a_backup_that_is_off_by_a_millionth_is_noticed(module, monkeypatch):
    monkeypatch.setattr(module, "soft_value_iteration", slightly_off)
    if module is bt_shift:  # both sides carry the same error: break one of them
        monkeypatch.setattr(module, "soft_value_iteration", off_in_the_mean)
    if module is beta_limits:  # within its bounds: what is 1e-6 off still converges
        monkeypatch.setattr(module, "soft_value_iteration", off_by_token)
    assert not run_trials(module.CLAIM, range(1, 4), seed=11).holds


def off_in_the_mean(tree, r, *, beta=1.0):
    """Not blind to a shift: the reward is scaled by its own mean."""
    return soft_value_iteration(tree, np.asarray(r) * (1 + 1e-6 * float(np.mean(r))), beta=beta)


def off_by_token(tree, r, *, beta=1.0):
    """Prefers early leaf slots."""
    slope = 1e-6 * beta * np.arange(tree.n_leaves)[None, :]
    return soft_value_iteration(tree, np.asarray(r) + slope, beta=beta)


# --- the oracles ---------------------------------------------------------------------------------


def test_sums_below_a_state_by_hand():
    score = np.arange(2.0 * ragged.n_leaves).reshape(2, -1) / 10
    for level in range(ragged.horizon + 1):
        sums, counts = below(ragged, score, level), leaves_below(ragged, level)
        for state in range(3**level):
            span = range(state * 3 ** (3 - level), (state + 1) * 3 ** (3 - level))
            own = [leaf for leaf in span if ragged.leaf_mask[leaf]]
            assert counts[state] == len(own)
            for x in range(2):
                by_hand = np.log(sum(np.exp(score[x, leaf]) for leaf in own)) if own else -np.inf
                assert sums[x, state] == pytest.approx(by_hand, abs=1e-12)


def test_paths_and_prefixes_agree():
    rng = np.random.default_rng(0)
    policy = random_policy(rng, ragged)
    reached = cumulative(policy)
    np.testing.assert_allclose(
        reached[-1][:, ragged.leaves], np.asarray(leaf_log_probs(ragged, policy))[:, ragged.leaves]
    )
    for level, back in zip(policy, conditionals(ragged, reached), strict=True):
        np.testing.assert_allclose(back, np.asarray(level), atol=1e-12)
    numbers = [rng.normal(size=(2, 3**h)) for h in range(3)]
    sums = path_sums(ragged, numbers)
    for leaf in range(27):
        by_hand = sum(numbers[h][1, leaf // 3 ** (3 - h)] for h in range(3))
        assert sums[1, leaf] == pytest.approx(by_hand)


def test_certificates_of_arrays_never_pass_a_nan():
    inf = np.inf
    assert close("c", "", np.asarray([1.0, -inf]), np.asarray([1.0, -inf])).holds
    assert not close("c", "", np.asarray([1.0, -inf]), np.asarray([1.0, 0.0])).holds
    assert not close("c", "", np.asarray([np.nan]), np.asarray([1.0])).holds
    assert not close("c", "", np.asarray([-inf]), np.asarray([-inf])).holds
    assert at_most("c", "", np.asarray([0.0, 1.0]), np.ones(1)).holds
    assert not at_most("c", "", np.asarray([0.0, 1.1]), np.ones(1)).holds
    assert not at_most("c", "", np.asarray([0.0, np.nan]), np.ones(1)).holds
    assert not at_most("c", "", np.zeros(2), np.asarray([np.nan])).holds


def test_planted_labels_are_bradley_terry_labels():
    rng = np.random.default_rng(1)
    r = random_reward(rng, ragged, 1.0)
    data = bt_shift.connected_labels(rng, ragged, r)
    table = {
        (int(x), int(a), int(b)): n
        for x, a, b, n in zip(data.prompt, data.winner, data.loser, data.count, strict=True)
    }
    for (x, a, b), n in table.items():
        assert np.log(n / table[x, b, a]) == pytest.approx(r[x, a] - r[x, b])


def test_tempering_by_enumeration_of_tokens():
    """Products of tempered tokens, one completion at a time."""
    policy = random_policy(np.random.default_rng(2), ragged)
    spent = path_sums(ragged, tempering.state_normalisers(policy, 0.4))
    for leaf in ragged.leaves:
        total = 0.0
        for h in range(3):
            state = int(leaf) // 3 ** (3 - h)
            total += np.log(np.sum(np.exp(np.asarray(policy[h])[0, state] / 0.4)))
        assert spent[0, leaf] == pytest.approx(total, abs=1e-12)


@given(st.floats(0.2, 5.0), st.integers(0, 2**32 - 1))
def test_tempering_whole_completions_twice_multiplies_the_temperatures(tau, seed):
    log_p = random_log_p(np.random.default_rng(seed), ragged)
    once, _ = tempering.temper_completions(ragged, log_p, 2.0 * tau)
    twice, _ = tempering.temper_completions(
        ragged, tempering.temper_completions(ragged, log_p, 2.0)[0], tau
    )
    np.testing.assert_allclose(twice[:, ragged.leaves], once[:, ragged.leaves], atol=1e-12)


# --- limits --------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(-5.0, 5.0))
def test_hard_values_by_enumeration_and_blind_to_a_shift(seed, shift):
    rng = np.random.default_rng(seed)
    r = rng.integers(0, 3, size=(2, ragged.n_leaves)).astype(float)
    for level in range(ragged.horizon):
        hard = beta_limits.hard_values(ragged, r, level)
        shares = beta_limits.hard_shares(ragged, r, level)
        moved = beta_limits.hard_shares(ragged, r + shift, level)
        np.testing.assert_array_equal(shares, moved)
        width = 3 ** (3 - level)
        for x, state in itertools.product(range(2), range(3**level)):
            own = [i for i in range(state * width, (state + 1) * width) if ragged.leaf_mask[i]]
            if not own:
                assert hard.count[x, state] == 0
                continue
            best = max(r[x, i] for i in own)
            top = [i for i in own if r[x, i] == best]
            assert (hard.best[x, state], hard.count[x, state]) == (best, len(top))
            for token in range(3):
                low = state * width + token * width // 3
                inside = sum(low <= i < low + width // 3 for i in top)
                assert shares[x, state, token] == pytest.approx(inside / len(top))


def test_the_limits_at_a_beta_that_float64_takes_for_infinite():
    r = random_reward(np.random.default_rng(3), ragged, 1.0)
    large = soft_value_iteration(ragged, r, beta=1e12).log_policy
    for level, counted in zip(large, beta_limits.count_policy(ragged), strict=True):
        np.testing.assert_allclose(np.exp(np.asarray(level)), np.exp(counted), atol=1e-11)
    uniform = leaf_log_probs(ragged, [jnp.asarray(c) for c in beta_limits.count_policy(ragged)])
    np.testing.assert_allclose(
        np.exp(np.asarray(uniform))[:, ragged.leaves], 1.0 / len(ragged.leaves), atol=1e-15
    )


def test_the_rate_of_the_large_limit_cannot_be_much_better():
    """Two completions: log P moves by half of w / beta, and by w^2 / (8 beta^2) at second order."""
    tree, beta = one_step_tree("a", "b"), 50.0
    log_p = np.asarray(
        leaf_log_probs(
            tree, soft_value_iteration(tree, np.asarray([[1.0, 0.0]]), beta=beta).log_policy
        )
    )
    moved = log_p[0, 0] - np.log(0.5)
    assert moved == pytest.approx(0.5 / beta, rel=0.01)
    assert 0.5 / beta - moved == pytest.approx(1 / (8 * beta**2), rel=0.01)


def test_logits_are_q_up_to_a_state_and_rewards_up_to_a_prompt():
    """The smallest case of both: a shift of the root is no shift of a policy."""
    tree = one_step_tree("a", "b")
    policy = policy_from_leaves(tree, np.log([[0.3, 0.7]]))
    for shift in (0.0, 3.0):
        r = np.log([[0.3, 0.7]]) + shift
        back = soft_value_iteration(tree, r).log_policy
        np.testing.assert_allclose(np.asarray(back[0]), np.asarray(policy[0]), atol=1e-14)


def test_comparisons_of_two_prompts_are_refused_as_data():
    tree = one_step_tree("a", "b", prompts=2)
    with pytest.raises(InputError, match="no prompt 2"):
        PairData.of(tree, [(2, 0, 1, 1.0)])


def test_what_bt_shift_drew_is_what_its_converse_runs_on():
    drawn = [bt_shift.trial(generator(0, bt_shift.NAME, i), i).drawn for i in range(6)]
    assert {d.data for d in drawn if d is not None} == {"connected"}
