"""The gap of proper learning on eight bits, against numbers of an independent prototype.

KL to the optimum in nats, best ridge in hindsight; the prototype had six seeds and other draws.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from theory.arms import ARMS
from theory.batch import Batch
from theory.draws import draw_pairs
from theory.families import Lookup, Walsh

SEEDS = tuple(range(16))
MOST = 1024  # pairs; fewer are filled up with pairs of weight 0, so that one program serves all


def data(n_pairs: int, *, lookup: bool = False, horizon: int = 8) -> tuple[Batch, np.ndarray]:
    """A batch of 8 bits, sharpness 2, and the weights of its first n pairs."""
    if lookup:
        truths = [Lookup(8, horizon, 2.0, seed).draw() for seed in SEEDS]
    else:
        truths = [Walsh(8, 2, horizon, 2.0, seed).draw() for seed in SEEDS]
    reward = np.stack([truth.reward for truth in truths])
    pairs = np.stack([draw_pairs(r[0], n_pairs, s) for r, s in zip(reward, SEEDS, strict=True)])
    batch = Batch(
        tree=truths[0].tree,
        beta=1.0,
        seeds=SEEDS,
        reward=reward,
        features=truths[0].features[None],
        degree=8 if lookup else 2,
        log_reference=np.full(reward.shape, -np.log(256.0)),
        pairs=np.pad(pairs, ((0, 0), (0, MOST - n_pairs), (0, 0))),
        n_held=0,
        ridges=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    )
    weights = np.broadcast_to((np.arange(MOST) < n_pairs).astype(np.float64), (len(SEEDS), MOST))
    return batch, weights


def least_kl(name: str, batch: Batch, weights: np.ndarray) -> tuple[float, float]:
    """Mean KL(P_pi || P*) of the best ridge and its standard error."""
    result = ARMS[name](batch, weights)
    assert result.gradient.max() <= 1e-4
    each = np.exp(result.log_p) * (result.log_p - log_softmax(batch.reward, axis=2))
    kl = each.sum(axis=(2, 3))
    best = kl[int(np.argmin(kl.mean(axis=1)))]
    return float(best.mean()), float(best.std(ddof=1) / np.sqrt(len(best)))


@pytest.mark.parametrize(
    ("n_pairs", "arm", "mean", "error"),
    [
        (64, "two_stage", 0.84, 0.08),
        (64, "offline_all", 1.58, 0.09),
        (256, "two_stage", 0.27, 0.04),
        (256, "offline_all", 1.22, 0.09),
        (256, "offline_matched", 0.266, 0.04),
        (1024, "two_stage", 0.058, 0.004),
        (1024, "offline_all", 0.57, 0.06),
    ],
)
def test_degree_two_of_eight_bits(n_pairs: int, arm: str, mean: float, error: float):
    found, own = least_kl(arm, *data(n_pairs))
    assert abs(found - mean) <= 3.0 * np.hypot(error, own), (found, own)


def test_a_lookup_reward_turns_the_order_round():
    """At H = 8 the policy class of all policies is the better one; the ridge is what differs."""
    batch, weights = data(256, lookup=True)
    reward_side, policy_side = (least_kl(a, batch, weights) for a in ("two_stage", "offline_all"))
    for (found, own), mean in ((reward_side, 1.645), (policy_side, 1.41)):
        assert abs(found - mean) <= 3.0 * own * np.sqrt(1.0 + len(SEEDS) / 6.0), (found, own)
    assert policy_side[0] < reward_side[0]


def test_parameters_and_ranks():
    batch, weights = data(256)
    found = {name: ARMS[name](batch, weights) for name in ("offline_all", "offline_matched")}
    assert {n: (o.n_parameters, o.jacobian_rank) for n, o in found.items()} == {
        "offline_all": (502, 255),
        "offline_matched": (120, 36),
    }
