"""The online road: pairs against enumeration and draws, the tempered loss, and its arms."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.arms import ARMS
from theory.arms.base import Outcome
from theory.arms.network_arms import pair_loss
from theory.arms.online import STOPS, drawn_pairs, online_dpo, population_loss, tempered_ratio
from theory.arms.online_pairs import draw_best_worst, pair_chances, ranked, tempered_leaves
from theory.arms.replicates import distinct_pairs
from theory.batch import Batch
from theory.classes import TabularPolicies
from theory.errors import InputError
from theory.operators import best_worst_of_k, temper
from theory.population import online_dpo_loss
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

TREE = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
SHAPE = (TREE.n_prompts, TREE.n_leaves)
TAU = 0.4


def random_log_p(seed: int, rows: int = 1) -> np.ndarray:
    score = np.random.default_rng(seed).normal(size=(rows, *SHAPE))
    score = np.where(TREE.leaf_mask, score, -np.inf)
    return score - np.log(np.exp(score).sum(axis=2, keepdims=True))


def with_ties(seed: int, rows: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 3, size=(rows, *SHAPE)).astype(float)
    return np.where(TREE.leaf_mask, values, 0.0)


def chances_of(log_p: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """(B, P, L, L)."""
    order = ranked(TREE, log_p, score)
    rows = zip(order.group, order.share, order.before, order.through, strict=True)
    return np.stack([np.asarray(pair_chances(*map(jnp.asarray, row), k)) for row in rows])


def a_batch(replicates: int = 3, n_pairs: int = 24, **changes) -> Batch:
    generators = [np.random.default_rng([seed, 3]) for seed in range(replicates)]
    reward = np.stack([np.where(TREE.leaf_mask, g.normal(size=SHAPE), 0.0) for g in generators])
    leaves = np.stack(
        [[g.permutation(TREE.leaves)[:2] for _ in range(n_pairs)] for g in generators]
    )
    prompts = np.stack([g.integers(TREE.n_prompts, size=n_pairs) for g in generators])
    first, second = (
        reward[np.arange(replicates)[:, None], prompts, leaves[..., i]] for i in (0, 1)
    )
    leaves = np.where((first > second)[..., None], leaves, leaves[..., ::-1])
    cells = np.flatnonzero(np.tile(TREE.leaf_mask, TREE.n_prompts))
    features = np.zeros((1, *SHAPE, len(cells)))
    features.reshape(-1, len(cells))[cells, np.arange(len(cells))] = 1.0
    settings = {
        "tree": TREE,
        "beta": 0.7,
        "seeds": tuple(range(replicates)),
        "reward": reward,
        "features": features,
        "degree": None,
        "log_reference": np.concatenate([random_log_p(seed) for seed in range(replicates)]),
        "pairs": prompts[..., None] * TREE.n_leaves + leaves,
        "n_held": 4,
        "ridges": (0.1, 1.0),
        "samples": 3,
        "temperature": TAU,
    }
    return Batch(**(settings | changes))


# --- the generator at a temperature ---------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_tempered_completions_equal_the_exact_operator_and_not_a_power_of_p(tau: float):
    log_p = random_log_p(0, 3)
    found = tempered_leaves(TREE, log_p, tau)
    for row, p in zip(found, log_p, strict=True):
        policy = temper(TREE, policy_from_leaves(TREE, p), tau)
        expected = np.asarray(leaf_log_probs(TREE, policy))
        np.testing.assert_allclose(row[:, TREE.leaves], expected[:, TREE.leaves], atol=1e-12)
    assert np.isneginf(found[..., ~TREE.leaf_mask]).all()
    if tau != 1.0:
        power = log_p[..., TREE.leaves] / tau
        power -= np.log(np.exp(power).sum(axis=2, keepdims=True))
        assert np.abs(power - found[..., TREE.leaves]).max() > 0.01


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
def test_chances_of_best_and_worst_equal_enumeration_of_all_draws(k: int):
    log_p, score = random_log_p(1), with_ties(2)
    expected = np.zeros((*SHAPE, TREE.n_leaves))
    for x in range(TREE.n_prompts):
        for leaves in itertools.product(TREE.leaves, repeat=k):
            values = score[0, x, list(leaves)]
            if values.max() == values.min():
                continue
            mass = float(np.exp(log_p[0, x, list(leaves)].sum()))
            best, worst = int(np.argmax(values)), int(np.argmin(values))  # the first of its group
            expected[x, leaves[best], leaves[worst]] += mass
    np.testing.assert_allclose(chances_of(log_p, score, k)[0], expected, atol=1e-14)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 8]), st.floats(-5.0, 5.0))
def test_chances_are_those_of_the_exact_operator_whatever_the_scale(
    seed: int, k: int, shift: float
):
    log_p, score = random_log_p(seed), with_ties(seed)
    found = chances_of(log_p, np.where(TREE.leaf_mask, 3.0 * score + shift, 0.0), k)[0]
    exact = best_worst_of_k(TREE, log_p[0], score[0], k)
    np.testing.assert_allclose(found, exact.joint, atol=1e-13)
    np.testing.assert_allclose(1.0 - found.sum(axis=(1, 2)), exact.no_pair, atol=1e-12)


def test_drawn_pairs_have_the_exact_distribution():
    log_p, score, n, k = random_log_p(4, 2), with_ties(5, 2), 20_000, 3
    prompts = np.tile(np.arange(n) % 2, (2, 1))
    uniforms = np.random.default_rng(0).random((2, n, k))
    drawn = draw_best_worst(TREE, log_p, score, prompts, uniforms)
    chances, biased = chances_of(log_p, score, k), chances_of(log_p, score, k - 1)
    apart = []
    for row, x in itertools.product(range(2), range(2)):
        here = drawn.kept[row] & (prompts[row] == x)
        best, worst = (drawn.pairs[row, here] - x * TREE.n_leaves).T
        seen = np.zeros((TREE.n_leaves, TREE.n_leaves))
        np.add.at(seen, (best, worst), 2.0 / n)
        error = np.sqrt(chances[row, x] * (1 - chances[row, x]) * 2.0 / n) + 1e-12
        assert (np.abs(seen - chances[row, x]) <= 5 * error).all()
        apart.append((np.abs(seen - biased[row, x]) / error).max())
    assert min(apart) > 10  # of one draw fewer it is not the distribution
    expected = 1.0 - chances.sum(axis=(2, 3)).mean(axis=1)
    np.testing.assert_allclose(drawn.dropped / n, expected, atol=0.02)


def test_draws_that_all_tie_make_no_pair():
    log_p, n = random_log_p(6), 50
    prompts, uniforms = np.zeros((1, n), dtype=int), np.random.default_rng(1).random((1, n, 4))
    flat = np.where(TREE.leaf_mask, 2.0, 0.0)[None]
    flat = np.broadcast_to(flat, (1, *SHAPE))
    noise = 1e-11 * np.random.default_rng(2).normal(size=flat.shape)
    for score in (flat, flat + noise):
        assert draw_best_worst(TREE, log_p, score, prompts, uniforms).dropped.tolist() == [n]
        assert not chances_of(log_p, score, 4).any()
    assert draw_best_worst(TREE, log_p, flat + 1e3 * noise, prompts, uniforms).dropped[0] < n


def test_a_prompt_whose_samples_all_agree_has_no_pair():
    log_p = random_log_p(7)
    log_p[0, 0] = np.where(TREE.leaf_mask, -60.0, -np.inf)
    log_p[0, 0, TREE.leaves[1]] = 0.0
    score = np.where(TREE.leaf_mask, np.arange(TREE.n_leaves), 0.0)[None, None] * np.ones((1, 2, 1))
    prompts = np.arange(40)[None] % 2
    uniforms = np.random.default_rng(3).random((1, 40, 3))
    drawn = draw_best_worst(TREE, log_p, score, prompts, uniforms)
    assert not drawn.kept[prompts == 0].any()
    assert drawn.kept[prompts == 1].mean() > 0.5
    both = chances_of(log_p, score, 3)[0].sum(axis=(1, 2))
    assert both[0] < 1e-20 < 0.5 < both[1]


def test_no_uniform_draws_a_slot_without_mass():
    log_p = random_log_p(8)
    log_p[0, 1, [TREE.leaves[0], TREE.leaves[2], TREE.leaves[-1]]] = -np.inf
    score = np.where(TREE.leaf_mask, np.arange(TREE.n_leaves), 0.0)[None, None] * np.ones((1, 2, 1))
    p = np.where(TREE.leaf_mask, np.exp(log_p[0, 1]), 0.0)
    edges = np.cumsum(p) / p.sum()
    ends = np.concatenate([[0.0], edges[edges < 1.0], [1.0 - 2.0**-53]])
    uniforms = np.stack([ends, np.zeros_like(ends)], axis=1)[None]
    drawn = draw_best_worst(TREE, log_p, score, np.ones((1, len(ends)), int), uniforms)
    assert p[drawn.pairs - TREE.n_leaves].min() > 0.0


# --- the loss -------------------------------------------------------------------------------------


def a_problem(seed: int = 0):
    """(policies, logits, generator's conditionals, its tempered log P, random pair chances)."""
    policies, generator = TabularPolicies.of(TREE), np.random.default_rng(seed)
    policy = policy_from_leaves(TREE, random_log_p(seed)[0])
    tempered = tempered_leaves(TREE, random_log_p(seed), TAU)[0]
    theta = jnp.asarray(policies.logits(policy) + generator.normal(size=policies.dimension))
    return policies, theta, policy, tempered, best_worst_of_k(TREE, tempered, with_ties(seed)[0], 3)


def population(theta, policies, tempered, joint, tau):
    chances = jnp.asarray(TREE.rho0[:, None, None] * joint)
    ratio = tempered_ratio(policies, theta, jnp.asarray(tempered), jnp.float64(tau))
    return population_loss(
        0.7 * ratio, chances + jnp.swapaxes(chances, 1, 2), jnp.sum(chances, axis=1)
    )


def test_the_population_loss_is_that_of_the_exact_core_temperature_and_all():
    policies, theta, policy, tempered, pairs = a_problem()
    moved = list(policies.log_policy(theta))
    exact = online_dpo_loss(TREE, moved, policy, pairs, tau=TAU, beta=0.7)
    found = float(population(theta, policies, tempered, pairs.joint, TAU))
    assert found == pytest.approx(exact, abs=1e-12)
    forgot = tempered_leaves(TREE, random_log_p(0), 1.0)[0]
    untempered = float(population(theta, policies, forgot, pairs.joint, 1.0))
    assert abs(untempered - exact) > 0.01
    start = jnp.asarray(policies.logits(policy))
    told = float(TREE.rho0 @ (1.0 - pairs.no_pair))
    at_start = float(population(start, policies, tempered, pairs.joint, TAU))
    assert at_start == pytest.approx(told * np.log(2.0), abs=1e-12)
    wrong = float(population(start, policies, forgot, pairs.joint, TAU))
    assert abs(wrong - at_start) > 1e-3  # the reference must be tempered too


def test_the_slope_of_the_population_loss_equals_finite_differences():
    policies, theta, _, tempered, pairs = a_problem(1)
    objective = jax.jit(lambda t: population(t, policies, tempered, pairs.joint, TAU))
    slope, generator = np.asarray(jax.grad(objective)(theta)), np.random.default_rng(4)
    assert np.abs(slope).max() > 0.01
    for _ in range(4):
        way = generator.normal(size=theta.shape)
        ahead, behind = (float(objective(theta + jnp.asarray(h * way))) for h in (1e-6, -1e-6))
        assert (ahead - behind) / 2e-6 == pytest.approx(slope @ way, rel=1e-6, abs=1e-8)


def test_the_loss_of_drawn_pairs_is_the_mean_of_the_population_loss():
    """The same loss from a list of pairs, weighted by their chances."""
    policies, theta, _, tempered, pairs = a_problem(2)
    x, best, worst = np.nonzero(pairs.joint)
    mass = TREE.rho0[x] * pairs.joint[x, best, worst]
    ends = x[:, None] * TREE.n_leaves + np.stack([best, worst], axis=1)
    ends, wins = (a[0] for a in distinct_pairs(TREE, ends[None], mass[None]))
    ratio = tempered_ratio(policies, theta, jnp.asarray(tempered), jnp.float64(TAU))
    found = float(pair_loss(0.7 * ratio, jnp.asarray(ends), jnp.asarray(wins)))
    expected = float(population(theta, policies, tempered, pairs.joint, TAU))
    assert found == pytest.approx(expected, abs=1e-12)


# --- arms -----------------------------------------------------------------------------------------


def assert_same(one: Outcome, other: Outcome, take: slice = slice(None)) -> None:
    for name in ("log_p", "score", "gradient", "steps"):
        np.testing.assert_array_equal(getattr(one, name)[:, take], getattr(other, name))


@pytest.mark.parametrize(
    "name",
    ["online_dpo_sft", "online_dpo_dpo", "online_population_sft", "online_population_dpo"],
)
def test_an_arm_raises_the_fitted_reward_and_is_the_same_however_it_is_split(name: str):
    batch = a_batch()
    found = ARMS[name](batch, batch.train_weights)
    assert [(c.ridge, c.stop) for c in found.candidates] == [
        (ridge, stop) for ridge in batch.ridges for stop in STOPS
    ]
    assert found.log_p.shape == (6, 3, *SHAPE)
    live = found.log_p[..., TREE.leaves]
    np.testing.assert_allclose(np.exp(live).sum(axis=3), 1.0, atol=1e-12)
    assert np.isneginf(found.log_p[..., ~TREE.leaf_mask]).all()
    np.testing.assert_allclose(found.score[..., TREE.leaves], 0.7 * live, atol=1e-12)
    assert not found.score[..., ~TREE.leaf_mask].any()
    assert not found.converged
    assert found.jacobian_rank == TREE.n_prompts * (len(TREE.leaves) - 1)
    fitted = ARMS["two_stage"](batch, batch.train_weights).score
    source = batch.log_reference[None]
    if name.endswith("_dpo"):
        source = ARMS["offline_all"](batch, batch.train_weights).log_p
    before = (np.exp(source) * fitted).sum(axis=3)
    after = (np.exp(found.log_p[:: len(STOPS)]) * fitted).sum(axis=3)
    assert (after - before).mean() > 0.02
    part = Batch(
        **(vars(batch) | {k: getattr(batch, k)[1:] for k in ("seeds", "reward", "pairs")})
        | {"log_reference": batch.log_reference[1:]}
    )
    assert_same(found, ARMS[name](part, part.train_weights), slice(1, None))


def test_many_rows_approach_the_exact_pair_distribution_and_seeds_differ():
    batch = a_batch(2, n_pairs=3000)
    rows = np.random.default_rng(0)
    drawn_as_rho0 = np.where(rows.random((2, 3000)) < TREE.weights[0], 0, 1)
    moved = drawn_as_rho0[..., None] * TREE.n_leaves + batch.pairs % TREE.n_leaves
    batch = a_batch(2, n_pairs=3000, pairs=moved, ridges=(1.0,))
    score, generator = batch.reward[None], batch.log_reference[None]
    weights = np.ones((2, 3000))
    exact = online_dpo(batch, weights, score, generator, population=True)
    few = Batch(**(vars(batch) | {"pairs": batch.pairs[:, :12]}))
    apart = {}
    for size, data in (("many", batch), ("few", few)):
        found = online_dpo(data, weights[:, : data.n_pairs], score, generator, population=False)
        gap = np.exp(found.log_p[..., TREE.leaves]) - np.exp(exact.log_p[..., TREE.leaves])
        apart[size] = np.abs(gap).sum(axis=3).mean() / 2
    assert apart["many"] < 0.03 < 2 * apart["many"] < apart["few"]
    again = Batch(**(vars(batch) | {"seeds": (0, 7)}))
    one, other = (drawn_pairs(b, score, generator).pairs for b in (batch, again))
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one[1], other[1])


def test_rows_of_weight_zero_and_rewards_that_say_nothing_leave_the_generator():
    batch = a_batch(2)
    generator = np.broadcast_to(batch.log_reference, (2, *batch.log_reference.shape))
    flat, nothing = np.zeros_like(generator), np.zeros((2, batch.n_pairs))
    score = np.broadcast_to(batch.reward, flat.shape)
    for some, weights in ((flat, np.ones_like(nothing)), (score, nothing)):
        for population in (False, True):
            found = online_dpo(batch, weights, some, generator, population=population)
            np.testing.assert_allclose(
                found.log_p[..., TREE.leaves],
                np.repeat(generator, len(STOPS), axis=0)[..., TREE.leaves],
                atol=1e-12,
            )
    assert drawn_pairs(batch, flat, generator).dropped.tolist() == [batch.n_pairs] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"samples": 1}, "got 1"), ({"temperature": 0.0}, "got 0.0"),
     ({"log_reference": np.full((3, *SHAPE), -np.inf)}, "seed 0.*prompt 'x'")],
)  # fmt: skip
def test_bad_settings_are_refused(changes: dict, words: str):
    batch = a_batch(**changes)
    with pytest.raises(InputError, match=words):
        ARMS["online_population_sft"](batch, batch.train_weights)
