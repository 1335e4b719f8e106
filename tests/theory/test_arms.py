"""The linear and tabular arms: an oracle that enumerates, and the equalities of the theorems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from theory.arms import ARMS, Outcome
from theory.arms.policies import chained, live_entries, masks, normalised, soft_policies
from theory.batch import Batch
from theory.errors import InputError
from theory.families import Lookup, Walsh, orthonormal
from theory.soft import soft_value_iteration
from theory.tree import TokenTree

OWN = ("two_stage", "two_stage_full", "offline_all", "offline_all_one_hot", "offline_matched")
OWN += ("offline_proper",)
RIDGES = (0.3, 10.0, 1.0)  # in no order: results come back in this one
MASKED = TokenTree(
    *(("a", "b", "."), 3, ("x", "y"), (0.7, 0.3)),
    eos=".",
    forbidden=(("a", "a", "a"), ("b", "a"), ("b", "b", "a"), ("b", "b", "b")),
)


def make(
    tree: TokenTree, reward: np.ndarray, features: np.ndarray, n_pairs: int, **changes: object
) -> Batch:
    """Uniform pairs of different completions with Bradley-Terry labels; the seed is the place."""
    flat = reward.reshape(len(reward), -1)
    rows = []
    for seed, r in enumerate(flat):
        rng = np.random.default_rng([seed, n_pairs])
        start = rng.integers(tree.n_prompts, size=n_pairs) * tree.n_leaves
        two = np.stack([rng.choice(tree.leaves, 2, replace=False) for _ in range(n_pairs)], axis=1)
        a, b = start + two
        won = rng.random(n_pairs) < expit(r[a] - r[b])
        rows.append(np.stack([np.where(won, a, b), np.where(won, b, a)], axis=1))
    known = {
        "tree": tree,
        "beta": 1.0,
        "seeds": tuple(range(len(reward))),
        "reward": reward,
        "features": features,
        "degree": None,
        "log_reference": np.where(tree.leaf_mask, -np.log(len(tree.leaves)), -np.inf)
        + np.zeros(reward.shape),
        "pairs": np.stack(rows),
        "n_held": 0,
        "ridges": RIDGES,
    }
    return Batch(**(known | changes))  # pyright: ignore


def walsh(horizon: int = 4, *, n_pairs: int = 60, replicates: int = 3, degree: int = 2) -> Batch:
    """4 bits, reward and class of the same degree."""
    truths = [Walsh(4, degree, horizon, 2.0, seed).draw() for seed in range(replicates)]
    reward = np.stack([truth.reward for truth in truths])
    features = truths[0].features[None]
    return make(truths[0].tree, reward, features, n_pairs, degree=degree)


def masked(n_pairs: int = 60, replicates: int = 2, beta: float = 0.5) -> Batch:
    """Two prompts, EOS, forbidden tokens, forced states; replicates have features of their own."""
    rng = np.random.default_rng(0)
    shape = (replicates, 2, MASKED.n_leaves)
    reward = np.where(MASKED.leaf_mask, rng.normal(size=shape), 0.0)
    raw = rng.normal(size=(*shape, 4)) * MASKED.leaf_mask[:, None]
    features = np.stack([orthonormal(MASKED, one) for one in raw])
    features[1, :, :, 3] = 0.0  # padded with a column of zeros
    return make(MASKED, reward, features, n_pairs, beta=beta)


def ones(batch: Batch) -> np.ndarray:
    return np.ones(batch.pairs.shape[:2])


def run(name: str, batch: Batch, weights: np.ndarray | None = None) -> Outcome:
    return ARMS[name](batch, ones(batch) if weights is None else weights)


def apart(one: Outcome, other: Outcome, tree: TokenTree) -> np.ndarray:
    """(K,) largest difference of log P at a completion."""
    first, second = (o.log_p[..., tree.leaf_mask] for o in (one, other))
    return np.abs(first - second).max(axis=(1, 2, 3))


# --- an oracle that walks the tree ----------------------------------------------------------------


def walk(tree: TokenTree) -> list[tuple[int, list[tuple[tuple[str, ...], str]]]]:
    """(leaf, its (prefix, token) steps) of every completion."""
    out = []
    for leaf in tree.leaves:
        words = tree.leaf_tokens(int(leaf))
        out.append((int(leaf), [(words[:h], words[h]) for h in range(len(words))]))
    return out


def oracle(name: str, batch: Batch, replicate: int) -> tuple[int, Callable[..., np.ndarray]]:
    """(parameters, theta -> (log P, score) over P L): policies as tables, one state at a time."""
    tree = batch.tree
    phi = batch.features[replicate % len(batch.features)]
    graph, steps = tree.to_networkx(), walk(tree)
    states = [s for s in graph if graph.out_degree(s)]
    tokens = {s: [d["token"] for _, _, d in graph.out_edges(s, data=True)] for s in states}
    entries = [(x, s, a) for x in range(tree.n_prompts) for s in states for a in tokens[s]]
    place = {entry: i for i, entry in enumerate(entries)}
    choice = {s: len(tokens[s]) > 1 for s in states}
    size = {
        h: sum(1 for x, s, a in entries if len(s) == h and choice[s]) for h in range(tree.horizon)
    }

    def below(x: int, prefix: tuple[str, ...]) -> np.ndarray:
        under = [leaf for leaf, _ in steps if tree.leaf_tokens(leaf)[: len(prefix)] == prefix]
        return phi[x, under].mean(axis=0)

    means = np.array([below(x, (*s, a)) for x, s, a in entries])
    slots = tree.n_prompts * tree.n_leaves

    def reward_road(reward: np.ndarray) -> np.ndarray:
        out = np.zeros((2, slots))
        r = reward.reshape(tree.n_prompts, -1)
        for x in range(tree.n_prompts):
            at = x * tree.n_leaves + tree.leaves
            out[0, at] = log_softmax(r[x, tree.leaves] / batch.beta)
            out[1, at] = r[x, tree.leaves]
        return out

    def policy_road(logits: np.ndarray) -> np.ndarray:
        out = np.zeros((2, slots))
        for x in range(tree.n_prompts):
            table = {s: log_softmax([logits[place[x, s, a]] for a in tokens[s]]) for s in states}
            for leaf, path in steps:
                total = sum(table[s][tokens[s].index(a)] for s, a in path)
                out[:, x * tree.n_leaves + leaf] = total, batch.beta * total
        return out

    if name == "two_stage":
        return phi.shape[2], lambda t: reward_road(phi.reshape(slots, -1) @ t)
    if name == "offline_proper":

        def proper(t: np.ndarray) -> np.ndarray:
            log_p = reward_road(phi.reshape(slots, -1) @ t)[0]
            return np.stack([log_p, batch.beta * log_p])

        return phi.shape[2], proper
    if name == "two_stage_full":
        live = np.sqrt(tree.n_prompts * len(tree.leaves))
        return slots, lambda t: reward_road(live * t)
    if name == "offline_matched":
        return phi.shape[2], lambda t: policy_road(means @ t)
    scaled = name == "offline_all"
    unit = np.array([np.sqrt(max(size[len(s)], 1)) if scaled else 1.0 for _, s, _ in entries])
    return len(entries), lambda t: policy_road(unit * t)


def least(name: str, batch: Batch, replicate: int, ridge: float) -> tuple[float, np.ndarray]:
    """(least value, log P there) of the objective, by BFGS with finite differences."""
    count, roads = oracle(name, batch, replicate)
    winner, loser = batch.pairs[replicate].T

    def value(theta: np.ndarray) -> float:
        score = roads(theta)[1]
        loss = np.logaddexp(0.0, score[loser] - score[winner]).sum()
        return float(loss + 0.5 * ridge * theta @ theta)

    found = minimize(value, np.zeros(count), method="BFGS", options={"gtol": 1e-4})
    return float(found.fun), roads(found.x)[0]


@pytest.mark.parametrize("name", OWN)
def test_every_arm_finds_what_enumeration_finds(name: str):
    batch = masked()
    result = run(name, batch)
    k = 2
    mask = np.tile(MASKED.leaf_mask, 2)
    value, log_p = least(name, batch, 1, RIDGES[k])
    np.testing.assert_allclose(result.log_p[k, 1].reshape(-1)[mask], log_p[mask], atol=2e-3)
    winner, loser = batch.pairs[1].T
    score = result.score[k, 1].reshape(-1)
    assert np.logaddexp(0.0, score[loser] - score[winner]).sum() <= value  # the ridge is left out
    assert result.gradient.max() <= 1e-4
    total = np.exp(result.log_p).sum(axis=3)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)
    assert np.isneginf(result.log_p[..., ~MASKED.leaf_mask]).all()
    assert (result.score[..., ~MASKED.leaf_mask] == 0.0).all()
    assert [c.ridge for c in result.candidates] == list(RIDGES)


# --- the theorems ---------------------------------------------------------------------------------


def population(batch: Batch) -> tuple[Batch, np.ndarray]:
    """All ordered pairs of a prompt's completions, weighted by the chance of this outcome."""
    tree, live = batch.tree, batch.tree.leaves
    a, b = (part.reshape(-1) for part in np.meshgrid(live, live, indexing="ij"))
    keep = a != b
    starts = np.arange(tree.n_prompts)[:, None] * tree.n_leaves
    pairs = np.stack([(starts + a[keep]).reshape(-1), (starts + b[keep]).reshape(-1)], axis=1)
    flat = batch.reward.reshape(batch.n_replicates, -1)
    weights = expit(flat[:, pairs[:, 0]] - flat[:, pairs[:, 1]])
    every = np.broadcast_to(pairs, (batch.n_replicates, *pairs.shape))
    return dataclasses.replace(batch, pairs=every, ridges=(0.0, 0.3)), weights


def polished(
    batch: Batch, weights: np.ndarray, start: np.ndarray, ridge: float, scaled: bool
) -> np.ndarray:
    """log P (L,) after full Newton steps in the logits, from log P (L,). One prompt, no masks.

    The objective is written again here: flat logits, a gather a completion, JAX's Hessian.
    """
    vocab, horizon = batch.tree.vocab, batch.tree.horizon
    sizes = [vocab ** (h + 1) for h in range(horizon)]
    unit = np.concatenate([np.full(n, np.sqrt(n) if scaled else 1.0) for n in sizes])
    levels, mass = [], np.exp(start)
    for _ in sizes:
        levels.insert(0, np.log(mass.reshape(-1, vocab)))
        levels[0] -= levels[0].mean(axis=1, keepdims=True)
        mass = mass.reshape(-1, vocab).sum(axis=1)
    first = np.cumsum([0, *sizes[:-1]])
    path = np.arange(sizes[-1])[:, None] // np.array([sizes[-1] // n for n in sizes]) + first
    unit_, path_ = jnp.asarray(unit), jnp.asarray(path)
    pairs, weight = jnp.asarray(batch.pairs[0]), jnp.asarray(weights)

    def log_p(theta: jax.Array) -> jax.Array:
        policy = jax.nn.log_softmax((unit_ * theta).reshape(-1, vocab), axis=1).reshape(-1)
        return jnp.sum(policy[path_], axis=1)

    def value(theta: jax.Array) -> jax.Array:
        score = batch.beta * log_p(theta)
        margin = score[pairs[:, 0]] - score[pairs[:, 1]]
        penalty = 0.5 * ridge * jnp.sum(theta * theta)
        return jnp.sum(weight * jax.nn.softplus(-margin)) + penalty

    theta = jnp.asarray(np.concatenate([level.reshape(-1) for level in levels]) / unit)
    slope, bend = jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
    for _ in range(8):
        theta = theta - jnp.linalg.lstsq(bend(theta), slope(theta), rcond=1e-12)[0]
    return np.asarray(log_p(theta))


def test_theorem_2_2_all_rewards_and_all_policies_agree_without_a_ridge():
    batch, weights = population(walsh(replicates=1))
    full, every = run("two_stage_full", batch, weights), run("offline_all", batch, weights)
    best = polished(batch, weights[0], every.log_p[0, 0, 0], 0.0, True)
    assert np.abs(best - every.log_p[0, 0, 0]).max() < 1e-2  # the arm was there already
    assert np.abs(best - full.log_p[0, 0, 0]).max() <= 1e-8
    truth = log_softmax(batch.reward[0, 0])
    assert np.abs(full.log_p[0, 0, 0] - truth).max() <= 1e-8
    # twin: with a ridge the coordinates differ, and so do the policies
    best = polished(batch, weights[0], every.log_p[1, 0, 0], 0.3, True)
    assert np.abs(best - every.log_p[1, 0, 0]).max() < 1e-2
    assert np.abs(best - full.log_p[1, 0, 0]).max() > 0.03


def test_theorem_2_2_with_masks_prompts_and_beta():
    batch, weights = population(masked(beta=0.5))
    truth = log_softmax(batch.reward[..., MASKED.leaf_mask] / 0.5, axis=2)
    for name, close in (("two_stage_full", 1e-7), ("offline_all", 1e-2)):
        log_p = run(name, batch, weights).log_p[0][..., MASKED.leaf_mask]
        assert np.abs(log_p - truth).max() <= close, name


@pytest.mark.parametrize("batch", [walsh(), walsh(2), masked()], ids=["4", "2", "masked"])
def test_theorem_3_1_proper_offline_learning_equals_two_stage(batch: Batch):
    one, other = run("two_stage", batch), run("offline_proper", batch)
    assert max(one.gradient.max(), other.gradient.max()) < 1e-10
    assert apart(one, other, batch.tree).max() <= 1e-8
    # twin: the same class in other coordinates, hence another ridge
    stretched = batch.features * np.linspace(1.0, 2.0, batch.features.shape[3])
    twin = run("two_stage", dataclasses.replace(batch, features=stretched))
    assert apart(one, twin, batch.tree).min() > 1e-3


def test_one_token_as_id_closes_the_gap():
    """H = 1 and a lookup reward: every class is all rewards, in coordinates that are rotations."""
    truths = [Lookup(4, 1, 2.0, seed).draw() for seed in range(3)]
    reward = np.stack([truth.reward for truth in truths])
    batch = make(truths[0].tree, reward, truths[0].features[None], 60, degree=4)
    star = log_softmax(reward, axis=2)

    def kl(result: Outcome) -> np.ndarray:
        return np.sum(np.exp(result.log_p) * (result.log_p - star), axis=(2, 3))

    first = kl(run("two_stage", batch))
    for name in ("two_stage_full", "offline_all", "offline_matched", "offline_proper"):
        assert np.abs(kl(run(name, batch)) - first).max() <= 1e-7, name
    assert np.abs(kl(run("offline_all_one_hot", batch)) - first).min() > 1e-3  # twin


# --- classes --------------------------------------------------------------------------------------


def test_scaled_logits_are_walsh_coordinates():
    batch = walsh(degree=4)
    one, other = run("offline_all", batch), run("offline_matched", batch)  # full degree: Walsh
    assert other.n_parameters == 2 + 4 + 8 + 16 - 4 == one.n_parameters
    assert apart(one, other, batch.tree).max() < 5e-3  # both stop at a gradient
    assert apart(one, run("offline_all_one_hot", batch), batch.tree).min() > 0.05  # twin


def test_permuted_tokens_permute_the_policy():
    rng = np.random.default_rng(0)
    tree = TokenTree(("a", "b", "c"), 2, ("x",), (1.0,))
    reward = rng.normal(size=(1, 1, 9))
    batch = make(tree, reward, np.zeros((1, 1, 9, 1)), 30)
    swapped = np.arange(9).reshape(3, 3)[[2, 0, 1]][:, [2, 0, 1]].reshape(-1)
    moved = dataclasses.replace(batch, pairs=np.argsort(swapped)[batch.pairs])
    for name in ("offline_all", "offline_all_one_hot", "two_stage_full"):
        log_p = run(name, batch).log_p[..., swapped]
        np.testing.assert_allclose(run(name, moved).log_p, log_p, atol=2e-3)


def numeric_rank(tree: TokenTree) -> int:
    """Rank of d log P / d logits by forward differentiation at random logits."""
    shapes = [(tree.n_prompts, tree.vocab**h, tree.vocab, 1) for h in range(tree.horizon)]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])
    allowed = [jnp.asarray(m) for m in masks(tree)]
    live = jnp.asarray(tree.leaf_mask)

    def log_p(theta: jax.Array) -> jax.Array:
        parts = jnp.split(theta, cuts[:-1])
        levels = [p.reshape(shape) for p, shape in zip(parts, shapes, strict=True)]
        total = chained(normalised(levels, allowed))
        return jnp.where(live[None, :, None], total, 0.0).reshape(-1)

    point = jnp.asarray(np.random.default_rng(0).normal(size=int(cuts[-1])))
    return int(np.linalg.matrix_rank(np.asarray(jax.jacfwd(log_p)(point))))


def test_ranks_of_a_masked_tree():
    batch = masked()
    assert live_entries(MASKED) == (6, 10, 10)  # a state with one token left gives no entry
    assert numeric_rank(MASKED) == run("offline_all", batch).jacobian_rank == 2 * (9 - 1)
    assert run("offline_all", batch).n_parameters == 6 + 10 + 10 - 3
    assert run("two_stage", batch).jacobian_rank == 4
    assert run("offline_matched", batch).jacobian_rank == 4


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_the_traceable_soft_policy_is_soft_value_iteration(horizon: int):
    vocab = round(16 ** (1 / horizon))
    tree = TokenTree(tuple(map(str, range(vocab))), horizon, ("x",), (1.0,))
    r = np.random.default_rng(horizon).normal(size=(1, 16)) * 3
    expected = soft_value_iteration(tree, r, beta=1.0).log_policy
    found = soft_policies(jnp.asarray(r + 4.0)[:, :, None], vocab)
    for level, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(level[0, :, :, 0], other[0], atol=1e-12)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_weights_and_ridges_are_refused():
    batch = walsh()
    with pytest.raises(InputError, match="weights"):
        ARMS["two_stage"](batch, np.ones((3, 59)))
    weights = ones(batch)
    weights[1, 7] = -1.0
    with pytest.raises(InputError, match=r"\(1, 7\)"):
        ARMS["offline_all"](batch, weights)
    pairs = np.array(masked().pairs)
    pairs[0, 3] = 0, 27  # leaves of different prompts
    with pytest.raises(InputError, match=r"\(0, 3\), \[0, 27\]"):
        ARMS["two_stage"](dataclasses.replace(masked(), pairs=pairs), np.ones((2, 60)))
    with pytest.raises(InputError, match="nan"):
        ARMS["two_stage"](dataclasses.replace(batch, ridges=(np.nan,)), ones(batch))
