"""Large levels, memory that is used again, and rewards out of range, of soft value iteration."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.soft import leaf_log_probs, log_optimal, soft_value_iteration
from theory.tree import TokenTree

seeds = st.integers(0, 10**6)


def complete(vocab, horizon, prompts=1):
    names = tuple(f"x{i}" for i in range(prompts))
    tokens = tuple(f"t{i}" for i in range(vocab))
    return TokenTree(tokens, horizon, names, (1.0 / prompts,) * prompts)


def exact_log_policy(tree, r, beta):
    """log pi(a|s) of every level in long double, and log P* of the leaves."""
    value = [r.astype(np.longdouble) / np.longdouble(beta)]
    policy = []
    for _ in range(tree.horizon):
        q = value[0].reshape(tree.n_prompts, -1, tree.vocab)
        top = q.max(axis=2, keepdims=True)
        total = top + np.log(np.exp(q - top).sum(axis=2, keepdims=True))
        policy.insert(0, q - total)
        value.insert(0, total[:, :, 0])
    return policy, value[-1] - value[0]


@pytest.fixture
def lanes(monkeypatch):
    """Every tree, however small, is cut into subtrees for all cores."""
    monkeypatch.setattr("theory.backup.SMALL", 0)


@pytest.mark.parametrize(("vocab", "horizon"), [(2, 12), (3, 12), (10, 3), (40, 2), (1, 12)])
@pytest.mark.parametrize("scale", [10.0, 400.0])
def test_log_probs_to_2e_13(vocab, horizon, scale):
    rng = np.random.default_rng(vocab)
    tree = complete(vocab, horizon, 2)
    r = rng.uniform(-scale, scale, size=(2, tree.n_leaves)) * 0.7
    solution = soft_value_iteration(tree, r, beta=0.7)
    policy, leaves = exact_log_policy(tree, r, 0.7)
    for found, exact in zip(solution.log_policy, policy, strict=True):
        assert np.abs(np.asarray(found) - exact).max() <= 2e-13
    chained = np.asarray(leaf_log_probs(tree, solution.log_policy))
    assert np.abs(chained - leaves).max() <= 2e-13 + 2.0**-52 * 2 * scale  # sums of up to 2 * scale
    np.testing.assert_array_equal(np.asarray(solution.values[-1]), r)


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_roundings_of_values_do_not_add_up(slope):
    """The worst case of values that are rounded a level: 12 levels of equal steps, all one way."""
    tree = complete(3, 12)
    step = slope * 800.0 / 12 * 0.7 * (1.0 + 2.0**-24)
    digits = np.stack(np.unravel_index(np.arange(3**12), (3,) * 12)).astype(float)
    r = (400.0 * 0.7 - np.abs(step) * (digits == 1.0).sum(axis=0))[None] * slope
    solution = soft_value_iteration(tree, r, beta=0.7)
    for found, exact in zip(solution.log_policy, exact_log_policy(tree, r, 0.7)[0], strict=True):
        assert np.abs(np.asarray(found) - exact).max() <= 2e-13


@pytest.mark.parametrize("shift", [2.0**20, -(2.0**20)])
@pytest.mark.parametrize(("vocab", "horizon"), [(2, 12), (13, 3)])
def test_a_large_shift_costs_the_policy_no_digits(vocab, horizon, shift):
    """Values of a million nats, of which one float would keep 1e-10: both floats must be used."""
    tree = complete(vocab, horizon)
    r = np.random.default_rng(0).integers(-(2**20), 2**20, size=(1, tree.n_leaves)) / 2.0**20
    shifted = soft_value_iteration(tree, r + shift, beta=0.7)  # the sum is exact
    for found, exact in zip(shifted.log_policy, exact_log_policy(tree, r, 0.7)[0], strict=True):
        assert np.abs(np.asarray(found) - exact).max() <= 1e-14


@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize(("vocab", "horizon"), [(3, 6), (13, 3)])
@pytest.mark.parametrize("eos", [None, "t1"])
def test_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch, cores, vocab, horizon, eos):
    tree = TokenTree(tuple(f"t{i}" for i in range(vocab)), horizon, ("x",), (1.0,), eos=eos)
    r = np.random.default_rng(cores).normal(size=(1, tree.n_leaves))
    small = soft_value_iteration(tree, r, beta=0.3)
    monkeypatch.setattr("theory.backup.SMALL", 0)
    monkeypatch.setattr("theory.backup.TASKS", 4 * cores)
    with ThreadPoolExecutor(cores) as pool:
        monkeypatch.setattr("theory.backup._pool", lambda process: pool)
        cut = soft_value_iteration(tree, r, beta=0.3)
    for a, b in zip(
        [*small.values, *small.log_policy, small.log_z],
        [*cut.values, *cut.log_policy, cut.log_z],
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_long_chain_of_one_prompt_compiles():
    tree = complete(2, 12)
    uniform = [np.full((1, 2**h, 2), -math.log(2)) for h in range(12)]
    chained = leaf_log_probs(tree, [jnp.asarray(level) for level in uniform])
    np.testing.assert_allclose(np.asarray(chained), -12 * math.log(2), rtol=1e-15)


@given(seeds, st.floats(1e-6, 1e6), st.sampled_from([1.0, 1e3, 1e300]), st.sampled_from([3, 13]))
def test_wild_rewards_equal_plain_log_sums(seed, beta, scale, vocab):
    """Also where one shift a tree, or a level, would overflow or lose whole subtrees."""
    rng = np.random.default_rng(seed)
    tree = complete(vocab, 2, 2)
    wild = rng.choice([0.0, 1e-3, 1.0], size=(2, vocab**2))
    r = scale * rng.normal(size=wild.shape) * wild
    if np.ptp(r) / beta > 1e306:
        return
    solution = soft_value_iteration(tree, r, beta=beta)
    policy, _ = exact_log_policy(tree, r, beta)
    for found, exact in zip(solution.log_policy, policy, strict=True):
        np.testing.assert_allclose(np.asarray(found), exact.astype(float), rtol=1e-15, atol=2e-15)


@pytest.mark.parametrize("vocab", [3, 13])
def test_masked_slots_of_a_large_tree(lanes, vocab):
    """EOS and a forbidden prefix: as a complete tree that is never paid there."""
    tokens = tuple(f"t{i}" for i in range(vocab))
    masks = {"eos": "t2", "forbidden": (("t0", "t1"), ("t1",))}
    tree = TokenTree(tokens, 3, ("x", "y"), (0.5, 0.5), **masks)
    r = np.random.default_rng(0).normal(size=(2, tree.n_leaves))
    paid = np.where(tree.leaf_mask, r, -1e6)
    masked, full = soft_value_iteration(tree, r), soft_value_iteration(complete(vocab, 3, 2), paid)
    for h, mask in enumerate(tree.allowed_levels):
        found = np.asarray(masked.log_policy[h])
        assert np.isneginf(found[:, ~mask]).all()
        np.testing.assert_allclose(found[:, mask], np.asarray(full.log_policy[h])[:, mask])
        live = mask.any(axis=1)
        values = np.asarray(masked.values[h])
        assert np.isneginf(values[:, ~live]).all()
        np.testing.assert_allclose(values[:, live], np.asarray(full.values[h])[:, live])
    np.testing.assert_array_equal(
        np.asarray(masked.values[-1]), np.where(tree.leaf_mask, r, -np.inf)
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [0, 2**16])
def test_every_reward_that_is_not_finite_is_found(monkeypatch, bad, size):
    monkeypatch.setattr("theory.backup.SMALL", size)
    tree = complete(3, 3, 2)
    for leaf in (0, 13, 26):
        r = np.zeros((2, 27))
        r[1, leaf] = bad
        words = " ".join(tree.leaf_tokens(leaf))
        with pytest.raises(InputError, match=f"prompt 'x1', completion '{words}'"):
            soft_value_iteration(tree, r)


@pytest.mark.parametrize("eos", [None, "t1"])
def test_reuse_overwrites_the_old_policy_alone(eos):
    tree = TokenTree(("t0", "t1"), 3, ("x",), (1.0,), eos=eos)
    rng = np.random.default_rng(0)
    r, s = rng.normal(size=(2, 1, 8))
    old = soft_value_iteration(tree, r)
    kept = [np.array(v) for v in old.values]
    new, fresh = soft_value_iteration(tree, s, reuse=old), soft_value_iteration(tree, s)
    for a, b in zip(new.log_policy, fresh.log_policy, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(kept, old.values, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))
    with pytest.raises(InputError, match="overwritten before"):
        soft_value_iteration(tree, r, reuse=old)
    with pytest.raises(InputError, match="level shapes"):
        soft_value_iteration(complete(3, 3), np.zeros((1, 27)), reuse=new)


@pytest.mark.parametrize("eos", [None, "t1"])
@pytest.mark.parametrize("size", [0, 2**16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.7e308])
def test_a_refused_reward_leaves_the_old_solution_alone(monkeypatch, eos, size, bad):
    monkeypatch.setattr("theory.backup.SMALL", size)
    tree = TokenTree(("t0", "t1"), 3, ("x",), (1.0,), eos=eos)
    old = soft_value_iteration(tree, np.zeros((1, 8)))
    kept = [np.array(level) for level in old.log_policy]
    r = np.zeros((1, 8))
    r[0, -2:] = bad, -1.7e308
    r[0, 0] = bad
    for reward in (r, jnp.asarray(r)):
        with pytest.raises(InputError):
            soft_value_iteration(tree, reward, beta=0.5, reuse=old)
    for a, b in zip(kept, old.log_policy, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


def test_memory_is_used_again_but_never_under_a_view():
    tree = complete(3, 3)
    rng = np.random.default_rng(0)
    solution, places, held = soft_value_iteration(tree, rng.normal(size=(1, 27))), [], []
    for turn in range(8):
        places.append(solution.log_policy[0].unsafe_buffer_pointer())
        if turn == 4:
            held.append((np.asarray(solution.log_policy[2]), np.array(solution.log_policy[2])))
        solution = soft_value_iteration(tree, rng.normal(size=(1, 27)), reuse=solution)
    assert places[:4] == places[:2] * 2
    assert places[4] == places[0]
    assert places[6] not in places[:6]  # what was given back at turn 4 is still looked at
    for view, copy in held:
        np.testing.assert_array_equal(view, copy)


def test_reuse_takes_jax_arrays_alone():
    tree = complete(2, 2)
    old = soft_value_iteration(tree, np.zeros((1, 4)))
    levels: list = old.log_policy
    levels[1] = np.array(levels[1])
    with pytest.raises(InputError, match="float64 JAX arrays"):
        soft_value_iteration(tree, np.zeros((1, 4)), reuse=old)


def test_the_callers_array_is_neither_kept_nor_changed(lanes):
    tree = complete(2, 3)
    memory = np.zeros(16)
    start = -memory.ctypes.data % 64 // 8
    for place in (start, start + 1):  # JAX would take aligned memory without a copy
        r = memory[None, place : place + 8]
        r[:] = np.arange(8.0)
        solution = soft_value_iteration(tree, r)
        r[:] = 0.0
        np.testing.assert_array_equal(np.asarray(solution.values[-1])[0], np.arange(8.0))
    again = soft_value_iteration(tree, solution.values[-1], reuse=solution)
    assert float(again.values[0][0, 0]) == pytest.approx(float(solution.log_z[0]), rel=1e-15)


@pytest.mark.parametrize("eos", [None, "b"])
@pytest.mark.parametrize("size", [0, 2**16])
@pytest.mark.parametrize(
    ("low", "high", "beta"),
    [(0.0, 1e3, 1e-307), (-1.7e308, 1.7e308, 1.0), (-1e10, -1e10, 1e-300), (1e3, 2e3, 1e-306)],
)
def test_rewards_out_of_range_at_this_beta_are_refused(monkeypatch, eos, size, low, high, beta):
    monkeypatch.setattr("theory.backup.SMALL", size)
    tree = TokenTree(("a", "b"), 2, ("x", "y"), (0.5, 0.5), eos=eos)
    r = np.stack([np.zeros(4), [high, high, high, low]])
    for solve in (soft_value_iteration, log_optimal):
        with pytest.raises(InputError, match=f"at prompt 'y' are out of .* beta = {beta!r}"):
            solve(tree, r, beta=beta)


def test_values_that_overflow_are_refused(lanes):
    for eos in (None, "b"):
        tree = TokenTree(("a", "b"), 2, ("x",), (1.0,), eos=eos)
        with pytest.raises(InputError, match="soft values overflow: rewards up to"):
            soft_value_iteration(tree, np.full((1, 4), 1.7e308), beta=4e307)
