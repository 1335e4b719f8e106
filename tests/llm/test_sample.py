"""The sampler: its distribution, its seeds, its batching, its ends."""

import numpy as np
import pytest
import torch

from llm.config import ModelConfig
from llm.errors import InputError
from llm.models.build import new_policy, save_policy
from llm.runtime import Runtime
from llm.sampling.sample import BLOCK, TransformersSampler, draw_tokens, open_sampler
from tests.llm.small_training import moved

PAD, EOS, VOCABULARY = 1, 0, 23


@pytest.fixture(scope="module")
def policy():
    config = ModelConfig(hidden_size=32, layers=2, heads=1, max_positions=64)
    model = new_policy(config, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=0)
    return moved(model, 0.3)


def _sampler(policy, batch_prompts=3):
    return TransformersSampler(policy, eos=EOS, pad=PAD, batch_prompts=batch_prompts)


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 5 * BLOCK + 17])
def test_draws_invert_the_distribution_function(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 2 * torch.randn((1, vocabulary), generator=generator)
    logits[0, vocabulary // 2] = -torch.inf
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    p = torch.softmax(logits[0].double() / 0.7, -1)
    exact = torch.searchsorted(p.cumsum(-1), u, right=True)
    ours = draw_tokens(logits.expand(len(u), -1).clone(), u, 0.7)
    assert (ours == exact).float().mean() > 0.995  # fp32 rounding may move a boundary
    assert (ours != vocabulary // 2).all()


def test_the_top_of_the_unit_interval_is_a_possible_token():
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [4, 7]] = 0.0
    for u in (0.0, 0.4999, 0.5001, np.nextafter(1.0, 0.0)):
        assert draw_tokens(logits.clone(), torch.tensor([u]), 1.0).item() in (4, 7)


def test_samples_follow_the_model(policy):
    prompt = [5, 9, 2]
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([prompt])).logits[0, -1]
    p = torch.softmax(logits, -1).numpy()
    n = 4000
    drawn = _sampler(policy).sample([prompt], k=n, temperature=1.0, max_tokens=1, seed=1)[0]
    counts = np.bincount([s.ids[0] for s in drawn], minlength=VOCABULARY)
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi2 < 60  # 22 degrees of freedom: P < 1e-5


def test_samples_do_not_depend_on_batching_and_follow_the_seed(policy):
    prompts = [[5, 9], [4], [3, 3, 8, 2, 7], [6, 2, 2]]
    settings = {"k": 3, "temperature": 0.8, "max_tokens": 9}
    one = _sampler(policy, 1).sample(prompts, **settings, seed=7)
    assert _sampler(policy, 4).sample(prompts, **settings, seed=7) == one
    assert _sampler(policy, 4).sample(prompts, **settings, seed=8) != one


@pytest.mark.parametrize("temperature", [0, 1e-4])
def test_greedy_equals_generate(policy, temperature):
    prompts = [[5, 9, 11], [4, 8]]
    ours = _sampler(policy).sample(prompts, k=1, temperature=temperature, max_tokens=8, seed=0)
    for prompt, (sample,) in zip(prompts, ours, strict=True):
        plain = policy.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert list(sample.ids) == plain[: len(sample.ids)]


def test_samples_end_at_eos_or_at_the_limit(policy):
    drawn = _sampler(policy).sample([[5, 9]], k=200, temperature=2.0, max_tokens=6, seed=0)[0]
    assert any(s.ended for s in drawn)
    assert any(not s.ended for s in drawn)
    for sample in drawn:
        assert sample.ended == (sample.ids[-1] == EOS)
        assert EOS not in sample.ids[:-1]
        assert len(sample.ids) == 6 or sample.ended


def test_the_likeliest_token_is_the_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0], [-torch.inf, -torch.inf, -3.0]])
    u = torch.tensor([0.9, 0.0], dtype=torch.float64)
    assert draw_tokens(logits, u, 0).tolist() == [1, 2]


def test_bf16_is_the_forward_not_the_weights(policy, monkeypatch):
    seen = set()
    head = policy.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    asked = {"k": 2, "temperature": 0.5, "max_tokens": 6, "seed": 3}
    half = TransformersSampler(policy, eos=EOS, pad=PAD, precision="bf16").sample([[5, 9]], **asked)
    assert seen == {torch.bfloat16}
    seen.clear()
    assert all(s.ids for s in half[0])
    _sampler(policy).sample([[5, 9]], **asked)
    hook.remove()
    assert seen == {torch.float32}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_the_weights_in_the_folder_are_the_ones_sampled(policy, tmp_path):
    save_policy(policy, tmp_path)
    asked = {"k": 2, "temperature": 0.7, "max_tokens": 6, "seed": 0}
    opened = open_sampler(
        tmp_path,
        sampling={"sampler": "transformers", "precision": "fp32"},
        words={"eos": EOS, "pad": PAD},
        runtime=Runtime(),
    )
    assert opened.sample([[5, 9]], **asked) == _sampler(policy).sample([[5, 9]], **asked)
    with pytest.raises(InputError, match="unknown sampler 'VLLM'"):
        open_sampler(
            tmp_path,
            sampling={"sampler": "VLLM", "precision": "fp32"},
            words={"eos": EOS, "pad": PAD},
            runtime=Runtime(),
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"k": 0}, "k = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"prompts": [[5], []]}, "prompt 1 has no tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused(policy, settings, named):
    asked = {"prompts": [[5]], "k": 1, "temperature": 1.0, "max_tokens": 2, "seed": 0, **settings}
    with pytest.raises(ValueError, match=named):
        _sampler(policy).sample(asked.pop("prompts"), **asked)
