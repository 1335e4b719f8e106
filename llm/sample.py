"""One Sampler interface: completions seeded per prompt; transformers generate behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from llm.models import backbone

ROWS = 8  # rows drawn at a time: their weights stay in the processor's cache
BLOCK = 256  # vocabulary entries a block of the two-level inverse distribution function


@dataclass(frozen=True)
class Sample:
    """One completion. ids end with EOS exactly if `ended`."""

    ids: tuple[int, ...]
    ended: bool


class Sampler(Protocol):
    """Draws K completions a prompt; the same seed gives the same samples, whatever the batching."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        report: Callable[[float], None] = ...,
    ) -> list[list[Sample]]:
        """For each prompt its K samples, at most `max_tokens` tokens each, EOS included."""
        ...


class TransformersSampler:
    """Sampling with transformers' generate; each prompt is prefilled once for its K samples."""

    def __init__(self, model: Any, *, eos: int, pad: int, batch_prompts: int = 32) -> None:
        self.model, self.eos, self.pad, self.batch_prompts = model.eval(), eos, pad, batch_prompts

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
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        results: list[list[Sample]] = [[] for _ in prompts]
        for start in range(0, len(order), self.batch_prompts):
            part = order[start : start + self.batch_prompts]
            uniforms = np.concatenate(
                [np.random.default_rng((seed, i)).random((k, max_tokens)) for i in part]
            )
            draw = _InverseSampling(torch.from_numpy(uniforms), temperature)
            ids = self._generate([prompts[i] for i in part], k, max_tokens, draw)
            for row, i in enumerate(part):
                results[i] = [self._cut(line) for line in ids[row * k : (row + 1) * k].tolist()]
            report((start + len(part)) / len(order))
        return results

    def _generate(
        self, prompts: Sequence[Sequence[int]], k: int, max_tokens: int, draw: LogitsProcessor
    ) -> Tensor:
        """(prompts x k, at most max_tokens) new ids; prompts padded on the left."""
        width = max(len(p) for p in prompts)
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = self._prefill(ids[:, :-1], mask[:, :-1], k) if width > 1 else None
        out = self.model.generate(
            input_ids=ids.repeat_interleave(k, dim=0),
            attention_mask=mask.repeat_interleave(k, dim=0),
            past_key_values=cache,
            logits_processor=LogitsProcessorList([draw]),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
        )
        return out[:, width:]

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


class _InverseSampling(LogitsProcessor):
    """Draws the next token from softmax(logits / temperature) by given uniforms, then forces it.

    generate runs in its greedy mode and picks the forced token. The distribution function is
    inverted in two levels (block sums, then inside the block): no sort, no cumulative sum over
    the whole vocabulary, and fp32 rounding of about 1e-7 a block.
    """

    def __init__(self, uniforms: Tensor, temperature: float) -> None:
        self.uniforms, self.temperature, self.step = uniforms, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (R, vocabulary) logits, changed in place: +inf at the drawn token."""
        u = self.uniforms[:, self.step].to(scores.device)
        self.step += 1
        parts = zip(scores.split(ROWS), u.split(ROWS), strict=True)
        tokens = torch.cat([draw_tokens(part, v, self.temperature) for part, v in parts])
        return scores.scatter_(1, tokens[:, None], torch.inf)


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """(R,) tokens at which the distribution function of softmax(logits / T) passes `uniforms`.

    logits: (R, vocabulary) fp32, any finite values or -inf; uniforms: (R,) float64 in [0, 1).
    """
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
