"""Prefix-shared, padded, chunked log-probs and rewards against one row at a time, plainly."""

import pytest
import torch

from llm.config import ModelConfig
from llm.errors import InputError
from llm.forward import completion_logps, completion_rewards, token_logps
from llm.models import RewardModel, load_pretrained, new_policy
from llm.packing import collate

PAD, EOS, VOCABULARY = 1, 0, 97


@pytest.fixture(scope="module")
def policy():
    config = ModelConfig(hidden_size=32, layers=2, heads=2, max_positions=64)
    model = new_policy(config, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the symmetric start
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _ragged(prompts, k, seed):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    rows = [ids(1, 20) for _ in range(prompts)]
    return rows, [[[*ids(1, 9), EOS] for _ in range(k)] for _ in rows]


def _plain_logps(model, prompt, completion, temperature=1.0):
    """One row, no padding, full logits, no cache."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    logps = torch.log_softmax(logits, -1)
    start = len(prompt) - 1
    return logps[torch.arange(start, start + len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_batched_padded_logps_equal_one_by_one(policy, k, temperature):
    prompts, completions = _ragged(6, k, seed=k)
    batch = collate(prompts, completions, pad=PAD)
    with torch.no_grad():
        ours = completion_logps(policy, batch, temperature=temperature)
        for b, prompt in enumerate(prompts):
            for j, completion in enumerate(completions[b]):
                plain = _plain_logps(policy, prompt, completion, temperature).sum()
                assert ours[b, j].item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)


def test_gradients_equal_the_plain_path(policy):
    prompts, completions = _ragged(4, 2, seed=11)
    batch = collate(prompts, completions, pad=PAD)
    weights = torch.tensor([[1.0, -0.7], [0.3, 2.0], [-1.0, 1.0], [0.5, 0.5]])
    parameters = list(policy.parameters())
    ours = torch.autograd.grad((completion_logps(policy, batch) * weights).sum(), parameters)
    plain_sum = sum(
        weights[b, j] * _plain_logps(policy, prompt, completion).sum()
        for b, prompt in enumerate(prompts)
        for j, completion in enumerate(completions[b])
    )
    plain = torch.autograd.grad(plain_sum, parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_padding_positions_carry_nothing(policy):
    prompts, completions = _ragged(3, 2, seed=5)
    values = token_logps(policy, collate(prompts, completions, pad=PAD))
    other = token_logps(policy, collate(prompts, completions, pad=PAD + 1))
    torch.testing.assert_close(values, other, atol=1e-5, rtol=1e-5)
    lengths = [len(c) for group in completions for c in group]
    for row, length in zip(values, lengths, strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] < 0).all()


def test_reward_is_read_at_eos(policy):
    model = RewardModel(policy, seed=1).eval()
    prompts, completions = _ragged(5, 2, seed=7)
    with torch.no_grad():
        ours = completion_rewards(model, collate(prompts, completions, pad=PAD))
        for b, prompt in enumerate(prompts):
            for j, completion in enumerate(completions[b]):
                ids = torch.tensor([[*prompt, *completion]])
                assert ids[0, -1] == EOS
                hidden = model.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
                assert ours[b, j].item() == pytest.approx(model.head(hidden).item(), abs=1e-5)


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
    }
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(shapes[name]()).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_other_causal_models_are_read_and_give_their_own_logps(name, tmp_path):
    """Grouped heads and rotary positions; absolute positions and one matrix at both ends."""
    _small(name).save_pretrained(tmp_path)
    model = load_pretrained(ModelConfig(pretrained=str(tmp_path))).eval()
    prompts, completions = _ragged(5, 2, seed=2)
    with torch.no_grad():
        ours = completion_logps(model, collate(prompts, completions, pad=PAD))
        for b, prompt in enumerate(prompts):
            for j, completion in enumerate(completions[b]):
                plain = _plain_logps(model, prompt, completion).sum()
                assert ours[b, j].item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)


def test_a_model_with_a_bias_on_its_logits_is_refused(tmp_path):
    model = _small("phi")
    with torch.no_grad():
        model.lm_head.bias.fill_(0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not its hidden states times its output matrix"):
        load_pretrained(ModelConfig(pretrained=str(tmp_path)))
