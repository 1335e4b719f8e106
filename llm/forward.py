"""Log-probabilities and rewards of completions: each prompt runs once, logits only at completions.

A batch is B prompts with K completions each. A prompt's keys and values are computed once and
shared by its completions; gradients flow through them. Both are padded on the right and positions
are counted per row, so padding changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from llm.models import RewardModel, backbone

LOGIT_ROWS = 32  # completion positions whose logits exist at one time


@dataclass(frozen=True)
class Batch:
    """B prompts, K completions each: R = B K rows, those of prompt b from row b K on."""

    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P) 1 = a token, 0 = padding on the right
    completion_ids: Tensor  # (R, C)
    completion_mask: Tensor  # (R, C)

    @property
    def per_prompt(self) -> int:
        """K."""
        return self.completion_ids.shape[0] // self.prompt_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], *, pad: int
) -> Batch:
    """Pad B prompts and their K completions each on the right with `pad`."""
    rows = [ids for group in completions for ids in group]
    prompt_ids, prompt_mask = _padded(prompts, pad)
    completion_ids, completion_mask = _padded(rows, pad)
    return Batch(prompt_ids, prompt_mask, completion_ids, completion_mask)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) of ragged rows, padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return ids, mask


def completion_states(trunk: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states at each prompt's last token (R, width) and at completions (R, C, width)."""
    k = batch.per_prompt
    first = trunk(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, use_cache=True)
    lengths = batch.prompt_mask.sum(-1)
    last = first.last_hidden_state[torch.arange(len(lengths), device=lengths.device), lengths - 1]
    cache: Any = first.past_key_values
    if k > 1:
        cache.batch_repeat_interleave(k)
    rows = torch.repeat_interleave(lengths, k)
    steps = torch.arange(batch.completion_ids.shape[1], device=lengths.device)
    prompt_mask = torch.repeat_interleave(batch.prompt_mask, k, dim=0)
    second = trunk(
        input_ids=batch.completion_ids,
        attention_mask=torch.cat([prompt_mask, batch.completion_mask], dim=1),
        position_ids=rows[:, None] + steps[None, :],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.repeat_interleave(last, k, dim=0), second.last_hidden_state


def token_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(R, C) log-probability of each completion token, logits over `temperature`; 0 at padding."""
    last, states = completion_states(backbone(model), batch)
    predicting = torch.cat([last[:, None], states[:, :-1]], dim=1)
    kept = batch.completion_mask.bool()
    weight = model.get_output_embeddings().weight
    values = _TargetLogps.apply(
        predicting[kept] / temperature, weight, batch.completion_ids[kept], LOGIT_ROWS
    )
    return torch.zeros(kept.shape, dtype=values.dtype, device=values.device).masked_scatter(
        kept, values
    )


def completion_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(B, K) log-probability of each whole completion, nats, summed in fp32."""
    return token_logps(model, batch, temperature=temperature).sum(-1).view(-1, batch.per_prompt)


def completion_rewards(model: RewardModel, batch: Batch) -> Tensor:
    """(B, K) reward of each completion, read at its last token (EOS)."""
    _, states = completion_states(model.trunk, batch)
    ends = batch.completion_mask.sum(-1) - 1
    hidden = states[torch.arange(len(ends), device=ends.device), ends]
    return model.reward(hidden).view(-1, batch.per_prompt)


class _TargetLogps(torch.autograd.Function):
    """log softmax(h W^T)[target] for N positions, `rows` of them at a time, in fp32.

    Neither pass holds more than (rows, vocabulary) logits: the backward pass computes them again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rows: int) -> Tensor:
        """hidden (N, width), weight (vocabulary, width), target (N,) -> (N,)."""
        normaliser = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        chosen = torch.empty_like(normaliser)
        for part in _chunks(len(hidden), rows):
            logits = (hidden[part] @ weight.T).float()
            chosen[part] = logits.gather(1, target[part, None])[:, 0]
            peak = logits.amax(dim=1)
            normaliser[part] = logits.sub_(peak[:, None]).exp_().sum(dim=1).log_().add_(peak)
        ctx.save_for_backward(hidden, weight, target, normaliser)
        ctx.rows = rows
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """d/d hidden and d/d weight of sum(grad * log-prob)."""
        (grad,) = grads
        hidden, weight, target, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        for part in _chunks(len(hidden), ctx.rows):
            logits = (hidden[part] @ weight.T).float()
            slope = logits.sub_(normaliser[part, None]).exp_().mul_(-grad[part, None])
            slope.scatter_add_(1, target[part, None], grad[part, None].to(slope.dtype))
            slope = slope.to(weight.dtype)
            grad_hidden[part] = slope @ weight
            grad_weight.addmm_(slope.T, hidden[part])
        return grad_hidden, grad_weight, None, None


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]
