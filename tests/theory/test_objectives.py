"""Losses by hand, gradients by differences, and the optimum of each against its own descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from theory import objectives as ob
from theory.classes import TabularPolicies, chain
from theory.preferences import PairData
from theory.soft import expected_reward, kl, log_optimal, policy_from_leaves
from theory.tree import TokenTree

ENDING = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
CLEAR = 0.01  # nats by which a broken twin must miss

Loss = Callable[[jax.Array], jax.Array]


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


def losses(tree: TokenTree, wrong: bool = False) -> dict[str, Loss]:
    """Every loss on one random instance; or its broken twin, which asks for something else."""
    data, ref, r = two_way(tree, 1), distribution(tree, 2), table(tree, 3)
    flip = PairData(data.prompt, data.loser, data.winner, data.count) if wrong else data
    rho0, size = tree.rho0, ob.lengths(tree)
    source, beta = distribution(tree, 4), 0.7
    off = 2.0 * beta if wrong else beta
    sft = rho0[:, None] * np.exp(source)
    n, sign = (2, -1.0) if wrong else (5, 1.0)
    return {
        "mle": lambda p: ob.mle_loss(p, flip, beta=beta),
        "reference-free dpo": lambda p: ob.reference_free_dpo_loss(p, data, beta=off),
        "dpo": lambda p: ob.dpo_loss(p, ref, data, beta=off),
        "ipo": lambda p: ob.ipo_loss(p, ref, flip, tau=beta),
        "slic": lambda p: ob.slic_loss(p, flip, delta=1.0, sft_weight=0.8, targets=sft),
        "simpo": lambda p: ob.simpo_loss(p, data, size, beta=beta, gamma=-0.4 if wrong else 0.4),
        "rwr": lambda p: ob.rwr_loss(p, source, r, rho0, beta=off),
        "best-of-n sft": lambda p: ob.best_of_n_sft_loss(p, tree, source, r, n=n),
        "rlhf": lambda p: ob.rlhf_loss(p, sign * r, rho0, beta=beta, log_ref=ref),
        "entropy": lambda p: ob.rlhf_loss(p, r, rho0, beta=off),
        "sft": lambda p: ob.sft_loss(p, ref if wrong else source, rho0),
        "policy gradient": lambda p: ob.policy_gradient_loss(p, r, rho0),
    }


def optima(tree: TokenTree) -> dict[str, ob.Optimum]:
    """The optimum of each of `losses` from its closed form (slic and policy gradient apart)."""
    data, ref, r = two_way(tree, 1), distribution(tree, 2), table(tree, 3)
    source, beta, size = distribution(tree, 4), 0.7, ob.lengths(tree)
    return {
        "mle": ob.mle_optimum(tree, data, beta=beta),
        "reference-free dpo": ob.mle_optimum(tree, data, beta=beta),
        "dpo": ob.dpo_optimum(tree, ref, data, beta=beta),
        "ipo": ob.ipo_optimum(tree, ref, data, tau=beta),
        "simpo": ob.simpo_optimum(tree, data, size, beta=beta, gamma=0.4),
        "rwr": ob.rwr_optimum(tree, source, r, beta=beta),
        "best-of-n sft": ob.best_of_n_sft_optimum(tree, source, r, n=5),
        "rlhf": ob.rlhf_optimum(tree, r, beta=beta, log_ref=ref),
        "entropy": ob.rlhf_optimum(tree, r, beta=beta),
        "sft": ob.Optimum(source),
    }


NAMES = list(losses(ENDING))
KNOWN = list(optima(ENDING))


def in_logits(tree: TokenTree, loss: Loss) -> Callable[[jax.Array], jax.Array]:
    policies = TabularPolicies.of(tree)
    return lambda theta: loss(chain(policies.log_policy(theta)))


@cache
def compiled(name: str, wrong: bool = False):
    """value and gradient of one of `losses` on ENDING."""
    return jax.jit(jax.value_and_grad(in_logits(ENDING, losses(ENDING, wrong)[name])))


def descend(tree: TokenTree, slope: Callable) -> np.ndarray:
    """log P where L-BFGS on the logits ends, from a random start."""
    policies = TabularPolicies.of(tree)

    def down(theta):
        value, gradient = slope(jnp.asarray(theta))
        return float(value), np.asarray(gradient)

    start = np.random.default_rng(9).normal(size=policies.dimension)
    options = {"maxiter": 5000, "maxfun": 9000, "ftol": 0.0, "gtol": 1e-9}
    end = minimize(down, start, jac=True, method="L-BFGS-B", options=options).x
    return np.asarray(chain(policies.log_policy(jnp.asarray(end))))


def logits_of(tree: TokenTree, log_p: np.ndarray) -> jax.Array:
    return jnp.asarray(TabularPolicies.of(tree).logits(policy_from_leaves(tree, log_p)))


# --- values and gradients ------------------------------------------------------------------------


def test_pair_losses_by_hand():
    data, ref, p = two_way(ENDING, 1), distribution(ENDING, 2), distribution(ENDING, 5)
    size, rho0 = ob.lengths(ENDING), ENDING.rho0
    sft = rho0[:, None] * np.exp(distribution(ENDING, 4))
    sums, total = dict.fromkeys(("mle", "dpo", "ipo", "slic", "simpo"), 0.0), 0.0
    for x, i, j, n in zip(data.prompt, data.winner, data.loser, data.count, strict=True):
        bare = p[x, i] - p[x, j]
        ratio = bare - (ref[x, i] - ref[x, j])
        scaled = 0.7 * (p[x, i] / size[i] - p[x, j] / size[j])
        sums["mle"] += n * math.log1p(math.exp(-0.7 * bare))
        sums["dpo"] += n * math.log1p(math.exp(-0.7 * ratio))
        sums["ipo"] += n * (ratio - 1 / 1.4) ** 2
        sums["slic"] += n * max(0.0, 1.0 - bare)
        sums["simpo"] += n * math.log1p(math.exp(0.4 - scaled))
        total += n
    cross = sum(sft[x, i] * p[x, i] for x in range(2) for i in ENDING.leaves)
    found = losses(ENDING)
    for name in sums:
        expected = sums[name] / total - (0.8 * cross if name == "slic" else 0.0)
        assert float(found[name](jnp.asarray(p))) == pytest.approx(expected, abs=1e-13)
    free = float(found["reference-free dpo"](jnp.asarray(p)))
    assert free == pytest.approx(sums["mle"] / total, abs=1e-13)
    words = [ENDING.leaf_tokens(int(leaf)) for leaf in ENDING.leaves]
    assert size[ENDING.leaves].tolist() == [len(each) for each in words]
    assert {len(each) for each in words} == {1, 2}


def test_return_losses_by_hand():
    p, ref, r = distribution(ENDING, 5), distribution(ENDING, 2), table(ENDING, 3)
    source = distribution(ENDING, 4)
    cells = [(x, i) for x in range(2) for i in ENDING.leaves]
    rho0 = ENDING.rho0
    top = max(r[x, i] for x, i in cells)
    expected = {
        "rwr": -sum(
            rho0[x] * math.exp(source[x, i] + (r[x, i] - top) / 0.7) * p[x, i] for x, i in cells
        ),
        "rlhf": -sum(
            rho0[x] * math.exp(p[x, i]) * (r[x, i] - 0.7 * (p[x, i] - ref[x, i])) for x, i in cells
        ),
        "entropy": -sum(rho0[x] * math.exp(p[x, i]) * (r[x, i] - 0.7 * p[x, i]) for x, i in cells),
        "sft": -sum(rho0[x] * math.exp(source[x, i]) * p[x, i] for x, i in cells),
        "policy gradient": -sum(rho0[x] * math.exp(p[x, i]) * r[x, i] for x, i in cells),
    }
    found = losses(ENDING)
    for name, value in expected.items():
        assert float(found[name](jnp.asarray(p))) == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_central_differences(name: str):
    value, rng = compiled(name), np.random.default_rng(6)
    theta = jnp.asarray(rng.normal(size=TabularPolicies.of(ENDING).dimension))
    slope = np.asarray(value(theta)[1])
    assert np.isfinite(slope).all()
    assert np.linalg.norm(slope) > 1e-3
    for move in rng.normal(size=(6, len(slope))):
        step = 1e-5 * jnp.asarray(move)
        change = float(value(theta + step)[0] - value(theta - step)[0]) / 2e-5
        assert change == pytest.approx(float(slope @ move), abs=1e-8)


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(-5, 5), st.floats(-5, 5))
def test_pair_losses_see_no_shift_of_a_prompt_save_where_lengths_count(
    seed: int, a: float, b: float
):
    p = jnp.asarray(distribution(ENDING, seed))
    data, ref, size = two_way(ENDING, 1), distribution(ENDING, 2), ob.lengths(ENDING)
    shift = jnp.asarray([[a], [b]])
    for loss in (
        lambda p: ob.mle_loss(p, data),
        lambda p: ob.dpo_loss(p, ref, data, beta=0.3),
        lambda p: ob.ipo_loss(p, ref, data, tau=0.3),
        lambda p: ob.slic_loss(p, data, delta=1.0),
        lambda p: ob.simpo_loss(p, data, np.ones_like(size), beta=2.0, gamma=0.5),
    ):
        assert float(loss(p + shift)) == pytest.approx(float(loss(p)), abs=1e-10)
    if max(abs(a), abs(b)) > 1.0:
        seen = float(ob.simpo_loss(p + shift, data, size, beta=2.0, gamma=0.5))
        assert seen != pytest.approx(
            float(ob.simpo_loss(p, data, size, beta=2.0, gamma=0.5)), abs=1e-6
        )


# --- optima --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_descent_ends_at_the_known_optimum_and_the_broken_twin_does_not(name: str):
    known = optima(ENDING)[name]
    assert known.log_p is not None
    assert known.dimension == 0
    np.testing.assert_allclose(np.exp(known.log_p).sum(axis=1), 1.0, atol=1e-12)
    slope = compiled(name)(logits_of(ENDING, known.log_p))[1]
    assert float(jnp.abs(slope).max()) < 1e-12
    assert kl(ENDING, descend(ENDING, compiled(name)), known.log_p) < 1e-10
    assert kl(ENDING, descend(ENDING, compiled(name, True)), known.log_p) > CLEAR


# --- the policy gradient -------------------------------------------------------------------------


def test_the_score_function_form_is_the_gradient_for_any_baseline():
    policies, r = TabularPolicies.of(ENDING), table(ENDING, 3)
    theta = jnp.asarray(np.random.default_rng(7).normal(size=policies.dimension))

    def log_p(at):
        return chain(policies.log_policy(at))

    p = np.where(ENDING.leaf_mask, np.exp(np.asarray(log_p(theta))), 0.0)
    scores = np.asarray(jax.jit(jax.jacrev(log_p))(theta))
    exact = -np.asarray(compiled("policy gradient")(theta)[1])
    slope = jax.jit(
        jax.grad(lambda at, b, gain: ob.reinforce_loss(log_p(at), draws, gain, baseline=b))
    )
    draws = ENDING.rho0[:, None] * p
    for b in ([0.0, 0.0], [1.0, -3.0], [50.0, 7.0]):
        baseline = np.asarray(b)
        gain = r - baseline[:, None]
        written = sum(
            draws[x, i] * gain[x, i] * scores[x, i] for x in range(2) for i in ENDING.leaves
        )
        np.testing.assert_allclose(written, exact, atol=1e-13)
        np.testing.assert_allclose(-np.asarray(slope(theta, baseline, r)), exact, atol=1e-13)
    broken = -np.asarray(slope(theta, np.zeros(2), 0.5 * r))  # a baseline that sees the completion
    assert np.abs(broken - exact).max() > CLEAR


def test_sampled_reinforce_gradients_agree_with_the_exact_one():
    policies, r, n = TabularPolicies.of(ENDING), table(ENDING, 3), 200_000
    theta = jnp.asarray(np.random.default_rng(7).normal(size=policies.dimension))
    p = np.exp(np.asarray(chain(policies.log_policy(theta))))
    exact = np.asarray(compiled("policy gradient")(theta)[1])
    rng = np.random.default_rng(8)
    counts = rng.multinomial(n, (ENDING.rho0[:, None] * p).ravel()).reshape(p.shape)
    baseline = np.asarray([0.3, -0.2])

    def loss(at):
        log_p = chain(policies.log_policy(at))
        return ob.reinforce_loss(log_p, counts / n, r, baseline=baseline)

    estimate = np.asarray(jax.jit(jax.grad(loss))(theta))
    scores = np.asarray(jax.jit(jax.jacrev(lambda at: chain(policies.log_policy(at))))(theta))
    terms = np.where(
        ENDING.leaf_mask[None, :, None], (r - baseline[:, None])[..., None] * scores, 0
    )
    weight = (ENDING.rho0[:, None] * p)[..., None]
    variance = np.maximum((weight * terms**2).sum(axis=(0, 1)) - exact**2, 0.0)
    assert (np.abs(estimate - exact) <= 5 * np.sqrt(variance / n) + 1e-15).all()
    assert np.abs(exact).max() > 5 * np.sqrt(variance / n).max()  # the check can fail


def test_without_entropy_the_return_has_no_maximiser_unless_it_is_constant():
    r = table(ENDING, 3)
    none = ob.policy_gradient_optimum(ENDING, r)
    assert none.log_p is None
    assert "not attained" in none.reason
    top = float(ENDING.rho0 @ r[:, ENDING.leaves].max(axis=1))
    returns = [
        expected_reward(ENDING, log_optimal(ENDING, r, beta), r) for beta in (10.0, 1.0, 0.3, 0.1)
    ]
    assert (np.diff(returns) > 0).all()
    assert returns[-1] < top
    assert top - expected_reward(ENDING, log_optimal(ENDING, r, 0.003), r) < 1e-9
    for beta in (10.0, 1.0, 0.3):  # the slope is never 0 on the way
        slope = compiled("policy gradient")(logits_of(ENDING, log_optimal(ENDING, r, beta)))[1]
        assert float(jnp.linalg.norm(slope)) > 1e-6
    flat = np.where(np.asarray([[True], [False]]), 2.0, -1.0) * np.ones_like(r)
    any_policy = ob.policy_gradient_optimum(ENDING, flat)
    assert any_policy.log_p is not None
    assert any_policy.dimension == 2 * (len(ENDING.leaves) - 1)
    p = jnp.asarray(distribution(ENDING, 1))
    assert float(ob.policy_gradient_loss(p, flat, ENDING.rho0)) == pytest.approx(0.1, abs=1e-13)
