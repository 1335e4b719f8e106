"""vLLM against transformers over the same weights: greedy, log-probs, distribution, seeds."""

import os
from dataclasses import replace

import pytest
import torch
from conftest import noisy_policy

from llm.data.tokenize import encode
from llm.models.forward import token_logps
from llm.models.packing import collate
from llm.sampling.sample import TransformersSampler
from llm.sampling.sampler import Sample
from llm.sampling.vllm_process import SamplerError
from llm.sampling.vllm_sampler import VllmSampler

TEXTS = [f"POST: {n} dogs ate {'the long letter ' * 3 * n}about work.\n\nTL;DR:" for n in range(12)]
OUTPUTS = 384  # more than the tokenizer has entries, as Pythia's


@pytest.fixture(scope="module")
def policy(small_tokenizer, runtime, tmp_path_factory):
    """(transformers' model, vLLM's sampler over its folder, prompts); a byte-level BPE's ids."""
    folder = tmp_path_factory.mktemp("policy")
    words = {"eos": small_tokenizer.eos_token_id, "pad": small_tokenizer.pad_token_id}
    model = noisy_policy(folder, OUTPUTS, **words, seed=0)
    prompts = [list(ids) for ids in encode(small_tokenizer, TEXTS)]
    assert max(map(len, prompts)) > 64  # several blocks of shared keys and values
    return model, VllmSampler(folder, words["eos"], runtime), prompts


@pytest.fixture(scope="module")
def at_a_tenth(policy):
    """25 samples a prompt at temperature 0.1: what online DPO and best-of-N draw."""
    _, sampler, prompts = policy
    return sampler.draw(prompts, k=25, temperature=0.1, max_tokens=20, seed=3, logprobs=True)


def _logps(model, prompts, samples):
    """The trainer's log-probs of every token: [prompt][sample][token]."""
    batch = collate(prompts, [[s.ids for s in line] for line in samples], pad=1)
    with torch.no_grad():
        values = token_logps(model, batch)
    return [
        [values[row, : len(s.ids)].tolist() for row, s in zip(rows, line, strict=True)]
        for rows, line in zip(batch.member.tolist(), samples, strict=True)
    ]


def test_greedy_output_and_log_probs_are_those_of_transformers(policy):
    model, sampler, prompts = policy
    drawn = sampler.draw(prompts, k=2, temperature=0, max_tokens=20, seed=0, logprobs=True)
    for prompt, line in zip(prompts, drawn.samples, strict=True):
        plain = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=sampler.eos,
            pad_token_id=1,
        )[0, len(prompt) :].tolist()
        assert line == 2 * [Sample(tuple(plain), plain[-1] == sampler.eos)]
    _close(drawn.logprobs, _logps(model, prompts, drawn.samples))


def test_log_probs_are_of_the_model_itself_at_any_temperature(policy, at_a_tenth):
    """Peers train on vLLM's: these are not those of the tempered policy that drew the samples."""
    model, _, prompts = policy
    _close(at_a_tenth.logprobs, _logps(model, prompts, at_a_tenth.samples))


def _close(ours, theirs):
    flat = [
        (a, b)
        for x, y in zip(ours, theirs, strict=True)
        for s, t in zip(x, y, strict=True)
        for a, b in zip(s, t, strict=True)
    ]
    assert len(flat) > 100
    assert max(abs(a - b) for a, b in flat) < 1e-4


def _agreement(model, prompts, samples, temperature):
    """Sum over tokens of p(token) less its mean under p, in standard deviations; their variance.

    p is the tempered model's distribution after what was drawn before: each term has mean zero.
    """
    excess = variance = 0.0
    for prompt, line in zip(prompts, samples, strict=True):
        for sample in line:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *sample.ids]])).logits[0]
            p = torch.softmax(logits[len(prompt) - 1 : -1].double() / temperature, -1)
            mean = (p**2).sum(-1)
            taken = p[torch.arange(len(p)), torch.tensor(sample.ids)]
            excess += float((taken - mean).sum())
            variance += float(((p**3).sum(-1) - mean**2).sum())
    return excess / variance**0.5, variance


def test_samples_are_drawn_from_the_tempered_model(policy, at_a_tenth):
    model, _, prompts = policy
    deviations, variance = _agreement(model, prompts, at_a_tenth.samples, 0.1)
    assert abs(deviations) < 4.5
    assert variance > 10  # the draws do differ,
    assert abs(_agreement(model, prompts, at_a_tenth.samples, 0.13)[0]) > 4.5  # and would show it
    assert all(len({s.ids for s in line}) > 1 for line in at_a_tenth.samples)


def test_seeds_decide_and_neither_batches_nor_workers_do(policy, at_a_tenth):
    _, sampler, prompts = policy
    asked = {"k": 25, "temperature": 0.1, "max_tokens": 20}
    two = replace(sampler, runtime=replace(sampler.runtime, data_parallel=2), max_sequences=7)
    assert two.sample(prompts, **asked, seed=3) == at_a_tenth.samples
    other = sampler.sample(prompts[:2], **asked, seed=4)
    assert other != at_a_tenth.samples[:2]


def test_evaluation_is_drawn_at_a_hundredth(policy):
    """The lowest temperature that vLLM knows: no greedier, no warmer."""
    model, sampler, prompts = policy
    cold = sampler.sample(5 * prompts, k=1, temperature=0.01, max_tokens=20, seed=0)
    assert abs(_agreement(model, 5 * prompts, cold, 0.01)[0]) < 4.5
    assert abs(_agreement(model, 5 * prompts, cold, 0.02)[0]) > 4.5


def test_two_processes_share_a_model(policy, monkeypatch):
    """Tensor parallel: half of the heads in each; greedy, since sums round otherwise."""
    model, sampler, prompts = policy
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    two = replace(sampler, runtime=replace(sampler.runtime, tensor_parallel=2))
    asked = {"k": 1, "temperature": 0, "max_tokens": 20, "seed": 0}
    plain = TransformersSampler(model, eos=sampler.eos, pad=1)
    assert two.sample(prompts[:4], **asked) == plain.sample(prompts[:4], **asked)


def test_a_prompt_beyond_the_models_positions_is_one_error(policy):
    _, sampler, _ = policy
    with pytest.raises(SamplerError, match="max_model_len") as caught:
        sampler.sample([[5] * 300], k=1, temperature=0, max_tokens=5, seed=0)
    assert "\n" not in str(caught.value)
