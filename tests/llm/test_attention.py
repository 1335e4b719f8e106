"""One mask for every backend: packed attention against a dense mask; other masks pass through."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from llm.config import ModelConfig
from llm.models import attention
from llm.models.attention import NAME, block_mask, packed_attention
from llm.models.build import backbone, load_policy, new_policy, save_policy
from llm.models.forward import completion_logps, packed_states
from llm.models.packing import collate
from tests.llm.small_training import moved

EOS, PAD, VOCABULARY = 0, 1, 50
UNCOMPILED = "ignore:flex_attention called without torch.compile"


def _batch(seed=0, prompts=3, k=2, longest=150):
    """Random ids of random lengths; the first prompt comes twice, and so does a completion."""
    generator = torch.Generator().manual_seed(seed)

    def ids():
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    rows = [ids() for _ in range(prompts)]
    completions = [[[*ids(), EOS] for _ in range(k)] for _ in rows]
    rows.append(rows[0])
    completions.append([completions[0][0], *([*ids(), EOS] for _ in range(k - 1))])
    return collate(rows, completions, pad=PAD)


def _dense(batch):
    """(T, T) whether a query sees a key, a segment at a time."""
    seen = torch.zeros(len(batch.segment), len(batch.segment), dtype=torch.bool)
    for segment in batch.segment.unique():
        own = batch.segment == segment
        prompt = batch.segment == batch.prompt[own][0]
        seen[own] = own | prompt
    return seen.tril()


def _states(batch, heads=2, width=8, seed=0, key_heads=None, grad=True):
    """Random q, k, v: (1, heads, T, width) each."""
    generator = torch.Generator().manual_seed(seed)
    length = batch.ids.shape[1]
    counts = (heads, key_heads or heads, key_heads or heads)
    return [
        torch.randn(1, n, length, width, generator=generator, requires_grad=grad) for n in counts
    ]


def _layer(groups=1):
    """What an attention function reads of its layer."""
    layer: Any = torch.nn.Module().eval()
    layer.num_key_value_groups, layer.is_causal = groups, True
    return layer


def _plain(states, seen, **more):
    """torch's own, (1, T, heads, width)."""
    return scaled_dot_product_attention(*states, attn_mask=seen, **more).transpose(1, 2)


def _gradients(output, states):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((output * weights).sum(), states)


def _assert_equal(ours, plain, states):
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for a, b in zip(_gradients(ours, states), _gradients(plain, states), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# --- the mask -------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), k=st.integers(1, 3), longest=st.sampled_from([1, 9, 60]))
@settings(max_examples=12)
def test_the_mask_is_the_dense_one(seed, k, longest):
    batch = _batch(seed, prompts=2, k=k, longest=longest)
    mask, length = block_mask(batch), torch.arange(batch.ids.shape[1])
    assert isinstance(mask, BlockMask)
    assert mask.shape == (1, 1, len(length), len(length))
    found = mask.mask_mod(0, 0, length[:, None], length[None])
    assert torch.equal(found, _dense(batch))


def test_a_block_of_keys_knows_its_queries():
    """What the backward pass on a GPU goes by is the transpose of what the forward pass does."""
    batch = _batch(2)
    mask, count = block_mask(batch), len(batch.blocks)
    assert mask.q_num_blocks is not None
    assert mask.q_indices is not None

    def pairs(counts, rows):
        listed = zip(counts[0, 0].tolist(), rows[0, 0].tolist(), strict=True)
        return {(i, j) for i, (n, row) in enumerate(listed) for j in row[:n]}

    forward = pairs(mask.kv_num_blocks, mask.kv_indices)
    assert {(j, i) for i, j in pairs(mask.q_num_blocks, mask.q_indices)} == forward
    assert count < len(forward) < count * (count + 1) / 2  # some below the diagonal are skipped


def test_the_tiles_of_a_mask_are_made_once():
    """Layers share them."""
    mask = block_mask(_batch(longest=20))
    assert mask.tiles is mask.tiles


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 4])
def test_packed_attention_is_that_of_the_dense_mask(seed, k):
    batch = _batch(seed, k=k)
    assert len(batch.blocks) > 1
    states = _states(batch, seed=seed)
    ours, nothing = packed_attention(_layer(), *states, block_mask(batch), dropout=0.0)
    assert nothing is None
    _assert_equal(ours, _plain(states, _dense(batch)), states)


def test_grouped_heads_and_a_scale():
    batch = _batch(5)
    states = _states(batch, heads=4, key_heads=2)
    ours, _ = packed_attention(_layer(2), *states, block_mask(batch), scaling=0.7)
    _assert_equal(ours, _plain(states, _dense(batch), scale=0.7, enable_gqa=True), states)
    other, _ = packed_attention(_layer(2), *states, block_mask(batch), scaling=0.1)
    assert (other - ours).abs().max() > 0.1


@pytest.mark.filterwarnings(UNCOMPILED)
def test_torchs_flex_attention_is_given_the_same_mask():
    """Without gradients: on a CPU it has none."""
    batch = _batch(1)
    states = _states(batch, grad=False)
    output = flex_attention(*states, block_mask=block_mask(batch))
    assert isinstance(output, torch.Tensor)
    plain = _plain(states, _dense(batch))
    torch.testing.assert_close(output.transpose(1, 2), plain, atol=1e-5, rtol=1e-5)


class _OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.filterwarnings(UNCOMPILED)
def test_a_gpus_states_go_to_flex_attention(monkeypatch):
    """Through transformers' own function, uncompiled."""
    calls = []

    def uncompiled(*states, training, **more):
        calls.append(training)
        return flex_attention(*(s.as_subclass(torch.Tensor) for s in states), **more)

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", uncompiled)
    batch = _batch(3)
    states = _states(batch, heads=4, width=16, key_heads=2, grad=False)
    there = [tensor.as_subclass(_OnGpu) for tensor in states]
    ours, _ = packed_attention(_layer(2), *there, block_mask(batch), scaling=0.7, dropout=0.0)
    assert calls == [False]
    plain = _plain(states, _dense(batch), scale=0.7, enable_gqa=True)
    torch.testing.assert_close(ours.as_subclass(torch.Tensor), plain, atol=1e-5, rtol=1e-5)


def test_on_a_gpu_autocast_makes_one_type_of_three(monkeypatch):
    """Rotary positions leave fp32 beside bf16, which FlexAttention refuses."""
    asked = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: asked.append(device) or True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    given_types = torch.float32, torch.float32, torch.bfloat16
    mixed = [torch.ones(2, dtype=kind) for kind in given_types]
    assert {t.dtype for t in attention._one_type(*mixed)} == {torch.bfloat16}
    assert asked == ["cuda"]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    assert tuple(t.dtype for t in attention._one_type(*mixed)) == given_types


def test_completions_that_see_each_other_give_other_numbers():
    """The broken twin: every token of a prompt's tree before a token is seen."""
    batch = _batch(6)
    twin = block_mask(replace(batch, segment=batch.prompt))
    states = _states(batch)
    ours, _ = packed_attention(_layer(), *states, block_mask(batch))
    other, _ = packed_attention(_layer(), *states, twin)
    off = (ours - other).abs().amax(dim=(0, 2, 3)) > 1e-5
    length = torch.arange(len(batch.segment))
    before = _dense(replace(batch, segment=batch.prompt)) & ~_dense(batch)
    assert torch.equal(off, before.any(1))
    assert off.any()
    assert not off[length[batch.segment == batch.prompt]].any()  # prompts are as they were


# --- masks that are not packed --------------------------------------------------------------------


@pytest.fixture
def policy():
    config = ModelConfig(hidden_size=32, layers=2, heads=2, max_positions=512)
    model = new_policy(config, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=3)
    return moved(model, 0.3)


def _left_padded():
    """Three prompts of 2, 5 and 9 tokens: ids and mask, (3, 9)."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([2, 5, 9])
    mask = (torch.arange(9)[None] >= 9 - lengths[:, None]).long()
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=generator)
    return ids.masked_fill(mask == 0, PAD), mask


def _generated(model, seed):
    """Sampled tokens: every one depends on the numbers before it."""
    ids, mask = _left_padded()
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=True, pad_token_id=PAD
        )


def test_a_model_samples_as_before_after_packed_use(policy):
    before = _generated(policy, 0)
    assert policy.config._attn_implementation == "sdpa"
    with torch.no_grad():
        completion_logps(policy, _batch(longest=20))
    assert policy.config._attn_implementation == NAME
    assert torch.equal(_generated(policy, 0), before)
    assert not torch.equal(_generated(policy, 1), before)


@pytest.mark.parametrize("kind", ["none", "padded", "dense"])
def test_other_masks_go_to_transformers_unchanged(policy, kind):
    ids, mask = _left_padded()
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    masks = {"none": None, "padded": mask, "dense": causal & mask[:, None, None].bool()}
    masks["dense"] = masks["dense"] | torch.eye(9, dtype=torch.bool)  # padding sees itself
    plain = copy.deepcopy(policy)
    with torch.no_grad():
        packed_states(backbone(policy), _batch(longest=20))
        ours, theirs = (
            model(input_ids=ids, attention_mask=masks[kind]).logits for model in (policy, plain)
        )
    assert plain.config._attn_implementation == "sdpa"
    kept = slice(None) if kind == "none" else mask.bool()
    assert torch.equal(ours[kept], theirs[kept])


def test_what_is_saved_does_not_name_the_packed_attention(policy, tmp_path):
    """transformers alone must read it."""
    with torch.no_grad():
        completion_logps(policy, _batch(longest=20))
    save_policy(policy, tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert load_policy(tmp_path).config._attn_implementation == "sdpa"
