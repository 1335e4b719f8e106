"""What the arms are fitted with: distinct pairs, Newton, L-BFGS, replicates on all cores."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from theory.arms import ARMS, newton_linear, replicates
from theory.arms.lbfgs import lbfgs
from theory.arms.newton import Pairs, damped_newton, solve
from theory.arms.replicates import distinct_pairs
from theory.batch import Batch
from theory.draws import draw_pairs
from theory.families import Walsh
from theory.tree import TokenTree

ROOT = Path(__file__).parents[2]
SMALL = TokenTree(("a", "b"), 2, ("x", "y"), (0.5, 0.5))


def walsh(count: int = 11, n_pairs: int = 50) -> Batch:
    """4 bits in 4 tokens, degree 2."""
    truths = [Walsh(4, 2, 4, 2.0, seed).draw() for seed in range(count)]
    reward = np.stack([truth.reward for truth in truths])
    return Batch(
        tree=truths[0].tree,
        beta=1.0,
        seeds=tuple(range(count)),
        reward=reward,
        features=truths[0].features[None],
        degree=2,
        log_reference=np.full(reward.shape, -np.log(16.0)),
        pairs=np.stack([draw_pairs(r[0], n_pairs, s) for s, r in enumerate(reward)]),
        n_held=10,
        ridges=(0.1, 1.0, 10.0),
    )


def some(batch: Batch, rows: list[int] | slice) -> Batch:
    """These replicates alone."""
    return dataclasses.replace(
        batch,
        seeds=tuple(np.array(batch.seeds)[rows].tolist()),
        reward=batch.reward[rows],
        log_reference=batch.log_reference[rows],
        pairs=batch.pairs[rows],
    )


# --- pairs ----------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_distinct_pairs_count_every_pair_once(seed: int, n: int):
    rng = np.random.default_rng(seed)
    x = rng.integers(2, size=(2, n))
    pairs = np.stack([4 * x + rng.integers(4, size=(2, n)), 4 * x + rng.integers(4, size=(2, n))])
    pairs, weights = np.moveaxis(pairs, 0, 2), rng.integers(0, 3, size=(2, n)) * 0.5
    ends, wins = distinct_pairs(SMALL, pairs, weights)
    assert ends.shape[1] == 1 << (min(n, 12 + 1) - 1).bit_length()
    for r in range(2):
        expected: dict[tuple[int, int], float] = {}
        for (winner, loser), weight in zip(pairs[r].tolist(), weights[r], strict=True):
            if winner != loser:
                expected[winner, loser] = expected.get((winner, loser), 0.0) + weight
        found = {}
        for (low, high), (a, b) in zip(ends[r].tolist(), wins[r], strict=True):
            assert low <= high
            if low < high:
                assert (low, high) not in found
                found[low, high], found[high, low] = a, b
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in expected.items() if v}


def test_the_order_of_the_pairs_does_not_matter():
    batch = walsh()
    turned = dataclasses.replace(batch, pairs=batch.pairs[:, ::-1])
    weights = np.ones(batch.pairs.shape[:2])
    for name in ("two_stage", "offline_all"):
        one, other = ARMS[name](batch, weights), ARMS[name](turned, weights)
        assert one.log_p.tobytes() == other.log_p.tobytes()
    # pairs of weight 0 are not there
    held = ARMS["two_stage"](batch, batch.train_weights)
    short = dataclasses.replace(batch, pairs=batch.pairs[:, :40], n_held=0)
    cut = ARMS["two_stage"](short, np.ones((11, 40)))
    np.testing.assert_allclose(held.log_p, cut.log_p, atol=1e-9)
    assert np.abs(held.log_p - ARMS["two_stage"](batch, weights).log_p).max() > 1e-3


# --- optimisers -----------------------------------------------------------------------------------


def loss(theta: np.ndarray, d: np.ndarray, w: np.ndarray, ridge: float) -> float:
    return float((w * np.logaddexp(0.0, -(d @ theta))).sum() + 0.5 * ridge * theta @ theta)


@pytest.mark.parametrize(("scale", "ridge"), [(1.0, 0.5), (40.0, 1e-3)])
def test_newton_agrees_with_another_optimiser(scale: float, ridge: float):
    rng = np.random.default_rng(0)
    d, w = scale * rng.normal(size=(30, 4)), rng.random(30)
    theta, steps = newton_linear(jnp.asarray(d), jnp.asarray(w), jnp.float64(ridge))
    theta = np.asarray(theta)
    slope = ridge * theta - d.T @ (w * expit(-d @ theta))
    assert np.abs(slope).max() <= 1e-12 * scale * 30
    assert 1 < int(steps) < 60
    other = minimize(loss, np.zeros(4), (d, w, ridge), method="BFGS", options={"gtol": 1e-9})
    assert loss(theta, d, w, ridge) <= other.fun + 1e-9


def test_newton_shortens_steps_that_go_too_far():
    """sqrt(1 + x^2) from 3: full steps diverge, x -> -x^3."""

    def at(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x / jnp.sqrt(1.0 + x * x), x

    def bend(x: jax.Array) -> jax.Array:
        return ((1.0 + x * x) ** -1.5)[None, :]

    theta, gradient, _ = damped_newton(at, bend, jnp.array([3.0]))
    assert abs(float(theta[0])) < 1e-8
    assert float(gradient) < 1e-8


def test_large_systems_are_solved_by_conjugate_gradients():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(90, 80))
    matrix, right = root.T @ root + np.eye(80), rng.normal(size=80)
    x = np.asarray(solve(jnp.asarray(matrix), jnp.asarray(right)))
    assert np.linalg.norm(matrix @ x - right) <= 2e-4 * np.linalg.norm(right)


@pytest.mark.parametrize("pairs", [3, 4000])
def test_both_ways_to_the_hessian_of_pairs(pairs: int):
    rng = np.random.default_rng(0)
    table, ends = rng.normal(size=(8, 30)), rng.integers(8, size=(pairs, 2))
    bend, theta = rng.random(pairs), rng.normal(size=30)
    made = Pairs.of(jnp.asarray(table), jnp.asarray(ends))
    assert (made.x is None) == (pairs == 4000)
    x = table[ends[:, 0]] - table[ends[:, 1]]
    np.testing.assert_allclose(made.hessian(jnp.asarray(bend)), x.T * bend @ x, atol=1e-9)
    np.testing.assert_allclose(made.gradient(jnp.asarray(bend)), bend @ x, atol=1e-10)
    np.testing.assert_allclose(made.margin(jnp.asarray(theta)), x @ theta, atol=1e-10)


def test_lbfgs_solves_each_problem_by_itself():
    """Rosenbrock valleys of three widths from two starts: not convex, minimum (1, 1)."""
    width = jnp.array([1.0, 10.0, 100.0])

    def valley(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, y = theta
        bent = y - x * x
        value = (1.0 - x) ** 2 + width * bent**2
        slope = jnp.stack([-2.0 * (1.0 - x) - 4.0 * width * x * bent, 2.0 * width * bent])
        return value, slope

    start = jnp.stack([jnp.full(3, -1.2), jnp.full(3, 1.0)])
    fit = jax.jit(lambda s: lbfgs(valley, s, 1e-9, 500))
    theta, gradient, steps = fit(start)
    np.testing.assert_allclose(theta, 1.0, atol=1e-7)
    assert float(jnp.max(jnp.abs(gradient))) <= 1e-9
    assert float(steps[0]) < float(steps[2]) < 200
    # another start of the third problem is nothing to the first two
    moved = fit(start.at[:, 2].set(jnp.array([2.0, -3.0])))
    assert np.asarray(moved[0][:, :2]).tobytes() == np.asarray(theta[:, :2]).tobytes()
    np.testing.assert_allclose(moved[0], 1.0, atol=1e-7)


# --- replicates -----------------------------------------------------------------------------------

LINEAR = ("two_stage", "two_stage_full", "offline_all", "offline_proper")


@pytest.mark.parametrize("name", LINEAR)
def test_replicates_do_not_see_each_other(name: str, monkeypatch: pytest.MonkeyPatch):
    batch = walsh()
    weights = np.ones(batch.pairs.shape[:2])
    whole = ARMS[name](batch, weights)
    part = ARMS[name](some(batch, [9, 2, 7]), weights[:3])
    assert part.log_p.tobytes() == whole.log_p[:, [9, 2, 7]].tobytes()
    assert part.gradient.tobytes() == whole.gradient[:, [9, 2, 7]].tobytes()
    monkeypatch.setattr(replicates, "cores", lambda: 1)
    assert ARMS[name](batch, weights).log_p.tobytes() == whole.log_p.tobytes()


def test_no_shape_is_compiled_twice():
    batch = walsh()
    ARMS["offline_proper"](batch, np.ones(batch.pairs.shape[:2]))
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
    other = dataclasses.replace(walsh(3, 60), ridges=(0.2, 2.0, 20.0), beta=0.5)
    ARMS["offline_proper"](other, np.ones((3, 60)))
    compiled = "/jax/core/compile/backend_compile_duration"
    assert compiled not in seen
    ARMS["offline_proper"](dataclasses.replace(other, ridges=(1.0,)), np.ones((3, 60)))
    assert compiled in seen  # the listener does hear


def digest() -> str:
    """Of what two arms make of one batch."""
    batch = walsh()
    weights = np.ones(batch.pairs.shape[:2])
    found = [ARMS[name](batch, weights).log_p.tobytes() for name in ("two_stage", "offline_all")]
    return hashlib.sha256(b"".join(found)).hexdigest()


ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path[:0] = sys.argv[1:]
from test_arms_fitting import digest
print(digest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs to choose its cores")
def test_one_core_gives_the_same_bytes():
    done = subprocess.run(
        [sys.executable, "-c", ONE_CORE, str(ROOT), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("name", ["mlp_offline", "online_dpo_sft"])
def test_arms_of_other_modules_are_imported_when_called(name: str):
    assert ARMS[name].__name__ == name  # pyright: ignore
    with pytest.raises(AttributeError):
        ARMS[name](None, None)  # pyright: ignore
