"""The packed forward against the plain path: one row a completion, padded, full logits, no cache.

The plain path runs a copy of the model with transformers' own eager attention, so that no line of
`llm.models.attention` is in it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ModelConfig
from llm.errors import InputError
from llm.models.build import RewardModel, backbone, load_pretrained, new_policy
from llm.models.forward import (
    check_packing,
    completion_logps,
    completion_rewards,
    token_logps,
    token_measures,
)
from llm.models.packing import BLOCK, collate
from llm.training.losses import PairLogps, bradley_terry_loss, dpo_loss
from llm.training.objectives import PolicyObjective, RewardObjective, SupervisedObjective
from llm.training.train import score
from tests.llm.small_training import moved

PAD, EOS, VOCABULARY = 1, 0, 97
LONG = ModelConfig(hidden_size=64, layers=2, heads=2, max_positions=1024)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def policy():
    return moved(new_policy(LONG, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=3), 0.1)


@pytest.fixture(scope="module")
def rewards(policy):
    return RewardModel(copy.deepcopy(policy), seed=1).eval()


def _eager(model):
    """A copy whose attention is transformers' plainest."""
    twin = copy.deepcopy(model)
    getattr(twin, "trunk", twin).set_attn_implementation("eager")
    return twin


def _ids(generator, low, high):
    length = int(torch.randint(low, high + 1, (1,), generator=generator))
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


def _ragged(prompts, k, seed, longest=20, completion=8):
    """Prompts of 1 to `longest` tokens, k completions each of 2 to `completion` + 1, EOS last."""
    generator = torch.Generator().manual_seed(seed)
    rows = [_ids(generator, 1, longest) for _ in range(prompts)]
    return rows, [[[*_ids(generator, 1, completion), EOS] for _ in range(k)] for _ in rows]


# --- the plain path -------------------------------------------------------------------------------


def _padded(rows, side):
    """(ids, attention mask, positions) of rows of ids, each (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def _run(model, rows, side):
    """The model's outputs over padded rows, and the rows' first places in them."""
    ids, mask, positions = _padded(rows, side)
    outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    starts = [0 if side == "right" else ids.shape[1] - len(row) for row in rows]
    return outputs, starts


def _asked(prompts, completions):
    return [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]


def _plain_logps(model, prompts, completions, side="right", temperature=1.0):
    """(B, K) log-probs by full logits of one row a completion."""
    asked = _asked(prompts, completions)
    outputs, starts = _run(model, [[*p, *c] for p, c in asked], side)
    logps = torch.log_softmax(outputs.logits.float() / temperature, -1)
    values = []
    for row, start, (prompt, completion) in zip(logps, starts, asked, strict=True):
        before = start + len(prompt) - 1 + torch.arange(len(completion))
        values.append(row[before, torch.tensor(completion)].sum())
    return torch.stack(values).view(len(prompts), -1)


def _plain_rewards(model, prompts, completions, side="right"):
    """(B, K) rewards at the last token of one row a completion."""
    rows = [[*p, *c] for p, c in _asked(prompts, completions)]
    outputs, starts = _run(model.trunk, rows, side)
    last = torch.tensor([s + len(r) - 1 for s, r in zip(starts, rows, strict=True)])
    hidden = outputs.last_hidden_state[torch.arange(len(rows)), last]
    return model.head(hidden)[:, 0].view(len(prompts), -1)


def _gradient(loss, model):
    """All of it, in one vector; a weight without any counts as zero."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def _assert_same_gradient(ours, plain):
    assert plain.norm() > 0
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("prompts", "k", "longest", "completion"),
    [(6, 1, 20, 8), (6, 2, 20, 8), (3, 2, 512, 53), (1, 25, 512, 20), (4, 5, 200, 53)],
)
def test_logps_and_gradients_are_those_of_the_plain_path(
    policy, side, prompts, k, longest, completion
):
    batch_of = _ragged(prompts, k, k, longest, completion)
    weights = torch.randn(prompts, k, generator=torch.Generator().manual_seed(1))
    twin = _eager(policy)
    ours = completion_logps(policy, collate(*batch_of, pad=PAD))
    plain = _plain_logps(twin, *batch_of, side)
    torch.testing.assert_close(ours, plain, **CLOSE)
    _assert_same_gradient(
        _gradient((ours * weights).sum(), policy), _gradient((plain * weights).sum(), twin)
    )


@given(
    prompts=st.integers(1, 5),
    k=st.integers(1, 25),
    seed=st.integers(0, 10**6),
    longest=st.sampled_from([1, 20, 140]),
    side=st.sampled_from(["right", "left"]),
    temperature=st.sampled_from([1.0, 0.1]),
)
@settings(max_examples=15)
def test_any_batch_has_the_plain_logps(policy, prompts, k, seed, longest, side, temperature):
    batch_of = _ragged(prompts, k, seed, longest)
    with torch.no_grad():
        ours = completion_logps(policy, collate(*batch_of, pad=PAD), temperature=temperature)
        plain = _plain_logps(_eager(policy), *batch_of, side, temperature)
    torch.testing.assert_close(ours, plain, **CLOSE)


def test_a_prompt_of_512_tokens_runs_over_several_blocks(policy):
    generator = torch.Generator().manual_seed(8)
    prompts = [torch.randint(2, VOCABULARY, (512,), generator=generator).tolist() for _ in range(2)]
    completions = [[[*_ids(generator, 200, 300), EOS], [5, EOS]] for _ in prompts]
    batch = collate(prompts, completions, pad=PAD)
    assert len(batch.blocks) > 10 > int(batch.blocks.max())  # 2 prompts: half is never looked at
    assert batch.ids.shape[1] % BLOCK == 0
    with torch.no_grad():
        ours = completion_logps(policy, batch)
        plain = _plain_logps(_eager(policy), prompts, completions)
    torch.testing.assert_close(ours, plain, **CLOSE)


def test_the_shortest_there_is(policy):
    """A prompt of one token and a completion of EOS alone."""
    prompts, completions = [[7], [7, 8]], [[[EOS], [9, EOS]], [[EOS], [9, EOS]]]
    with torch.no_grad():
        ours = completion_logps(policy, collate(prompts, completions, pad=PAD))
        plain = _plain_logps(_eager(policy), prompts, completions, "left")
        one = completion_logps(policy, collate([[7]], [[[EOS]]], pad=PAD))
    torch.testing.assert_close(ours, plain, **CLOSE)
    torch.testing.assert_close(one[0, 0], plain[0, 0], **CLOSE)


def test_logps_do_not_depend_on_who_else_is_in_the_row(policy):
    """Nor on their order: the same completions, alone and behind other prompts."""
    prompts, completions = _ragged(5, 3, 4, 90)
    with torch.no_grad():
        together = completion_logps(policy, collate(prompts, completions, pad=PAD))
        turned = completion_logps(
            policy, collate(prompts[::-1], [g[::-1] for g in completions[::-1]], pad=PAD)
        )
        alone = [
            completion_logps(policy, collate([p], [[c]], pad=PAD))
            for p, c in _asked(prompts, completions)
        ]
    torch.testing.assert_close(turned.flip(0, 1), together, **CLOSE)
    torch.testing.assert_close(torch.cat(alone).view_as(together), together, **CLOSE)


@pytest.mark.parametrize("field", ["segment", "positions"])
def test_a_row_laid_out_wrongly_has_other_logps(policy, field):
    """The broken twins: completions that see each other; positions that go on through the row."""
    prompts, completions = _ragged(3, 2, 6)
    batch = collate(prompts, completions, pad=PAD)
    wrong = {
        "segment": batch.prompt,
        "positions": torch.arange(batch.ids.shape[1])[None],
    }
    with torch.no_grad():
        plain = _plain_logps(_eager(policy), prompts, completions)
        ours = completion_logps(policy, replace(batch, **{field: wrong[field]}))
    off = (ours - plain).abs() > 1e-3
    assert not off[0, 0]  # the first prompt's first completion stands as it would alone
    assert off[:, 1].all()


def test_fill_and_padding_carry_nothing(policy):
    prompts, completions = _ragged(3, 2, seed=5)
    values = token_logps(policy, collate(prompts, completions, pad=PAD))
    other = token_logps(policy, collate(prompts, completions, pad=PAD + 1))
    torch.testing.assert_close(values, other, **CLOSE)
    lengths = [len(c) for group in completions for c in group]
    for row, length in zip(values, lengths, strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] < 0).all()


def test_the_arg_max_is_that_of_the_full_logits(policy):
    prompts, completions = _ragged(4, 2, seed=9)
    twin = _eager(policy)
    with torch.no_grad():
        for prompt, group in zip(prompts, completions, strict=True):  # its own best next token
            best = int(_run(twin, [prompt], "right")[0].logits[0, -1].argmax())
            group[1] = [best, *group[1]]
        batch = collate(prompts, completions, pad=PAD)
        top = token_measures(policy, batch)[1]
        for row, (prompt, completion) in zip(top, _asked(prompts, completions), strict=True):
            logits = _run(twin, [[*prompt, *completion]], "right")[0].logits[0, len(prompt) - 1 :]
            expected = logits[:-1].argmax(-1) == torch.tensor(completion)
            assert row[: len(completion)].tolist() == expected.tolist()
            assert not row[len(completion) :].any()
    assert top[batch.member[:, 1], 0].all()


def test_a_token_that_is_not_in_the_vocabulary_is_refused(policy):
    for prompt, completion in (([VOCABULARY], [2, EOS]), ([2], [VOCABULARY, EOS]), ([2], [-1])):
        with pytest.raises(IndexError):
            completion_logps(policy, collate([prompt], [[completion]], pad=PAD))


# --- losses ---------------------------------------------------------------------------------------


def _pairs_with_ties(seed, longest=150):
    """Five pairs, the third of two equal completions, the fourth of the first one's prompt."""
    prompts, completions = _ragged(5, 2, seed, longest, 30)
    prompts[3] = prompts[0]
    completions[2] = [completions[2][0]] * 2
    return prompts, completions


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("with_reference", [True, False])
def test_dpo_is_that_of_the_plain_path(policy, side, with_reference):
    batch_of, twin, beta = _pairs_with_ties(2), _eager(policy), 0.3
    reference = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    objective = PolicyObjective(policy, beta=beta, with_reference=with_reference)
    losses, statistics = objective.losses(collate(*batch_of, pad=PAD), reference)
    plain = PairLogps(*_plain_logps(twin, *batch_of, side).unbind(1))
    anchor = PairLogps(*(reference if with_reference else torch.zeros(5, 2)).unbind(1))
    expected = dpo_loss(plain, anchor, beta=beta)
    torch.testing.assert_close(losses, expected, **CLOSE)
    margin = statistics["chosen_logp"] - statistics["rejected_logp"]
    assert margin[2] == 0.0
    assert (margin[[0, 1, 3, 4]] != 0).all()
    _assert_same_gradient(_gradient(losses.mean(), policy), _gradient(expected.mean(), twin))


@pytest.mark.parametrize("side", ["right", "left"])
def test_bradley_terry_is_that_of_the_plain_path(rewards, side):
    batch_of, twin = _pairs_with_ties(3), _eager(rewards)
    losses, statistics = RewardObjective(rewards).losses(collate(*batch_of, pad=PAD), None)
    plain = _plain_rewards(twin, *batch_of, side)
    expected = bradley_terry_loss(*plain.unbind(1))
    torch.testing.assert_close(losses, expected, **CLOSE)
    assert statistics["margin"][2] == 0.0
    assert losses[2].item() == pytest.approx(math.log(2), abs=1e-7)
    _assert_same_gradient(_gradient(losses.mean(), rewards), _gradient(expected.mean(), twin))


def test_a_pair_of_equals_moves_nothing(policy):
    prompts, completions = _ragged(1, 1, 4)
    batch = collate(prompts, [[completions[0][0]] * 2], pad=PAD)
    assert len(batch.places) == 1
    objective = PolicyObjective(policy, beta=0.3, with_reference=False)
    gradient = _gradient(objective.losses(batch, None)[0].mean(), policy)
    assert (gradient == 0).all()


def test_sft_is_the_plain_mean_over_the_completions_tokens(policy):
    prompts, completions = _ragged(4, 1, 6, 40)
    twin = _eager(policy)
    losses, statistics = SupervisedObjective(policy).losses(
        collate(prompts, completions, pad=PAD), None
    )
    lengths = torch.tensor([len(group[0]) for group in completions])
    expected = -_plain_logps(twin, prompts, completions)[:, 0] / lengths
    torch.testing.assert_close(losses, expected, **CLOSE)
    assert statistics["tokens"].tolist() == lengths.tolist()
    _assert_same_gradient(_gradient(losses.mean(), policy), _gradient(expected.mean(), twin))


@pytest.mark.parametrize("tokens", [1, 400, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_dpo_is_ln_2_at_step_0_whatever_passes_the_reference_had(policy, tokens, temperature):
    """The broken twin is a reference of another temperature."""
    prompts, completions = _ragged(8, 2, 12, 200, 53)

    def cached(heat):
        measure = partial(completion_logps, policy, temperature=heat)
        rows = list(zip(prompts, completions, strict=True))
        return torch.tensor(score(measure, rows, pad=PAD, tokens=tokens), dtype=torch.float32)

    objective = PolicyObjective(policy, beta=0.05, temperature=temperature)
    batch = collate(prompts, completions, pad=PAD)
    with torch.no_grad():
        losses, statistics = objective.losses(batch, cached(temperature))
        other, _ = objective.losses(batch, cached(0.5))
    assert losses.mean().item() == pytest.approx(math.log(2), abs=1e-5)
    assert statistics["kl_from_reference"].abs().max() < 1e-3
    assert (other - math.log(2)).abs().max() > 0.01


def test_gradient_checkpointing_changes_no_gradient(policy, rewards):
    """Every layer runs again in the backward pass, over the same mask."""
    batch_of = _pairs_with_ties(5)
    batch = collate(*batch_of, pad=PAD)
    for make, model in (
        (partial(PolicyObjective, beta=0.3, with_reference=False), policy),
        (RewardObjective, rewards),
    ):
        twin = copy.deepcopy(model).train()
        getattr(twin, "trunk", twin).gradient_checkpointing_enable()
        trunk, runs = getattr(twin, "trunk", None) or backbone(twin), []
        trunk.layers[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        again = make(twin).losses(batch, None)[0].mean()
        gradient = _gradient(again, twin)
        assert len(runs) == 2  # forward, and once more in the backward pass
        plain = make(model).losses(batch, None)[0].mean()
        assert again.item() == pytest.approx(plain.item(), abs=1e-6)
        _assert_same_gradient(gradient, _gradient(plain, model))


# --- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("prompts", "k", "longest"), [(5, 2, 20), (3, 4, 512), (1, 25, 100)])
def test_rewards_are_read_at_the_last_token(rewards, side, prompts, k, longest):
    batch_of = _ragged(prompts, k, 7, longest, 30)
    twin = _eager(rewards)
    weights = torch.randn(prompts, k, generator=torch.Generator().manual_seed(1))
    ours = completion_rewards(rewards, collate(*batch_of, pad=PAD))
    plain = _plain_rewards(twin, *batch_of, side)
    torch.testing.assert_close(ours, plain, **CLOSE)
    _assert_same_gradient(
        _gradient((ours * weights).sum(), rewards), _gradient((plain * weights).sum(), twin)
    )


def test_equal_completions_have_equal_rewards(rewards):
    batch = collate(
        [[5, 6], [5, 6], [5]], [[[3, EOS]] * 2, [[3, EOS], [4, EOS]], [[3, EOS]] * 2], pad=PAD
    )
    with torch.no_grad():
        found = completion_rewards(rewards, batch)
    assert found[0, 0] == found[0, 1] == found[1, 0]
    assert len({*found[1].tolist(), *found[2].tolist()}) == 3


def test_reward_head_follows_its_seed(policy):
    first, again, other = (RewardModel(policy, seed=s).head.weight for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    wide = ModelConfig(hidden_size=512, layers=1, heads=1, max_positions=8)
    big = new_policy(wide, vocabulary=5, eos=EOS, pad=PAD, seed=0)
    assert RewardModel(big, seed=0).head.weight.std().item() == pytest.approx(513**-0.5, rel=0.15)


def test_the_reward_head_is_drawn_where_its_generator_is(policy, monkeypatch):
    """Made on another device (the GPU benchmark does so), torch refuses a CPU's generator."""
    drawn, plain = set(), torch.Tensor.normal_

    def noted(self, *arguments, generator=None, **settings):
        if generator is not None:
            drawn.add((self.device.type, generator.device.type))
        return plain(self, *arguments, generator=generator, **settings)

    monkeypatch.setattr(torch.Tensor, "normal_", noted)
    with torch.device("meta"):
        RewardModel(policy, seed=0)
    assert drawn == {("cpu", "cpu")}


# --- other families -------------------------------------------------------------------------------


def _small(name):
    """A causal LM of another family, random weights."""
    import transformers as tf

    more = {"vocab_size": VOCABULARY, "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    attention = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    shapes = {
        "llama": lambda: tf.LlamaConfig(
            intermediate_size=64, num_key_value_heads=2, **attention, **more
        ),
        "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **more),
        "phi": lambda: tf.PhiConfig(intermediate_size=64, **attention, **more),
        "short window": lambda: tf.MistralConfig(
            intermediate_size=64, num_key_value_heads=2, sliding_window=6, **attention, **more
        ),
        "long window": lambda: tf.MistralConfig(
            intermediate_size=64, num_key_value_heads=2, sliding_window=99, **attention, **more
        ),
        "cap": lambda: tf.Gemma2Config(
            intermediate_size=64, head_dim=8, num_key_value_heads=2, **attention, **more
        ),
        "opt": lambda: tf.OPTConfig(
            ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, layerdrop=0.5, **attention, **more
        ),
        "biogpt": lambda: tf.BioGptConfig(
            intermediate_size=64, activation_dropout=0.3, layerdrop=0.5, **attention, **more
        ),
        "no attention": lambda: tf.MambaConfig(hidden_size=32, num_hidden_layers=2, **more),
        "another interface": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **more),
    }
    torch.manual_seed(0)
    return moved(tf.AutoModelForCausalLM.from_config(shapes[name]()), 0.1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "long window"])
def test_a_model_that_packs_is_taken(name, tmp_path):
    _small(name).save_pretrained(tmp_path)
    check_packing("--model here", load_pretrained(ModelConfig(pretrained=str(tmp_path))))


@pytest.mark.parametrize("name", ["short window", "cap", "no attention", "another interface"])
def test_a_model_whose_packed_row_would_be_wrong_is_refused(name):
    with pytest.raises(InputError, match=r"not supported|cannot run several completions"):
        check_packing("--model here", _small(name))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_other_causal_models_are_read_and_give_their_own_logps(name, tmp_path):
    """Grouped heads and rotary positions; absolute positions and one matrix at both ends."""
    _small(name).save_pretrained(tmp_path)
    model = load_pretrained(ModelConfig(pretrained=str(tmp_path))).eval()
    twin, batch_of = _eager(model), _ragged(5, 2, 2)
    ours = completion_logps(model, collate(*batch_of, pad=PAD))
    plain = _plain_logps(twin, *batch_of, "left")
    torch.testing.assert_close(ours, plain, **CLOSE)
    _assert_same_gradient(_gradient(ours.sum(), model), _gradient(plain.sum(), twin))


@pytest.mark.parametrize("name", ["opt", "biogpt"])
def test_dropout_is_off_whatever_its_name_is(name, tmp_path):
    """While it trains, a model that was just loaded gives the log-probs that were scored."""
    _small(name).save_pretrained(tmp_path)
    model, batch = load_pretrained(ModelConfig(pretrained=str(tmp_path))), _ragged(3, 2, 2)
    check_packing("--model here", model)
    with torch.no_grad():
        scored = completion_logps(model.eval(), collate(*batch, pad=PAD))
        for _ in range(5):
            assert torch.equal(completion_logps(model.train(), collate(*batch, pad=PAD)), scored)


@pytest.mark.parametrize("name", ["opt", "biogpt"])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_trains_at_random_is_refused(name, training):
    model, state = _small(name).train(training), torch.get_rng_state()
    with pytest.raises(InputError, match="--model here: its log-probs differ while it trains"):
        check_packing("--model here", model)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_with_a_bias_on_its_logits_is_refused(tmp_path):
    model = _small("phi")
    with torch.no_grad():
        model.lm_head.bias.fill_(0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not its hidden states times its output matrix"):
        load_pretrained(ModelConfig(pretrained=str(tmp_path)))
