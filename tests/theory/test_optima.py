"""Where each objective has its optimum, in closed form, and where it has none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from theory import objectives as ob
from theory.classes import TabularPolicies, chain
from theory.errors import InputError
from theory.preferences import PairData
from theory.soft import kl, log_optimal, policy_from_leaves
from theory.tree import TokenTree

PLAIN = TokenTree(("a", "b"), 2, ("x", "y"), (0.3, 0.7))
ENDING = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
EQUAL = TokenTree(("a", "b"), 1, ("x",), (1.0,))  # two completions of one token
LONGER = TokenTree(("a", "."), 2, ("x",), (1.0,), eos=".", forbidden=(("a", "a"),))  # "a .", "."
CLEAR = 0.01  # nats by which a broken twin must miss


def two_way(tree: TokenTree, seed: int, link: Callable[[int], bool] = lambda i: True) -> PairData:
    """Pairs in both directions with fractional counts along the completions; link(i) cuts them."""
    rng, rows = np.random.default_rng(seed), []
    for x in range(tree.n_prompts):
        order = rng.permutation(tree.leaves)
        chain_of = [(order[i], order[i + 1]) for i in range(len(order) - 1) if link(i)]
        extra = [(order[0], order[2])] if link(0) and link(1) else []
        for i, j in chain_of + extra:
            rows += [
                (x, int(i), int(j), rng.uniform(0.5, 3)),
                (x, int(j), int(i), rng.uniform(0.5, 3)),
            ]
    return PairData.of(tree, rows)


def table(tree: TokenTree, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tree.n_prompts, tree.n_leaves))


def distribution(tree: TokenTree, seed: int) -> np.ndarray:
    """log P of a random positive distribution over completions."""
    return log_optimal(tree, table(tree, seed))


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo"])
def test_the_set_of_optima_has_the_dimension_of_the_free_component_masses(name: str):
    """Flat directions of the Hessian in the logits, less those that no policy depends on."""
    data, ref = two_way(PLAIN, 1, link=lambda i: i != 1), distribution(PLAIN, 2)
    policies, size = TabularPolicies.of(PLAIN), ob.lengths(PLAIN)
    loss, known = {
        "dpo": (
            lambda p: ob.dpo_loss(p, ref, data, beta=0.7),
            ob.dpo_optimum(PLAIN, ref, data, beta=0.7),
        ),
        "ipo": (
            lambda p: ob.ipo_loss(p, ref, data, tau=0.7),
            ob.ipo_optimum(PLAIN, ref, data, tau=0.7),
        ),
        "simpo": (
            lambda p: ob.simpo_loss(p, data, size, beta=0.7, gamma=0.4),
            ob.simpo_optimum(PLAIN, data, size, beta=0.7, gamma=0.4),
        ),
    }[name]
    assert known.log_p is not None
    assert known.dimension == 2
    theta = TabularPolicies.of(PLAIN).logits(policy_from_leaves(PLAIN, known.log_p))
    slope = jax.jit(jax.grad(lambda at: loss(chain(policies.log_policy(at)))))
    assert float(jnp.abs(slope(jnp.asarray(theta))).max()) < 1e-12
    moves = 1e-4 * np.eye(len(theta))
    hessian = [
        (slope(jnp.asarray(theta + m)) - slope(jnp.asarray(theta - m))) / 2e-4 for m in moves
    ]
    bends = np.linalg.eigvalsh(np.asarray(hessian))
    flat = int((np.abs(bends) < 1e-6 * bends.max()).sum())
    assert flat - policies.flat_directions == 2
    assert bends.min() > -1e-6 * bends.max()


def test_dpo_is_the_mixture_of_mle_and_reference():
    data, ref = two_way(ENDING, 1), distribution(ENDING, 2)
    mle, dpo = ob.mle_optimum(ENDING, data, beta=0.7), ob.dpo_optimum(ENDING, ref, data, beta=0.7)
    assert mle.log_p is not None
    assert dpo.log_p is not None
    mixed = log_optimal(ENDING, np.where(ENDING.leaf_mask, mle.log_p, 0.0), 1.0, ref)
    assert kl(ENDING, mixed, dpo.log_p) < 1e-13
    assert kl(ENDING, mle.log_p, dpo.log_p) > CLEAR


def test_acyclic_data_leaves_ipo_and_slic_an_optimum_and_the_likelihoods_none():
    rows = [(0, 0, 1, 1.0), (0, 1, 2, 2.0), (0, 0, 2, 1.0), (1, 3, 0, 1.0), (1, 3, 2, 1.0)]
    data, ref, size = PairData.of(PLAIN, rows), distribution(PLAIN, 2), ob.lengths(PLAIN)
    for none in (
        ob.mle_optimum(PLAIN, data),
        ob.dpo_optimum(PLAIN, ref, data, beta=0.5),
        ob.simpo_optimum(PLAIN, data, size, beta=2.0, gamma=0.5),
    ):
        assert none.log_p is None
        assert "never lose: 'a a'" in none.reason
    ipo = ob.ipo_optimum(PLAIN, ref, data, tau=0.5)
    assert ipo.log_p is not None
    slope = jax.grad(lambda p: ob.ipo_loss(p, ref, data, tau=0.5))(jnp.asarray(ipo.log_p))
    assert float(jnp.abs(slope).max()) < 1e-13
    slic = ob.slic_zero_loss(PLAIN, data, delta=1.5)
    assert slic.log_p is not None
    assert float(ob.slic_loss(jnp.asarray(slic.log_p), data, delta=1.5)) == 0.0
    assert float(ob.slic_loss(jnp.asarray(slic.log_p), data, delta=1.6)) > CLEAR
    back = PairData.of(PLAIN, [*rows, (0, 2, 0, 0.1)])
    cycle = ob.slic_zero_loss(PLAIN, back, delta=1.5)
    assert cycle.log_p is None
    assert "cycle" in cycle.reason
    tables = 3 * np.random.default_rng(0).normal(size=(50, 2, 4))
    hinges = jax.vmap(lambda p: ob.slic_loss(p, back, delta=1.5))(jnp.asarray(tables))
    assert float(hinges.min()) > 0.1 * 1.5 / back.total  # margins round a cycle sum to 0


# --- each loss's own known solution --------------------------------------------------------------


def test_ipo_margins_are_a_regression_and_equal_azars_formula_when_both_sides_draw_from_mu():
    tree, tau = TokenTree(("a", "b", "c", "d"), 1, ("x",), (1.0,)), 0.6
    mu, r = np.exp(distribution(tree, 3))[0], table(tree, 4)[0] * 2
    p = expit(r[:, None] - r[None, :])
    pairs = [(i, j) for i, j in itertools.product(range(4), range(4)) if i != j]
    data = PairData.of(tree, [(0, i, j, mu[i] * mu[j] * p[i, j]) for i, j in pairs])
    ref = distribution(tree, 5)
    known = ob.ipo_optimum(tree, ref, data, tau=tau)
    assert known.log_p is not None
    h = (known.log_p - ref)[0]
    wins = p @ mu  # chance that each completion beats a draw of mu
    np.testing.assert_allclose(h - h[0], (wins - wins[0]) / tau, atol=1e-12)
    chained = PairData.of(
        tree, [(0, i, j, p[i, j]) for i, j in pairs if abs(i - j) == 1]
    )  # no cycle but back and forth: every margin is met
    known = ob.ipo_optimum(tree, ref, chained, tau=tau)
    assert known.log_p is not None
    h = (known.log_p - ref)[0]
    np.testing.assert_allclose(
        h[1:] - h[:-1], [(2 * p[i + 1, i] - 1) / (2 * tau) for i in range(3)], atol=1e-12
    )


def exact_least_squares(n: int, rows: list) -> list[Fraction]:
    """argmin sum count (h(winner) - h(loser) - 1)^2 with h(last) = 0, in fractions."""
    grid = [[Fraction(0)] * (n + 1) for _ in range(n)]
    for _, i, j, count in rows:
        for a, b in ((i, j), (j, i)):
            grid[a][a] += Fraction(count)
            grid[a][b] -= Fraction(count)
            grid[a][n] += Fraction(count) * (1 if a == i else -1)
    for k in range(n - 1):
        for a in range(n - 1):
            if a != k:
                times = grid[a][k] / grid[k][k]
                grid[a] = [x - times * y for x, y in zip(grid[a], grid[k], strict=True)]
    return [grid[k][n] / grid[k][k] for k in range(n - 1)] + [Fraction(0)]


def assert_ipo_is_exact(rows: list):
    tree = TokenTree(tuple("abcdef"), 1, ("x",), (1.0,))
    known = ob.ipo_optimum(tree, np.full((1, 6), -np.log(6.0)), PairData.of(tree, rows), tau=0.5)
    assert known.log_p is not None
    h = known.log_p[0] - known.log_p[0, 5]
    exact = [float(value) for value in exact_least_squares(6, rows)]
    np.testing.assert_allclose(h, exact, rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.0, 13.9))
def test_ipo_is_exact_however_uneven_the_counts(seed: int, span: float):
    rng = np.random.default_rng(seed)
    assert_ipo_is_exact(
        [
            (0, i, j, float(10.0 ** -rng.uniform(0.0, span)))
            for i, j in itertools.permutations(range(6), 2)
            if abs(i - j) == 1 or rng.random() < 0.5
        ]
    )


@pytest.mark.parametrize("big", [1.0, 1e6, 1e10, 1e12, 4e13])
def test_heavy_comparisons_that_disagree_do_not_drown_light_ones(big: float):
    cycle = [(0, 0, 1, big), (0, 1, 2, big), (0, 2, 0, 0.7 * big)]
    light = [(0, 2, 3, 1.0), (0, 3, 2, 0.5)]
    assert_ipo_is_exact([*cycle, *light, (0, 3, 4, 1.0), (0, 4, 5, 1.0)])
    assert_ipo_is_exact(
        [*cycle, *light, (0, 3, 4, big), (0, 4, 5, 0.2 * big), (0, 5, 3, 0.1 * big)]
    )


def test_ipo_of_one_component_does_not_see_the_counts_of_another_and_refuses_a_wide_one():
    flat = np.full((2, 4), -np.log(4.0))
    rows = [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (1, 0, 1, 3e200), (1, 1, 0, 1e200)]
    known = ob.ipo_optimum(PLAIN, flat, PairData.of(PLAIN, rows), tau=0.5)
    assert known.log_p is not None
    np.testing.assert_allclose(known.log_p[:, 0] - known.log_p[:, 1], 0.5, atol=1e-14)
    with pytest.raises(InputError, match=r"prompt 'x'.* span 1\.0 to 10{15}\.0; .* 1e\+14"):
        ob.ipo_optimum(PLAIN, flat, PairData.of(PLAIN, [(0, 0, 1, 1.0), (0, 1, 2, 1e15)]), tau=0.5)


@given(
    st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]),
    st.floats(0.1, 3.0),
    st.sampled_from([0.0, 0.1, 0.5, 1.0, 4.0]),
    st.floats(0.05, 0.95),
)
def test_slic_on_two_completions_is_its_piecewise_solution(share, delta, weight, target):
    rows = [(0, 0, 1, share)] * (share > 0) + [(0, 1, 0, 1 - share)] * (share < 1)
    data, targets = PairData.of(EQUAL, rows), jnp.asarray([[target, 1 - target]])

    def loss(margin):
        p = jax.nn.log_softmax(jnp.stack([margin, 0.0 * margin])[None, :], axis=1)
        return ob.slic_loss(p, data, delta=delta, sft_weight=weight, targets=targets)

    low, high = ob.slic_optimum_of_two(share, delta=delta, sft_weight=weight, target=target)
    inside = np.linspace(max(low, -9.0), min(high, 9.0), 3)
    beyond = np.asarray([low - 0.3, high + 0.3])
    there = np.isfinite(beyond)
    at = jnp.asarray([*inside, *np.where(there, beyond, 0.0), *np.linspace(-6, 6, 13)])
    found = np.asarray(jax.vmap(loss)(at))
    np.testing.assert_allclose(found[:3], found[0], atol=1e-12)
    assert (found >= found[0] - 1e-12).all()
    assert (found[3:5][there] > found[0] + 1e-7).all()


@given(st.floats(0.05, 0.95), st.floats(-2.0, 2.0), st.floats(0.3, 3.0))
def test_simpo_on_one_pair_solves_a_quadratic(share: float, gamma: float, beta: float):
    data = PairData.of(
        LONGER, [(0, *pair, n) for pair, n in (((1, 3), share), ((3, 1), 1 - share))]
    )
    size = ob.lengths(LONGER)
    known = ob.simpo_optimum(LONGER, data, size, beta=beta, gamma=gamma)
    assert known.log_p is not None
    assert size[[1, 3]].tolist() == [2.0, 1.0]
    p = known.log_p[0]
    assert np.exp(p[[1, 3]]).sum() == pytest.approx(1.0, abs=1e-12)
    g, odd = math.exp(-gamma), 2 * share - 1
    u = (odd + math.sqrt(odd**2 + 4 * share * (1 - share) * g**2)) / (2 * (1 - share) * g)
    assert beta * (p[1] / 2 - p[3]) == pytest.approx(math.log(u), abs=1e-10)


def test_simpo_at_equal_lengths_without_a_margin_is_the_bradley_terry_maximiser():
    data, size = two_way(PLAIN, 1), ob.lengths(PLAIN)
    simpo = ob.simpo_optimum(PLAIN, data, size, beta=1.4, gamma=0.0)
    mle, with_margin = (
        ob.mle_optimum(PLAIN, data, beta=1.4 / 2),
        ob.simpo_optimum(PLAIN, data, size, beta=1.4, gamma=0.5),
    )
    assert simpo.log_p is not None
    assert mle.log_p is not None
    assert with_margin.log_p is not None
    assert kl(PLAIN, simpo.log_p, mle.log_p) < 1e-13
    assert kl(PLAIN, with_margin.log_p, mle.log_p) > CLEAR
    uneven, unequal = two_way(ENDING, 1), ob.lengths(ENDING)
    by_length = ob.simpo_optimum(ENDING, uneven, unequal, beta=1.4, gamma=0.0)
    blind = ob.mle_optimum(ENDING, uneven, beta=0.7)
    assert by_length.log_p is not None
    assert blind.log_p is not None
    assert kl(ENDING, by_length.log_p, blind.log_p) > CLEAR  # lengths matter


def test_one_step_of_rwr_from_the_reference_is_rlhf():
    ref, r = distribution(ENDING, 2), table(ENDING, 3)
    rwr, rlhf = (
        ob.rwr_optimum(ENDING, ref, r, beta=0.4),
        ob.rlhf_optimum(ENDING, r, beta=0.4, log_ref=ref),
    )
    assert rwr.log_p is not None
    assert rlhf.log_p is not None
    assert kl(ENDING, rwr.log_p, rlhf.log_p) == 0.0
    # Eq. 13's value there is -beta E log Z
    z = [np.exp(ref[x] + r[x] / 0.4)[ENDING.leaf_mask].sum() for x in range(2)]
    value = float(ob.rlhf_loss(jnp.asarray(rlhf.log_p), r, ENDING.rho0, beta=0.4, log_ref=ref))
    assert value == pytest.approx(-0.4 * float(ENDING.rho0 @ np.log(z)), abs=1e-12)


def test_finite_data_that_miss_a_completion_leave_no_optimum():
    draws = np.zeros((2, 4))
    draws[:, :3] = [0.5, 0.25, 0.25]
    with np.errstate(divide="ignore"):
        empirical = np.log(draws)
    r = table(PLAIN, 3)
    for none in (
        ob.rwr_optimum(PLAIN, empirical, r, beta=1.0),
        ob.best_of_n_sft_optimum(PLAIN, empirical, r, n=3),
        ob.rlhf_optimum(PLAIN, r, beta=1.0, log_ref=empirical),
    ):
        assert none.log_p is None
        assert "'b b'" in none.reason
    p = jnp.asarray(distribution(PLAIN, 1))
    slope = jax.grad(lambda p: ob.rwr_loss(p, empirical, r, PLAIN.rho0, beta=1.0))(p)
    assert np.isfinite(np.asarray(slope)).all()


def test_bad_arguments_are_named():
    data, ref, r = two_way(PLAIN, 1), distribution(PLAIN, 2), table(PLAIN, 3)
    holes = np.where([[True, True, True, False]] * 2, ref, -np.inf)
    for bad, words in (
        (lambda: ob.mle_optimum(PLAIN, data, beta=0.0), "beta must be > 0"),
        (lambda: ob.dpo_optimum(PLAIN, holes, data, beta=1.0), "'b b'"),
        (lambda: ob.ipo_optimum(PLAIN, holes, data, tau=1.0), "'b b'"),
        (lambda: ob.slic_optimum_of_two(1.5, delta=1.0), "share 1.5"),
        (lambda: ob.slic_zero_loss(PLAIN, data, delta=-1.0), "got -1.0"),
        (lambda: ob.rlhf_optimum(PLAIN, np.full_like(r, np.nan), beta=1.0), "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(InputError, match="targets"):
        ob.slic_loss(jnp.asarray(ref), data, delta=1.0, sft_weight=1.0)
