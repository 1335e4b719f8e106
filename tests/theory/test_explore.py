"""The numpy fits of one data set: by brute force, by symmetry, and against the arms of a sweep."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from theory.arms import ARMS
from theory.batch import Batch
from theory.errors import InputError
from theory.explore import (
    Question,
    best_in_hindsight,
    conditionals,
    curve,
    draw_pairs,
    explore,
    log_optimum,
    node_probabilities,
    policy_rank,
    walk,
)
from theory.explore.fitting import PolicyClass, chain, fit_policy_class, soft_policy
from theory.explore.roads import policy_basis
from theory.families import Automata, Coverage, GroundTruth, Lookup, Walsh
from theory.families.base import ground_truth
from theory.soft import kl, log_optimal
from theory.tree import TokenTree

SMALL = Walsh(bits=4, degree=2, horizon=4)
EARLY = Coverage(words=2, salient=1, prompts=2, horizon=2)  # EOS, two prompts
TREES = {"bits": SMALL, "tokens": Walsh(bits=4, degree=2, horizon=2), "eos": EARLY}


def brute_log_p(tree: TokenTree, logits: dict[tuple[int, tuple[str, ...]], float]) -> np.ndarray:
    """log P of every completion from a logit for each (prompt, prefix with its last token)."""
    out = np.full((tree.n_prompts, tree.n_leaves), -np.inf)
    for x, leaf in itertools.product(range(tree.n_prompts), tree.leaves.tolist()):
        words, total = tree.leaf_tokens(leaf), 0.0
        for h in range(len(words)):
            rivals = [logits.get((x, (*words[:h], t)), 0.0) for t in tree.tokens]
            total += logits.get((x, words[: h + 1]), 0.0) - math.log(sum(map(math.exp, rivals)))
        out[x, leaf] = total
    return out


@pytest.mark.parametrize("spec", TREES.values(), ids=TREES)
def test_soft_policy_chains_to_boltzmann_and_shares_the_mass_below(spec: Walsh) -> None:
    """Eq. 11, and pi(a|s) = P(s.a) / P(s) of that distribution, summed completion by completion."""
    truth = spec.draw()
    tree = truth.tree
    for beta in (0.5, 2.0):
        best = log_optimal(tree, truth.reward, beta)
        levels = soft_policy(tree, truth.reward, beta)
        np.testing.assert_allclose(chain(levels), best, atol=1e-12)
        np.testing.assert_allclose(log_optimum(truth, beta), best, atol=1e-12)
        np.testing.assert_allclose(chain(conditionals(tree, best)), best, atol=1e-12)
        passing = node_probabilities(tree, best)
        for x, leaf in itertools.product(range(tree.n_prompts), tree.leaves.tolist()):
            words, above = tree.leaf_tokens(leaf), 1.0
            for h in range(len(words)):
                same = [
                    i
                    for i in tree.leaves.tolist()
                    if tree.leaf_tokens(i)[: h + 1] == words[: h + 1]
                ]
                here = math.fsum(math.exp(best[x, i]) for i in same)
                node = leaf // tree.vocab ** (tree.horizon - h - 1)
                assert passing[h][x].reshape(-1)[node] == pytest.approx(here, abs=1e-12)
                found = math.exp(levels[h][x].reshape(-1)[node])
                assert found == pytest.approx(here / above, abs=1e-12)
                above = here


@pytest.mark.parametrize("spec", TREES.values(), ids=TREES)
def test_two_stage_and_offline_against_brute_force(spec: Walsh) -> None:
    """Both objectives written out completion by completion, minimised by an optimiser of scipy's
    without derivatives of ours, from the definition of the ridge."""
    truth = spec.draw()
    tree, slots = truth.tree, truth.tree.n_leaves
    question = Question(n_pairs=12, ridge=1.0, beta=0.7, seed=3)
    pairs = draw_pairs(truth, question)
    phi = truth.features.reshape(-1, truth.features.shape[2])

    def loss(score: np.ndarray) -> float:
        return sum(math.log1p(math.exp(score[b] - score[a])) for a, b in pairs)

    def reward_side(theta: np.ndarray) -> float:
        return loss(phi @ theta) + 0.5 * float(theta @ theta)

    theta = minimize(reward_side, np.zeros(phi.shape[1]), tol=1e-12).x
    reward = (phi @ theta).reshape(tree.n_prompts, slots)
    two_stage = walk(truth, question, "two_stage", pairs)
    np.testing.assert_allclose(two_stage.log_p, log_optimal(tree, reward, 0.7), atol=1e-5)

    entries: list[tuple[int, tuple[str, ...]]] = []
    sizes: dict[int, int] = {}
    completions = [tree.leaf_tokens(leaf) for leaf in tree.leaves.tolist()]
    for x, h in itertools.product(range(tree.n_prompts), range(tree.horizon)):
        found = sorted({w[: h + 1] for w in completions if len(w) > h})
        entries += [(x, prefix) for prefix in found]
        sizes[h] = sizes.get(h, 0) + len(found)

    def offline_side(logits: np.ndarray) -> float:
        log_p = brute_log_p(tree, dict(zip(entries, logits.tolist(), strict=True)))
        weighted = sum(
            z * z / sizes[len(prefix) - 1] for (_, prefix), z in zip(entries, logits, strict=True)
        )
        return loss(0.7 * log_p.reshape(-1)) + 0.5 * weighted

    logits = minimize(offline_side, np.zeros(len(entries)), options={"gtol": 1e-6}).x
    offline = walk(truth, question, "offline_all", pairs)
    found = brute_log_p(tree, dict(zip(entries, logits.tolist(), strict=True)))
    np.testing.assert_allclose(offline.log_p, found, atol=2e-4)
    assert offline.kl == pytest.approx(kl(tree, offline.log_p, log_optimum(truth, 0.7)), abs=1e-12)
    assert np.abs(two_stage.log_p[:, tree.leaves] - offline.log_p[:, tree.leaves]).max() > 0.05


@pytest.mark.parametrize("spec", TREES.values(), ids=TREES)
@pytest.mark.parametrize("name", ["offline_all", "offline_matched"])
def test_gradient_and_hessian_against_finite_differences(spec: Walsh, name: str) -> None:
    truth, question = spec.draw(), Question(n_pairs=20, beta=0.7, ridge=0.3)
    pairs = draw_pairs(truth, question)
    policies = PolicyClass(truth.tree, 0.7, policy_basis(truth, question, name))
    theta = 0.3 * np.random.default_rng(1).standard_normal(policies.n_parameters)

    def value(t: np.ndarray) -> float:
        return policies.objective(t, pairs, 0.3)[0]

    def slope(t: np.ndarray) -> np.ndarray:
        return policies.objective(t, pairs, 0.3)[1]

    assert check_grad(value, slope, theta) < 1e-4
    hessian, step = policies.hessian(theta, pairs, 0.3), 1e-5
    for i in range(policies.n_parameters):
        aside = step * np.eye(policies.n_parameters)[i]
        column = (slope(theta + aside) - slope(theta - aside)) / (2 * step)
        np.testing.assert_allclose(hessian[:, i], column, atol=1e-6)


def test_new_names_for_the_tokens_change_nothing() -> None:
    """Bits flipped everywhere: completions are renumbered, and so is every policy."""
    truth, question = SMALL.draw(), Question(n_pairs=40)
    pairs = draw_pairs(truth, question)
    turned = np.arange(16) ^ 15
    other = replace(truth, reward=truth.reward[:, turned], features=truth.features[:, turned])
    for name in ("two_stage", "offline_all", "offline_matched"):
        here = walk(truth, question, name, pairs)
        there = walk(other, question, name, turned[pairs])
        np.testing.assert_allclose(there.log_p, here.log_p[:, turned], atol=1e-9)
        assert there.kl == pytest.approx(here.kl, abs=1e-9)
    other = walk(truth, question, "two_stage", pairs[:, ::-1])  # the mutation: labels turned
    assert np.abs(other.log_p - walk(truth, question, "two_stage", pairs).log_p).max() > 0.5


def test_rewards_and_beta_in_other_units_change_nothing() -> None:
    """Reward units are free: r, beta and theta times c, the ridge over c^2."""
    truth, question = SMALL.draw(), Question(n_pairs=40, beta=0.5, ridge=2.0)
    pairs = draw_pairs(truth, question)
    bare = walk(truth, replace(question, ridge=1e-9), "two_stage", np.concatenate([pairs, pairs]))
    again = walk(truth, replace(question, ridge=5e-10), "two_stage", pairs)
    np.testing.assert_allclose(bare.log_p, again.log_p, atol=1e-9)  # twice the data and the ridge


def test_a_lookup_table_at_one_token_has_no_gap() -> None:
    """Same basis, same ridge, linear classes: one estimator. Seen as 8 tokens it is another."""
    spec = Lookup(bits=6, horizon=1)
    question = Question(n_pairs=200)
    found = explore(spec.draw(), question, roads=("two_stage", "offline_all", "offline_matched"))
    for name in ("offline_all", "offline_matched"):
        apart = np.abs(found.roads[name].log_p - found.roads["two_stage"].log_p).max()
        assert apart < 1e-7
    assert abs(found.gap) < 1e-7
    one_hot = walk(spec.draw(), question, "offline_all_one_hot", found.pairs)
    assert np.abs(one_hot.log_p - found.roads["two_stage"].log_p).max() > 0.1  # other coordinates
    longer = replace(spec, horizon=6).draw()
    assert abs(explore(longer, question).gap) > 0.05


def test_proper_policies_are_the_two_stage_road_and_matched_ones_have_its_rank() -> None:
    truth, question = Walsh(bits=6, horizon=6).draw(), Question(n_pairs=256, ridge=3.0)
    roads = ("two_stage", "offline_proper", "offline_matched", "offline_all")
    found = explore(truth, question, roads=roads)
    both = found.roads["two_stage"].log_p, found.roads["offline_proper"].log_p
    assert np.abs(both[0] - both[1]).max() < 1e-6
    assert policy_rank(truth, question, "offline_matched") == truth.features.shape[2] == 21
    assert policy_rank(truth, question, "offline_all") == truth.tree.n_leaves - 1
    assert found.gap > 0.2
    assert abs(found.roads["offline_matched"].kl - found.roads["two_stage"].kl) < found.gap / 2


def batch_of(truth: GroundTruth, pairs: np.ndarray, ridge: float) -> Batch:
    """One replicate."""
    uniform = np.where(truth.tree.leaf_mask, -math.log(len(truth.tree.leaves)), -np.inf)
    return Batch(
        tree=truth.tree,
        beta=0.7,
        seeds=(0,),
        reward=truth.reward[None],
        features=truth.features[None],
        degree=truth.degree,
        log_reference=np.tile(uniform, (1, truth.tree.n_prompts, 1)),
        pairs=pairs[None],
        n_held=0,
        ridges=(ridge,),
    )


NEAR = {
    "two_stage": 1e-8,
    "two_stage_full": 1e-6,
    "offline_proper": 1e-6,
    "offline_all": 5e-3,
    "offline_matched": 5e-3,
}  # nats of log P; of the last two the arms end at a gradient of 1e-3


@pytest.mark.parametrize("name", NEAR)
def test_the_arms_of_a_sweep_end_at_the_same_policies(name: str) -> None:
    agree_with_arm(EARLY, name)


def test_the_matched_arm_on_bits_ends_at_the_same_policy() -> None:
    agree_with_arm(SMALL, "offline_matched")


def agree_with_arm(spec: Walsh | Coverage, name: str) -> None:
    """On 60 pairs; and with another ridge they would not."""
    truth = spec.draw()
    road = "two_stage" if name == "two_stage_full" else name
    kind = "full" if name == "two_stage_full" else "true"
    question = Question(n_pairs=60, beta=0.7, ridge=1.0, reward_class=kind)
    pairs, live = draw_pairs(truth, question), truth.tree.leaves
    batch = batch_of(truth, pairs, 1.0)
    arm = ARMS[name](batch, batch.train_weights)
    here = walk(truth, question, road, pairs).log_p[:, live]
    assert np.abs(arm.log_p[0, 0][:, live] - here).max() < NEAR[name]
    there = walk(truth, replace(question, ridge=2.0), road, pairs).log_p[:, live]
    assert np.abs(there - here).max() > max(3 * NEAR[name], 0.01)


def test_a_polished_fit_is_a_stationary_point_and_a_picture_is_near_it() -> None:
    truth, question = Walsh(bits=6, horizon=6).draw(), Question(n_pairs=64, ridge=0.03)
    pairs = draw_pairs(truth, question)
    exact = walk(truth, question, "offline_all", pairs)
    assert exact.gradient < 1e-8
    quick = walk(truth, replace(question, polish=False), "offline_all", pairs)
    assert quick.gradient < 2e-3
    smooth = replace(question, ridge=1.0)
    assert walk(truth, smooth, "offline_all", pairs).kl == pytest.approx(
        walk(truth, replace(smooth, polish=False), "offline_all", pairs).kl, abs=2e-3
    )
    policies = PolicyClass(truth.tree, 1.0, policy_basis(truth, question, "offline_all"))
    fitted = fit_policy_class(policies, pairs, 0.03)
    assert np.linalg.eigvalsh(policies.hessian(fitted.theta, pairs, 0.03)).min() > 0


def test_curves_are_walks_and_hindsight_is_the_least() -> None:
    question = Question(polish=False)
    kls = curve(SMALL, question, (16, 64), (0, 1), ridges=(0.3, 3.0))
    assert {name: value.shape for name, value in kls.items()} == {
        "two_stage": (2, 2),
        "offline_all": (2, 2),
    }
    truth = replace(SMALL, seed=1).draw()
    asked = replace(question, n_pairs=64, seed=1)
    pairs = draw_pairs(truth, asked)
    each = [walk(truth, replace(asked, ridge=r), "two_stage", pairs).kl for r in (0.3, 3.0)]
    assert kls["two_stage"][1, 1] in each
    assert best_in_hindsight(truth, asked, "two_stage", pairs, (0.3, 3.0)).kl == min(each)
    by_ridge = [curve(SMALL, replace(question, ridge=r), (16, 64), (0, 1)) for r in (0.3, 3.0)]
    for name, value in kls.items():
        means = np.stack([part[name].mean(axis=1) for part in by_ridge])
        np.testing.assert_array_equal(value.mean(axis=1), means.min(axis=0))
        assert (means.max(axis=0) > means.min(axis=0)).all()
    once = curve(SMALL, replace(question, ridge=3.0), (64,), (1,))
    assert once["two_stage"][0, 0] == each[1]


def test_noise_flips_labels_and_seeds_repeat() -> None:
    truth = SMALL.draw()
    clean = draw_pairs(truth, Question(n_pairs=4000))
    np.testing.assert_array_equal(clean, draw_pairs(truth, Question(n_pairs=4000)))
    noisy = draw_pairs(truth, Question(n_pairs=4000, noise=0.2))
    flipped = (noisy != clean).any(axis=1)
    assert abs(flipped.mean() - 0.2) < 4 * math.sqrt(0.16 / 4000)
    np.testing.assert_array_equal(noisy[flipped], clean[flipped][:, ::-1])


def test_a_class_larger_than_the_reward_has_the_reward_in_it() -> None:
    truth = SMALL.draw()
    pairs = draw_pairs(truth, Question())
    roads = {
        name: walk(truth, Question(reward_class=name), "two_stage", pairs)
        for name in ("true", "degree-2", "degree-3", "degree-4", "full")
    }
    np.testing.assert_array_equal(roads["true"].log_p, roads["degree-2"].log_p)
    np.testing.assert_allclose(roads["degree-4"].log_p, roads["full"].log_p, atol=1e-9)
    assert roads["degree-3"].n_parameters == 4 + 6 + 4


def test_what_cannot_be_is_refused_by_name() -> None:
    truth = Automata(states=3, horizon=4).draw()
    pairs = draw_pairs(truth, Question())
    for settings, words in (
        ({"n_pairs": 0}, "n_pairs must be a whole number >= 1, got 0"),
        ({"noise": 1.5}, r"noise must lie in 0..1, got 1.5"),
        ({"ridge": 0.0}, "ridge must be > 0"),
        ({"beta": math.nan}, "beta must be > 0"),
    ):
        with pytest.raises(InputError, match=words):
            Question(**settings)
    for name, cls, words in (
        ("two_stage", "degree-2", "'degree-2' is none of true, full"),
        ("offline_proper", "full", "needs a simple reward class"),
        ("offline_matched", "full", "needs a simple reward class"),
        ("ppo", "true", "road 'ppo' is none of"),
    ):
        with pytest.raises(InputError, match=words):
            walk(truth, Question(reward_class=cls), name, pairs)
    with pytest.raises(InputError, match="the degree lies outside"):
        walk(SMALL.draw(), Question(reward_class="degree-5"), "two_stage", pairs)
    one = TokenTree(("a",), 1, ("x",), (1.0,))
    alone = ground_truth(SMALL, one, np.zeros((1, 1)), np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match="one completion"):
        draw_pairs(alone, Question())
