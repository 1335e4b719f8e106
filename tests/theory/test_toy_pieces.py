"""The pieces of the toy runs against the exact operators and against plain loops."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory.errors import InputError
from theory.families import Rouge
from theory.operators import best_of_n, compare, temper
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tasks import WalshTask
from theory.toy import Toy, ToyConfig, make_world, policy_basis, run_replicates, walsh_worlds
from theory.toy.pieces import FORBIDDEN
from theory.twins.fig6 import rouge_world

CONFIG = ToyConfig(n_pairs=40, steps=3, replicates=3)
SPEC = WalshTask(prompt_bits=1, completion_bits=2)


@pytest.fixture(scope="module")
def ended():
    """A tree with EOS: completions of 1 to 2 words out of two."""
    return rouge_world(Rouge(words=2, reference=2, prompts=2, horizon=2))


def test_log_probs_on_a_tree_with_eos_are_those_of_the_exact_operators(ended):
    toy, tree = Toy(ended, CONFIG), ended.tree
    log_p = np.where(tree.leaf_mask, ended.log_reference, -np.inf)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0)
    for tau in (1.0, 0.3, 0.01):
        exact = leaf_log_probs(tree, temper(tree, policy_from_leaves(tree, log_p), tau))
        np.testing.assert_allclose(
            np.exp(toy.log_probs(toy.sft, tau)), np.exp(np.asarray(exact)), atol=1e-12
        )
    assert (ended.log_reference[:, ~tree.leaf_mask] == FORBIDDEN).all()


def test_what_is_no_completion_is_never_trained(ended):
    toy = Toy(ended, CONFIG)
    dpo = toy.dpo(toy.preferences(jax.random.key(0)))
    np.testing.assert_array_equal(dpo <= FORBIDDEN, toy.sft <= FORBIDDEN)
    assert np.isfinite(np.asarray(dpo)).all()
    assert float(jnp.exp(toy.log_probs(dpo))[:, ~ended.tree.leaf_mask].sum()) == 0.0


@pytest.mark.parametrize("n", [1, 2, 25])
def test_best_of_n_and_its_win_rate(ended, n):
    toy, tree = Toy(ended, CONFIG), ended.tree
    log_p = np.where(tree.leaf_mask, ended.log_reference, -np.inf)
    score = np.round(np.random.default_rng(n).normal(size=log_p.shape), 0)  # with ties
    exact = best_of_n(tree, log_p, score, n)
    ours = toy.best_of(jnp.asarray(ended.log_reference), jnp.asarray(score), n)
    np.testing.assert_allclose(ours, np.exp(exact), atol=1e-12)
    expected = compare(tree, exact, log_p, ended.reward).rate
    assert float(toy.win(ours)) == pytest.approx(expected, abs=1e-12)


def test_best_and_worst_of_the_draws():
    world = walsh_worlds(SPEC, 1)[0]
    toy, prompt = Toy(world, CONFIG), jnp.array([0, 1, 1, 0, 1] * 8)
    log_p, key = toy.log_reference, jax.random.key(3)
    made = toy.best_and_worst(key, prompt, log_p, toy.reward, 3)
    drawn = np.asarray(jax.random.categorical(key, log_p[prompt], shape=(3, 40)))
    assert 0 < float(made.weight.sum()) < 40
    for i, x in enumerate(np.asarray(prompt)):
        values = world.reward[x, drawn[:, i]]
        assert world.reward[x, int(made.winner[i])] == values.max()
        assert float(made.weight[i]) == (len(set(drawn[:, i])) > 1)
        if made.weight[i]:
            assert world.reward[x, int(made.loser[i])] == values.min()


def test_validation_on_other_pairs_is_a_double_sum():
    world = walsh_worlds(SPEC, 1)[0]
    toy, draw = Toy(world, CONFIG), np.random.default_rng(0)
    score, logits = draw.normal(size=(2, 4)), draw.normal(size=(2, 4))
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = accuracy = 0.0
    for x, i, j in np.ndindex(2, 4, 4):
        chance = 0.5 * q[x, i] * q[x, j] / (1 + np.exp(world.reward[x, j] - world.reward[x, i]))
        loss += 2 * chance * np.log1p(np.exp(score[x, j] - score[x, i]))
        accuracy += 2 * chance * (0.5 if i == j else score[x, i] > score[x, j])
    ours = toy.validate(jnp.asarray(score), jnp.log(q))
    assert [float(v) for v in ours] == pytest.approx([loss, accuracy], abs=1e-12)


def test_a_table_of_each_prompt_is_the_reward_model_of_one_hot_features():
    world = walsh_worlds(SPEC, 1, features=np.eye(4))[0]
    toy = Toy(world, CONFIG)
    pairs = toy.preferences(jax.random.key(1))
    joint = jnp.asarray(np.eye(8).reshape(2, 4, 8))
    np.testing.assert_allclose(
        toy.global_reward(pairs), toy.global_reward(pairs, joint), atol=1e-10
    )
    gone = replace(pairs, weight=jnp.zeros(40))
    np.testing.assert_array_equal(toy.global_reward(gone), 0.0)


def test_pairs_of_a_completion_with_itself_do_not_count():
    toy = Toy(walsh_worlds(SPEC, 1)[0], CONFIG)
    drawn = toy.preferences(jax.random.key(0))
    kept = toy.without_equals(drawn)
    np.testing.assert_array_equal(kept.weight == 0, drawn.winner == drawn.loser)
    assert 0 < float(kept.weight.sum()) < 40


def test_a_basis_of_full_degree_reaches_every_policy_and_no_term_is_idle():
    basis = policy_basis(1, 2, 4)
    contrast = (basis[:, :, 0] - basis[:, :, 1]).reshape(6, -1)
    assert contrast.shape[1] == np.linalg.matrix_rank(contrast) == 6
    first = policy_basis(1, 2, 1)
    assert first.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(first[0], first[1])  # degree 1 knows no prompt


def test_training_in_a_basis_stays_in_its_span():
    world, basis = walsh_worlds(SPEC, 1)[0], policy_basis(1, 2, 2)
    toy = Toy(world, CONFIG, basis)
    moved = np.asarray(toy.dpo(toy.preferences(jax.random.key(0))) - toy.sft).reshape(-1)
    table = basis.reshape(moved.size, -1)
    left = moved - table @ np.linalg.lstsq(table, moved)[0]
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(left, 0.0, atol=1e-12)


def test_tokens_of_more_bits_keep_the_outcomes():
    short, long = walsh_worlds(SPEC, 2, token_bits=2)[1], walsh_worlds(SPEC, 2)[1]
    assert (short.tree.vocab, short.tree.horizon) == (4, 1)
    np.testing.assert_array_equal(short.reward, long.reward)
    np.testing.assert_allclose(
        Toy(short, CONFIG).log_probs(jnp.asarray(short.sft)),
        Toy(long, CONFIG).log_probs(jnp.asarray(long.sft)),
        atol=1e-12,
    )


def test_every_replicate_has_its_own_world_and_key():
    worlds = walsh_worlds(SPEC, 3)

    def one(world, key):
        return world.reward, jax.random.uniform(key)

    reward, drawn = run_replicates(one, worlds, CONFIG)
    np.testing.assert_array_equal(reward, np.stack([world.reward for world in worlds]))
    assert len(set(drawn.tolist())) == 3
    fixed, same = run_replicates(one, worlds[2], CONFIG)
    np.testing.assert_array_equal(fixed[0], worlds[2].reward)
    np.testing.assert_array_equal(same, drawn)


def test_bad_worlds_are_refused():
    with pytest.raises(InputError, match="tokens of 4 bits"):
        walsh_worlds(SPEC, 1, token_bits=4)
    with pytest.raises(InputError, match="2 worlds for 3 replicates"):
        run_replicates(lambda world, key: key, walsh_worlds(SPEC, 2), CONFIG)
    world = walsh_worlds(SPEC, 1)[0]
    empty = world.log_reference.copy()
    empty[0, 0] = -np.inf
    with pytest.raises(InputError, match="reference > 0"):
        make_world(world.tree, world.reward, empty, world.features)
