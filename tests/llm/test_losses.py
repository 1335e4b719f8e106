"""Torch losses against theory's JAX loss on the same numbers, and DPO's known values."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import theory._x64  # noqa: F401
from llm.training.losses import PairLogps, bradley_terry_loss, dpo_loss, local_loss, sft_loss
from theory.toy import Pairs, mean_loss


def _numbers(seed, scale=20.0):
    return scale * np.random.default_rng(seed).normal(size=(4, 32))


def _theory_loss(first, second):
    """The exact simulator's loss, one pair of completions at a time, flattened."""
    losses = []
    for a, b in zip(first.ravel(), second.ravel(), strict=True):
        index = jnp.zeros(1, dtype=jnp.int64)
        pair = Pairs(index, index, index + 1, jnp.ones(1))
        losses.append(float(mean_loss(pair, jnp.asarray([[a, b]]))))
    return np.asarray(losses).reshape(first.shape)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_exact_simulator(seed):
    a, b, c, d = _numbers(seed, scale=5.0)
    ta, tb, tc, td = (torch.tensor(x) for x in (a, b, c, d))
    policy, reference = PairLogps(ta, tb), PairLogps(tc, td)
    beta = 0.3
    pairs = [
        (bradley_terry_loss(ta, tb), _theory_loss(a, b)),
        (local_loss(policy, beta=beta), _theory_loss(beta * a, beta * b)),
        (dpo_loss(policy, reference, beta=beta), _theory_loss(beta * (a - c), beta * (b - d))),
    ]
    for ours, exact in pairs:
        np.testing.assert_allclose(ours.numpy(), exact, atol=1e-6, rtol=1e-6)
        single = ours.float().numpy()
        np.testing.assert_allclose(single, exact, atol=1e-6, rtol=1e-6)


def test_dpo_is_ln_2_where_policy_is_reference():
    a, b, *_ = (torch.tensor(x) for x in _numbers(0))
    same = PairLogps(a, b)
    assert dpo_loss(same, same, beta=0.05).numpy() == pytest.approx(math.log(2), abs=1e-12)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-20, 20))
def test_shift_invariance_and_antisymmetry(x, y, shift):
    a, b = torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    shifted = bradley_terry_loss(a + shift, b + shift)
    torch.testing.assert_close(bradley_terry_loss(a, b), shifted, atol=1e-9, rtol=1e-9)
    wins = torch.exp(-bradley_terry_loss(a, b)) + torch.exp(-bradley_terry_loss(b, a))
    assert wins.item() == pytest.approx(1.0, abs=1e-12)


def test_sft_loss_is_the_mean_over_real_tokens():
    logps = torch.tensor([[-1.0, -3.0, -100.0], [-2.0, -2.0, -5.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert sft_loss(logps, mask).tolist() == [2.0, 3.0]
