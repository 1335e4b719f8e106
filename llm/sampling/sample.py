"""Samplers: completions seeded per prompt, drawn by transformers here or by vLLM beside us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llm.errors import InputError
from llm.models.build import autocast, backbone, load_policy
from llm.runtime import Runtime
from llm.sampling.sampler import Sample, Sampler, check_request
from llm.sampling.vllm_sampler import VllmSampler

__all__ = ["Sample", "Sampler", "TransformersSampler", "VllmSampler", "open_sampler"]

ROWS = 8  # rows drawn at a time: their weights stay in the processor's cache
SHRINK = 4  # ended rows leave the batch when they are a quarter of it
BLOCK = 256  # vocabulary entries a block of the two-level inverse distribution function


class TransformersSampler:
    """Sampling with transformers' generate; each prompt is prefilled once for its K samples."""

    def __init__(
        self, model: Any, *, eos: int, pad: int, batch_prompts: int = 32, precision: str = "fp32"
    ) -> None:
        self.model, self.eos, self.pad, self.batch_prompts = model.eval(), eos, pad, batch_prompts
        self.precision = precision

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> list[list[Sample]]:
        """See Sampler. Prompts are batched by length; draws depend on (seed, prompt index) only."""
        check_request(prompts, k=k, temperature=temperature, max_tokens=max_tokens)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        results: list[list[Sample]] = [[] for _ in prompts]
        for start in range(0, len(order), self.batch_prompts):
            part = order[start : start + self.batch_prompts]
            uniforms = np.concatenate(
                [np.random.default_rng((seed, i)).random((k, max_tokens)) for i in part]
            )
            draws = _Draws(torch.from_numpy(uniforms), temperature)
            with autocast(self.precision, self.model.device):
                ids = self._generate([prompts[i] for i in part], k, max_tokens, draws)
            for row, i in enumerate(part):
                results[i] = [self._cut(line) for line in ids[row * k : (row + 1) * k].tolist()]
            report((start + len(part)) / len(order))
        return results

    def _generate(
        self, prompts: Sequence[Sequence[int]], k: int, max_tokens: int, draws: _Draws
    ) -> Tensor:
        """(prompts x k, max_tokens) new ids, padded after EOS; prompts padded on the left."""
        width = max(len(p) for p in prompts)
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = self._prefill(ids[:, :-1], mask[:, :-1], k) if width > 1 else DynamicCache()
        return self.model.generate(
            input_ids=ids.repeat_interleave(k, dim=0),
            attention_mask=mask.repeat_interleave(k, dim=0),
            past_key_values=cache,
            custom_generate=draws.decode,
            do_sample=False,  # the decoding is ours: none of generate's own warpers
            max_new_tokens=max_tokens,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
        )

    def _prefill(self, ids: Tensor, mask: Tensor, k: int) -> Any:
        """Keys and values of all but the last prompt token, once a prompt, repeated for K rows."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = backbone(self.model)(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True
        )
        out.past_key_values.batch_repeat_interleave(k)
        return out.past_key_values

    def _cut(self, ids: list[int]) -> Sample:
        """The ids up to EOS, without the padding that follows it."""
        if self.eos in ids:
            return Sample(tuple(ids[: ids.index(self.eos) + 1]), True)
        return Sample(tuple(ids), False)


def open_sampler(
    folder: Path,
    *,
    sampling: Mapping[str, Any],
    words: Mapping[str, int],
    runtime: Runtime,
    batch_prompts: int = 32,
    device: str = "cpu",
    stage: Path | None = None,
) -> Sampler:
    """The sampler that a stage's settings ask for, over the policy saved in `folder`.

    sampling: {"sampler": "transformers" or "vllm", "precision"}; words: ids of "eos" and "pad".
    stage: the folder of the stage that samples; there vLLM's version is noted for its record.
    vLLM takes most of a GPU's memory while it samples: nothing else should lie there then.
    """
    precision = str(sampling["precision"])
    if sampling["sampler"] == "vllm":
        return VllmSampler(folder, words["eos"], runtime, precision, stage=stage)
    if sampling["sampler"] != "transformers":
        raise InputError(f"unknown sampler {sampling['sampler']!r}; known: transformers, vllm")
    return TransformersSampler(
        load_policy(folder).to(device),
        eos=words["eos"],
        pad=words["pad"],
        batch_prompts=batch_prompts,
        precision=precision,
    )


class _Draws:
    """The decoding loop that generate calls: tokens by given uniforms, (rows, max_tokens).

    Logits exist for a few rows at a time, and rows that have ended leave the batch.
    """

    def __init__(self, uniforms: Tensor, temperature: float) -> None:
        self.uniforms, self.temperature = uniforms, temperature

    def decode(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """(rows, max_tokens) new ids; the cache holds all but the prompts' last token."""
        rows, steps = self.uniforms.shape
        uniforms = self.uniforms.to(input_ids.device)
        out = torch.full((rows, steps), generation_config.pad_token_id, device=input_ids.device)
        cache, mask = model_kwargs["past_key_values"], model_kwargs["attention_mask"]
        alive = torch.arange(rows, device=input_ids.device)
        tokens, ended = input_ids[:, -1], torch.zeros_like(alive, dtype=torch.bool)
        for step in range(steps):
            states = backbone(model)(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            tokens = self._next(model, states, uniforms[alive, step])
            out[alive[~ended], step] = tokens[~ended]
            ended = ended | (tokens == generation_config.eos_token_id)
            if ended.all():
                break
            if ended.sum() * SHRINK >= len(ended):
                kept = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                alive, tokens, mask, ended = alive[kept], tokens[kept], mask[kept], ended[kept]
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        return out

    def _next(self, model: Any, states: Tensor, uniforms: Tensor) -> Tensor:
        head = model.get_output_embeddings()
        parts = zip(states.split(ROWS), uniforms.split(ROWS), strict=True)
        return torch.cat([draw_tokens(head(s).float(), u, self.temperature) for s, u in parts])


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """(R,) tokens at which the distribution function of softmax(logits / T) passes `uniforms`.

    T = 0 takes the likeliest token, the first of several.

    It is inverted in two levels (block sums, then inside the block): no sort, and no cumulative
    sum over the whole vocabulary.

    logits: (R, vocabulary) fp32, any finite values or -inf; uniforms: (R,) float64 in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    rows, vocabulary = logits.shape
    weights = logits.new_zeros((rows, vocabulary + -vocabulary % BLOCK))
    inside = weights[:, :vocabulary]
    torch.sub(logits, logits.amax(dim=1, keepdim=True), out=inside).div_(temperature).exp_()
    blocks = weights.view(rows, -1, BLOCK)
    outer = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms * outer[:, -1]
    block = torch.searchsorted(outer, target[:, None], right=True).clamp(max=outer.shape[1] - 1)
    before = torch.where(block > 0, outer.gather(1, (block - 1).clamp(min=0)), 0.0)
    chosen = blocks[torch.arange(rows, device=logits.device), block[:, 0]].double()
    inner = chosen.cumsum(-1)
    place = torch.searchsorted(inner, target[:, None] - before, right=True)
    last = BLOCK - 1 - (chosen > 0).flip(-1).float().argmax(dim=-1)  # the block's last possible one
    return block[:, 0] * BLOCK + torch.minimum(place[:, 0], last)
