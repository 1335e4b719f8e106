"""Networks on both roads: every prefix against a loop, gradients, independence of splits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory.arms import network_arms, networks
from theory.arms.base import Outcome
from theory.arms.network_arms import ROADS, STOPS, network_arm
from theory.arms.networks import KINDS, Network, Parameters
from theory.batch import Batch
from theory.errors import InputError
from theory.families.walsh import Walsh
from theory.soft import log_optimal
from theory.tree import TokenTree

TREE = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
WIDTH = 4
CELLS = TREE.n_prompts * TREE.n_leaves


def a_batch(replicates: int = 3, *, uniform: bool = False, n_pairs: int = 12) -> Batch:
    """Random rewards, references and pairs; every replicate depends on its own seed alone."""
    rewards, references, pairs = [], [], []
    for seed in range(replicates):
        generator = np.random.default_rng(seed)
        tilt = generator.normal(size=(TREE.n_prompts, TREE.n_leaves))
        score = np.where(TREE.leaf_mask, np.zeros_like(tilt) if uniform else tilt, -np.inf)
        references.append(score - np.log(np.exp(score).sum(axis=1, keepdims=True)))
        rewards.append(np.where(TREE.leaf_mask, generator.normal(size=tilt.shape), 0.0))
        leaves = np.stack([generator.permutation(TREE.leaves)[:2] for _ in range(n_pairs)])
        prompts = generator.integers(TREE.n_prompts, size=n_pairs)
        pairs.append(prompts[:, None] * TREE.n_leaves + leaves)
    features = np.zeros((1, TREE.n_prompts, TREE.n_leaves, 1))
    return Batch(
        tree=TREE,
        beta=0.7,
        seeds=tuple(range(replicates)),
        reward=np.stack(rewards),
        features=features,
        degree=None,
        log_reference=np.stack(references),
        pairs=np.stack(pairs),
        n_held=2,
        ridges=(0.1, 3.0),
        width=WIDTH,
    )


def part_of(batch: Batch, take: slice) -> Batch:
    return Batch(
        batch.tree, batch.beta, batch.seeds[take], batch.reward[take], batch.features,
        batch.degree, batch.log_reference[take], batch.pairs[take], batch.n_held, batch.ridges,
        batch.width,
    )  # fmt: skip


def random_theta(network: Network, *, policy: bool, seed: int = 1) -> Parameters:
    generator = np.random.default_rng(seed)
    shapes = network.shapes(policy=policy)
    return {name: jnp.asarray(generator.normal(size=shape)) for name, shape in shapes.items()}


# --- one prefix at a time, without batches --------------------------------------------------------


def slow_normalise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def slow_trunk(network: Network, theta: dict, prompt: int, tokens: list[int]) -> np.ndarray:
    """What the head reads after these tokens, from the definition of each architecture."""
    if network.kind == "mlp":
        seen = theta["prompt"][prompt] + sum(
            (theta["token"][j * network.tree.vocab + a] for j, a in enumerate(tokens)), 0.0
        )
        return np.maximum(np.maximum(seen, 0) @ theta["hidden"] + theta["hidden_bias"], 0)
    inputs = [theta["prompt"][prompt]]
    inputs += [theta["token"][a] + theta["position"][j] for j, a in enumerate(tokens)]
    read, size = [slow_normalise(x) for x in inputs], network.width // networks.ATTENTION_HEADS
    mixed = []
    for head in range(networks.ATTENTION_HEADS):
        part = slice(head * size, (head + 1) * size)
        query = (read[-1] @ theta["query"])[part]
        weight = np.exp([query @ (x @ theta["key"])[part] / np.sqrt(size) for x in read])
        values = np.stack([(x @ theta["value"])[part] for x in read])
        mixed.append(weight / weight.sum() @ values)
    stream = inputs[-1] + np.concatenate(mixed) @ theta["mix"]
    up = np.maximum(slow_normalise(stream) @ theta["up"] + theta["up_bias"], 0)
    return slow_normalise(stream + up @ theta["down"] + theta["down_bias"])


def slow_log_probs(network: Network, theta: dict, prompt: int, leaf: int) -> float:
    tree, total = network.tree, 0.0
    digits = [leaf // tree.vocab ** (tree.horizon - 1 - h) % tree.vocab for h in range(2)]
    for h, token in enumerate(digits):
        state = int(np.dot(digits[:h], [tree.vocab ** (h - 1 - j) for j in range(h)]))
        allowed = tree.allowed(h)[state]
        read = slow_trunk(network, theta, prompt, digits[:h])
        logits = (read @ theta["head"] + theta["head_bias"])[allowed]
        place = np.flatnonzero(allowed).tolist().index(token)
        total += logits[place] - np.log(np.exp(logits).sum())
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_every_completion_equals_the_network_read_one_prefix_at_a_time(kind: str):
    network = Network(kind, TREE, WIDTH)
    policy, reward = (random_theta(network, policy=p) for p in (True, False))
    log_p, scores = network.log_probs(policy), network.reward(reward)
    slow_policy = {name: np.asarray(part) for name, part in policy.items()}
    slow_reward = {name: np.asarray(part) for name, part in reward.items()}
    for x in range(TREE.n_prompts):
        for leaf in range(TREE.n_leaves):
            if not TREE.leaf_mask[leaf]:
                assert log_p[x, leaf] == scores[x, leaf] == 0.0
                continue
            expected = slow_log_probs(network, slow_policy, x, leaf)
            assert float(log_p[x, leaf]) == pytest.approx(expected, abs=1e-12)
            read = slow_trunk(network, slow_reward, x, list(divmod(leaf, TREE.vocab)))
            assert float(scores[x, leaf]) == pytest.approx(read @ slow_reward["head"], abs=1e-12)
    np.testing.assert_allclose(np.exp(log_p)[:, TREE.leaf_mask].sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_does_not_see_what_comes_after_it(kind: str):
    network = Network(kind, TREE, WIDTH)
    theta = random_theta(network, policy=True)
    moved, change = dict(theta), jnp.arange(1.0 * WIDTH)
    if kind == "mlp":  # tokens of the last position
        moved["token"] = theta["token"].at[TREE.vocab :].add(change[None])
    else:
        moved["position"] = theta["position"].at[1].add(change)
    for level, other in zip(network.log_policy(theta), network.log_policy(moved), strict=True):
        np.testing.assert_array_equal(level, other)
    reward = random_theta(network, policy=False)
    seen = {**reward, **{n: moved[n] for n in ("token", "position") if n in moved}}
    assert np.abs(np.asarray(network.reward(seen) - network.reward(reward))).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_both_roads_have_one_size_up_to_the_head_and_one_start(kind: str):
    network = Network(kind, TREE, WIDTH)
    trunk = sum(int(np.prod(shape)) for shape in network.trunk_shapes.values())
    assert network.n_parameters(policy=False) - WIDTH == trunk
    assert network.n_parameters(policy=True) - WIDTH * TREE.vocab - TREE.vocab == trunk
    policy, reward = (network.initial(3, policy=p) for p in (True, False))
    for name in network.trunk_shapes:
        np.testing.assert_array_equal(policy[name], reward[name])
    other = network.initial(4, policy=True)
    assert not np.array_equal(policy["token"], other["token"])
    start = jax.tree.map(jnp.asarray, policy)
    for level, mask in zip(network.log_policy(start), TREE.allowed_levels, strict=True):
        uniform = -np.log(np.maximum(mask.sum(axis=1), 1))
        expected = np.broadcast_to(np.where(mask, uniform[:, None], -np.inf)[None], level.shape)
        np.testing.assert_allclose(level, expected, atol=1e-12)
    assert not np.asarray(network.reward(jax.tree.map(jnp.asarray, reward))).any()


# --- objectives -----------------------------------------------------------------------------------


def wins(counts: np.ndarray) -> jax.Array:
    """Rows of which the first end won that often, and the second half a time."""
    return jnp.stack([jnp.asarray(counts), jnp.full(len(counts), 0.5)], axis=1)


def objective_of(network: Network, road: str, batch: Batch, ridge: float):
    log_ref = jnp.where(jnp.asarray(TREE.leaf_mask)[None], jnp.asarray(batch.log_reference[0]), 0.0)
    pairs, counts = jnp.asarray(batch.pairs[0]), wins(np.linspace(0.0, 2.0, batch.n_pairs))

    def loss(theta: Parameters) -> jax.Array:
        score = network_arms.score_of(network, road, theta, jnp.float64(batch.beta), log_ref)
        return network_arms.pair_loss(score, pairs, counts)

    return network_arms.with_ridge(loss, jnp.float64(ridge))


@pytest.mark.parametrize(
    ("kind", "road"), [*(("mlp", road) for road in ROADS), ("transformer", "offline")]
)
def test_gradients_equal_finite_differences(kind: str, road: str):
    network = Network(kind, TREE, WIDTH)
    theta = random_theta(network, policy=road != "two_stage")
    objective = jax.jit(objective_of(network, road, a_batch(1), 0.3))
    slope = jax.grad(objective)(theta)
    generator = np.random.default_rng(2)
    for _ in range(3):
        way = {name: jnp.asarray(generator.normal(size=p.shape)) for name, p in theta.items()}
        ahead, behind = (
            float(objective({name: theta[name] + step * way[name] for name in theta}))
            for step in (1e-6, -1e-6)
        )
        exact = sum(float(jnp.sum(slope[name] * way[name])) for name in theta)
        assert (ahead - behind) / 2e-6 == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("road", ROADS)
def test_the_objective_is_the_loss_of_each_pair_and_the_ridge_on_everything(road: str):
    network, batch = Network("mlp", TREE, WIDTH), a_batch(1)
    theta = random_theta(network, policy=road != "two_stage")
    if road == "two_stage":
        score = np.asarray(network.reward(theta))
    else:
        score = batch.beta * np.asarray(network.log_probs(theta))
    if road == "dpo":
        score = score - batch.beta * np.where(TREE.leaf_mask, batch.log_reference[0], 0.0)
    counts, expected = np.linspace(0.0, 2.0, batch.n_pairs), 0.0
    for count, (winner, loser) in zip(counts, batch.pairs[0], strict=True):
        margin = score.flat[winner] - score.flat[loser]
        expected += count * np.log1p(np.exp(-margin)) + 0.5 * np.log1p(np.exp(margin))
    expected += 0.15 * sum(float((np.asarray(part) ** 2).sum()) for part in theta.values())
    found = objective_of(network, road, batch, 0.3)(theta)
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_dpo_starts_at_the_reference_where_its_loss_is_log_two():
    network, batch = Network("mlp", TREE, WIDTH), a_batch(1)
    start = jax.tree.map(jnp.asarray, network.initial(0, policy=True))
    reference = jnp.where(jnp.asarray(TREE.leaf_mask)[None], jnp.exp(batch.log_reference[0]), 0.0)
    fitted = network_arms.sft(network, start, reference)
    before, after = (
        float(network_arms.cross_entropy(network, theta, reference)) for theta in (start, fitted)
    )
    log_ref = np.where(TREE.leaf_mask, batch.log_reference[0], 0.0)
    entropy = -float((TREE.rho0[:, None] * np.asarray(reference) * log_ref).sum())
    assert after - entropy < 0.05 < before - entropy
    log_p = network.log_probs(fitted)
    pairs, counts = jnp.asarray(batch.pairs[0]), wins(np.ones(batch.n_pairs))
    dpo, offline = (
        network_arms.score_of(network, road, fitted, jnp.float64(0.7), log_p)
        for road in ("dpo", "offline")
    )
    loss = float(network_arms.pair_loss(dpo, pairs, counts)) / float(counts.sum())
    assert loss == pytest.approx(np.log(2.0), abs=1e-12)
    assert float(jnp.ptp(offline[:, TREE.leaves])) > 0.1  # the local reward starts elsewhere


def test_the_soft_optimum_is_that_of_the_exact_core():
    reward = a_batch(1).reward[0]
    found = np.asarray(network_arms.soft_optimum(jnp.asarray(reward), jnp.float64(0.7), TREE))
    expected = log_optimal(TREE, reward, 0.7)
    np.testing.assert_allclose(found[:, TREE.leaf_mask], expected[:, TREE.leaf_mask], atol=1e-12)
    forgot = np.asarray(network_arms.soft_optimum(jnp.asarray(reward), jnp.float64(1.0), TREE))
    assert np.abs(forgot - expected)[:, TREE.leaf_mask].max() > 1e-2


def test_adam_is_adam():
    def loss(theta: Parameters) -> jax.Array:
        return jnp.sum((theta["a"] - 3.0) ** 2) + jnp.sum(jnp.cos(theta["b"]))

    start = {"a": np.asarray([1.0, -2.0]), "b": np.asarray([0.5])}
    found = network_arms.adam(loss, jax.tree.map(jnp.asarray, start), (2, 7), 0.1)
    at = {name: part.copy() for name, part in start.items()}
    first = {name: np.zeros_like(part) for name, part in at.items()}
    second = {name: np.zeros_like(part) for name, part in at.items()}
    for t in range(1, 8):
        slopes = {"a": 2.0 * (at["a"] - 3.0), "b": -np.sin(at["b"])}
        for name, g in slopes.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            size = np.sqrt(second[name] / (1 - 0.999**t)) + 1e-8
            at[name] -= 0.1 * first[name] / (1 - 0.9**t) / size
        if t in (2, 7):
            for name, part in at.items():
                np.testing.assert_allclose(found[name][(2, 7).index(t)], part, atol=1e-9)


def test_no_score_sees_the_size_of_what_the_transformer_writes_to_its_stream():
    """Why a ridge shrinks these weights for nothing, and gradients stay large."""
    network = Network("transformer", TREE, WIDTH)
    theta = network.initial(1, policy=False)
    theta["head"] = np.random.default_rng(2).standard_normal(WIDTH)
    written = ("prompt", "token", "position", "mix", "down", "down_bias")
    halved = {name: part / (2.0 if name in written else 1.0) for name, part in theta.items()}
    scores = [network.reward(jax.tree.map(jnp.asarray, one)) for one in (theta, halved)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    halved["up"] = theta["up"] / 2.0
    other = network.reward(jax.tree.map(jnp.asarray, halved))
    assert np.abs(scores[0] - other).max() > 1e-2


# --- whole arms -----------------------------------------------------------------------------------


def whole(batch: Batch, kind: str = "mlp", road: str = "offline") -> Outcome:
    return network_arm(batch, batch.train_weights, kind, road)


def assert_same(one: Outcome, other: Outcome, take: slice = slice(None)) -> None:
    for name in ("log_p", "score", "gradient", "steps"):
        np.testing.assert_array_equal(getattr(one, name)[:, take], getattr(other, name))


@pytest.mark.parametrize(
    ("kind", "road"),
    [*(("mlp", road) for road in ROADS), ("transformer", "two_stage"), ("transformer", "dpo")],
)
def test_an_arm_gives_policies_and_scores_of_every_ridge_and_stop(kind: str, road: str):
    batch = a_batch(5)
    found = whole(batch, kind, road)
    assert found.n_parameters == Network(kind, TREE, WIDTH).n_parameters(policy=road != "two_stage")
    candidates = [(c.ridge, c.stop) for c in found.candidates]
    assert candidates == [(ridge, stop) for ridge in batch.ridges for stop in STOPS]
    assert found.log_p.shape == (6, 5, TREE.n_prompts, TREE.n_leaves) == found.score.shape
    live = found.log_p[..., TREE.leaf_mask]
    assert np.isfinite(live).all()
    np.testing.assert_allclose(np.exp(live).sum(axis=-1), 1.0, atol=1e-12)
    assert np.isneginf(found.log_p[..., ~TREE.leaf_mask]).all()
    assert not found.score[..., ~TREE.leaf_mask].any()
    assert not found.converged
    assert found.jacobian_rank is not None
    assert found.jacobian_rank <= TREE.n_prompts * (len(TREE.leaves) - 1)
    np.testing.assert_array_equal(found.steps[:, 0], np.tile(STOPS, 2))
    weakly = found.score[: len(STOPS)].reshape(len(STOPS), 5, CELLS)
    trained = batch.pairs[None, :, : -batch.n_held]
    won, lost = (np.take_along_axis(weakly, trained[..., side], 2) for side in (0, 1))
    assert np.logaddexp(0.0, lost - won).mean() < 0.8 * np.log(2.0)  # something was learnt


@pytest.mark.parametrize(("kind", "road"), [("mlp", "dpo"), ("transformer", "two_stage")])
def test_results_do_not_depend_on_how_replicates_are_split(kind: str, road: str):
    batch = a_batch(5)
    found = whole(batch, kind, road)
    first, rest = (whole(part_of(batch, take), kind, road) for take in (slice(2), slice(2, 5)))
    assert_same(found, first, slice(2))
    assert_same(found, rest, slice(2, 5))


def test_pairs_of_weight_zero_are_as_if_they_were_not_there():
    batch = a_batch(2)
    held, n = whole(batch), batch.n_pairs - batch.n_held
    changed = batch.pairs.copy()
    changed[:, n:] = changed[:, n:, ::-1]
    other = Batch(**{**vars(batch), "pairs": changed})
    assert_same(held, whole(other))
    everything = network_arm(other, np.ones(changed.shape[:2]), "mlp", "offline")
    assert np.abs(everything.score - held.score).max() > 1e-3


def test_a_larger_ridge_leaves_a_flatter_score():
    found = whole(a_batch(3))
    spread = found.score[..., TREE.leaf_mask].std(axis=-1).mean(axis=(1, 2))
    assert spread[len(STOPS) - 1] > 1.5 * spread[-1]


@pytest.mark.parametrize("tilt", [0.0, 1.0])
def test_dpo_and_maximum_likelihood_are_one_estimator_only_at_a_uniform_reference(tilt: float):
    tree = TokenTree(("a", "b"), 2, ("x",), (1.0,))
    score = tilt * np.random.default_rng(3).normal(size=(2, 1, 4))
    batch = Batch(
        tree, 0.7, (0, 1), np.zeros((2, 1, 4)), np.zeros((1, 1, 4, 1)), None,
        score - np.log(np.exp(score).sum(axis=2, keepdims=True)),
        np.asarray([[[0, 1], [2, 1], [0, 3]], [[3, 2], [3, 0], [1, 0]]]), 1, (0.1,), WIDTH,
    )  # fmt: skip
    dpo, offline = (whole(batch, road=road).log_p for road in ("dpo", "offline"))
    if tilt == 0.0:
        np.testing.assert_allclose(dpo, offline, atol=1e-6)
    else:
        assert np.abs(dpo - offline).max() > 0.1


def test_same_size_mlps_show_the_gap_on_a_reward_simpler_than_its_policy():
    """Degree 2 on 8 bits, a bit a token: the global reward model's policy is nearer the optimum."""
    drawn = [Walsh(seed=seed).draw() for seed in range(6)]
    tree, reward = drawn[0].tree, np.stack([truth.reward for truth in drawn])
    generator, (rows, n) = np.random.default_rng(0), (6, 512)
    first = generator.integers(256, size=(rows, n))
    second = (first + 1 + generator.integers(255, size=(rows, n))) % 256
    gap = np.take_along_axis(reward[:, 0], first, 1) - np.take_along_axis(reward[:, 0], second, 1)
    wins = generator.random((rows, n)) < 1.0 / (1.0 + np.exp(-gap))
    pairs = np.stack([np.where(wins, first, second), np.where(wins, second, first)], axis=2)
    batch = Batch(
        tree, 1.0, tuple(range(6)), reward, drawn[0].features[None], 2,
        np.full(reward.shape, -np.log(256)), pairs, 102, (3.0, 10.0),
    )  # fmt: skip
    log_z = np.log(np.exp(reward).sum(axis=2, keepdims=True))
    best = {}
    for road in ("two_stage", "offline"):
        log_p = network_arm(batch, np.ones((rows, n)), "mlp", road).log_p
        kl = (np.exp(log_p) * (log_p - reward + log_z)).sum(axis=(2, 3))
        best[road] = kl[np.argmin(kl.mean(axis=1))]
    apart = best["offline"] - best["two_stage"]
    assert apart.mean() > 2.0 * apart.std(ddof=1) / np.sqrt(rows) > 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("lstm", TREE, 4), "lstm"), (("mlp", TREE, 0), "got 0"), (("transformer", TREE, 3), "even")],
)  # fmt: skip
def test_bad_networks_are_refused(arguments: tuple, words: str):
    with pytest.raises(InputError, match=words):
        Network(*arguments)


def test_bad_roads_and_references_are_refused():
    batch = a_batch(2)
    with pytest.raises(InputError, match="'ppo'"):
        whole(batch, road="ppo")
    holed = batch.log_reference.copy()
    holed[1, 0, TREE.leaves[2]] = -np.inf
    bad = Batch(**{**vars(batch), "log_reference": holed})
    with pytest.raises(InputError, match=r"seed 1.*prompt 'x'"):
        whole(bad, road="dpo")
