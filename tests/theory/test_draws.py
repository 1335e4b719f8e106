"""Pairs: what is drawn, how often, and with which label."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from theory.draws import draw_pairs, pairs_of, reference_of, tempered
from theory.errors import InputError
from theory.families import Coverage, walsh_reward
from theory.families.bits import bit_tree
from theory.sweep import make_batch, parse_grid
from theory.sweep.data import full_class
from theory.tree import TokenTree

COUNT = 200_000
EARLY = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.25, 0.75), eos=".")


def counts_of(pairs: np.ndarray, size: int) -> np.ndarray:
    table = np.zeros((size, size))
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    return table


def assert_chances(table: np.ndarray, chance: np.ndarray) -> None:
    """Multinomial counts within 5 standard errors, nothing where nothing can be."""
    assert table.sum() == COUNT
    assert chance.sum() == pytest.approx(1.0)
    assert not table[chance == 0].any()
    error = np.sqrt(COUNT * chance * (1 - chance))
    assert (np.abs(table - COUNT * chance) <= 5 * error + 1e-9).all()


def brute(tree: TokenTree, reward: np.ndarray, draws: np.ndarray, noise: float) -> np.ndarray:
    """Chance of every (winner, loser), from the definition: equal draws are drawn again."""
    size = tree.n_prompts * tree.n_leaves
    chance = np.zeros((size, size))
    for x, weight in enumerate(tree.weights):
        q = draws[x]
        again = (q * q).sum()
        for i, j in product(tree.leaves, tree.leaves):
            if i != j:
                win = 1 / (1 + np.exp(reward[x, j] - reward[x, i]))
                win = win * (1 - noise) + (1 - win) * noise
                both = 2 * q[i] * q[j] / (1 - again)
                chance[x * tree.n_leaves + i, x * tree.n_leaves + j] = weight * both * win
    return chance


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_uniform_pairs_have_their_chances(noise: float):
    reward = walsh_reward(3, 2, 2.0, 0)
    tree = bit_tree(3, 3)
    pairs = pairs_of(tree, reward[None], COUNT, 0, noise=noise)
    assert_chances(counts_of(pairs, 8), brute(tree, reward[None], np.full((1, 8), 1 / 8), noise))


def test_drawn_pairs_have_their_chances_on_prompts_that_end_early():
    generator = np.random.default_rng(1)
    reward = np.where(EARLY.leaf_mask, generator.normal(size=(2, 9)), 0.0)
    draws = np.where(EARLY.leaf_mask, generator.random((2, 9)), 0.0)
    draws /= draws.sum(axis=1, keepdims=True)
    draws[1] = np.where(np.arange(9) == EARLY.leaves[0], 0.97, draws[1] * 0.0)
    draws[1, EARLY.leaves[1:3]] = 0.02, 0.01
    pairs = pairs_of(EARLY, reward, COUNT, 3, draws=draws, noise=0.1)
    assert_chances(counts_of(pairs, 18), brute(EARLY, reward, draws, 0.1))


def test_uniform_draws_given_as_a_distribution_have_the_same_chances():
    reward = walsh_reward(2, 2, 1.0, 4)[None]
    even = np.full((1, 4), 0.25)
    pairs = pairs_of(bit_tree(2, 2), reward, COUNT, 5, draws=even)
    assert_chances(counts_of(pairs, 4), brute(bit_tree(2, 2), reward, even, 0.0))


def test_draws_that_are_always_the_same_are_refused():
    certain = np.eye(4)[:1]
    with pytest.raises(InputError, match="prompt 'x': both completions of a pair are the same"):
        pairs_of(bit_tree(2, 2), np.zeros((1, 4)), 10, 0, draws=certain)


def test_one_seed_gives_one_set_of_bytes_and_noise_flips_only_labels():
    reward = walsh_reward(4, 2, 2.0, 7)
    tree = bit_tree(4, 4)
    clean = pairs_of(tree, reward[None], 500, 7)
    assert (clean == draw_pairs(reward, 500, 7)).all()
    noisy = pairs_of(tree, reward[None], 500, 7, noise=0.3)
    flipped = (clean != noisy).any(axis=1)
    assert (noisy[flipped] == clean[flipped][:, ::-1]).all()
    assert 0.2 < flipped.mean() < 0.4


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tempering_is_token_by_token(temperature: float):
    tree = EARLY
    reward = np.where(tree.leaf_mask, np.random.default_rng(2).normal(size=(3, 2, 9)), 0.0)
    log_p = reference_of(tree, reward, 1.5, 1.0)
    found = tempered(tree, log_p, temperature)
    for row, log_row in zip(np.exp(found), np.exp(log_p), strict=True):
        for chances, p in zip(row, log_row, strict=True):
            for first, second in product(range(3), range(3)):
                roots = p.reshape(3, 3).sum(axis=1) ** (1 / temperature)
                below = p.reshape(3, 3)[first] ** (1 / temperature)
                wanted = roots[first] / roots.sum() * below[second] / below.sum()
                assert chances[3 * first + second] == pytest.approx(wanted, abs=1e-14)
    whole = log_p / temperature
    whole = np.exp(whole - whole.max(axis=-1, keepdims=True))
    whole /= whole.sum(axis=-1, keepdims=True)
    same = np.allclose(np.exp(found), whole, atol=1e-3)
    assert same == (temperature == 1.0)


def test_the_reference_is_the_share_of_the_reward():
    tree = EARLY
    reward = np.where(tree.leaf_mask, np.random.default_rng(5).normal(size=(1, 2, 9)), 0.0)
    log_p = reference_of(tree, reward, 0.5, 2.0)
    assert np.isneginf(log_p[..., ~tree.leaf_mask]).all()
    live = log_p[..., tree.leaves]
    np.testing.assert_allclose(np.exp(live).sum(axis=-1), 1.0)
    slope = live - 0.25 * reward[..., tree.leaves]
    np.testing.assert_allclose(slope, slope[..., :1] + 0 * slope, atol=1e-13)
    even = reference_of(tree, reward, 0.0, 1.0)[..., tree.leaves]
    np.testing.assert_allclose(even, -np.log(len(tree.leaves)))


# --- a batch from a cell --------------------------------------------------------------------------


def batch_of(**block: object):
    body = {"name": "b", "arms": ["two_stage"], "n_pairs": 40} | block
    grid = {"name": "g", "seeds": [3, 0], "ridges": [1.0], "block": [body]}
    return make_batch(parse_grid(grid).cells[0])


def test_a_batch_holds_each_seed_its_own_reward_and_pairs():
    batch = batch_of(bits=4, horizon=2, degree=3, noise=0.1, width=7, beta=0.5)
    assert (batch.seeds, batch.n_replicates, batch.n_pairs, batch.n_held) == ((3, 0), 2, 40, 8)
    assert (batch.width, batch.beta, batch.degree) == (7, 0.5, 3)
    assert (batch.reward[0, 0] == walsh_reward(4, 3, 2.0, 3)).all()
    assert (batch.reward[1, 0] == walsh_reward(4, 3, 2.0, 0)).all()
    assert batch.train_weights.sum(axis=1).tolist() == [32.0, 32.0]
    again = batch_of(bits=4, horizon=2, degree=3, noise=0.1, width=7, beta=0.5)
    assert (again.pairs == batch.pairs).all()


def test_features_are_shared_where_all_seeds_have_the_same():
    assert batch_of(bits=4, horizon=4).features.shape == (1, 1, 16, 10)
    own = batch_of(family="coverage", words=3, salient=2, prompts=2, horizon=2)
    assert own.features.shape[0] == 2
    for row, seed in zip(own.features, own.seeds, strict=True):
        truth = Coverage(words=3, salient=2, prompts=2, horizon=2, seed=seed).draw()
        assert (row[..., : truth.features.shape[2]] == truth.features).all()
        assert not row[..., truth.features.shape[2] :].any()


@pytest.mark.parametrize(("reward_class", "dimension"), [("degree-1", 4), ("full", 15)])
def test_the_reward_class_of_bits_is_all_polynomials_of_its_degree(reward_class, dimension):
    batch = batch_of(bits=4, horizon=4, reward_class=reward_class)
    assert batch.features.shape == (1, 1, 16, dimension)
    assert batch.degree == {"degree-1": 1, "full": 4}[reward_class]


def test_the_full_class_is_orthonormal_and_spans_every_reward():
    basis = full_class(EARLY)
    live = basis[:, EARLY.leaves].reshape(-1, basis.shape[2])
    count = len(live)
    assert basis.shape[2] == count - 2
    np.testing.assert_allclose(live.T @ live / count, np.eye(count - 2), atol=1e-12)
    np.testing.assert_allclose(basis[:, EARLY.leaves].mean(axis=1), 0.0, atol=1e-12)
    assert not basis[:, ~EARLY.leaf_mask].any()


def test_narrow_pairs_come_from_the_tempered_reference():
    wide = batch_of(bits=4, horizon=4, coverage="on_policy", reference_share=1.0, n_pairs=4000)
    narrow = batch_of(bits=4, horizon=4, coverage="narrow", reference_share=1.0, n_pairs=4000)
    top = np.argsort(-wide.reward[0, 0])[:3]
    share = [np.isin(batch.pairs[0], top).mean() for batch in (wide, narrow)]
    assert share[1] > share[0] + 0.1
