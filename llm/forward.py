"""Log-probs and rewards of completions: each prompt runs once, logits only at completions.

A batch names B examples of K completions each. Equal prompts are one row, equal completions of one
prompt are one row: a prompt's keys and values are computed once and shared by its completions, and
gradients flow through them. Both are padded on the right and positions are counted per row, so
padding and sharing change nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from llm.models import RewardModel, backbone

# Logits that exist at one time: 2 MB in fp32 stay in a processor's cache, a GPU wants large blocks.
LOGITS = {"cpu": 2**19, "cuda": 2**27}
MIN_BLOCK = 256
Ids = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """P distinct prompts, R distinct completions, and the B x K of them that were asked for."""

    prompt_ids: Tensor  # (P, S) int64
    prompt_mask: Tensor  # (P, S) 1 = a token, 0 = padding on the right
    completion_ids: Tensor  # (R, C)
    completion_mask: Tensor  # (R, C)
    owner: Tensor  # (R,) the prompt that a completion continues
    member: Tensor  # (B, K) the row of each completion asked for

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], *, pad: int) -> Batch:
    """B prompts with K completions each; what is equal becomes one row, padded with `pad`."""
    prompt_of: dict[tuple[int, ...], int] = {}
    row_of: dict[tuple[int, tuple[int, ...]], int] = {}
    member = []
    for prompt, group in zip(prompts, completions, strict=True):
        owner = prompt_of.setdefault(tuple(prompt), len(prompt_of))
        member.append([row_of.setdefault((owner, tuple(ids)), len(row_of)) for ids in group])
    prompt_ids, prompt_mask = _padded(list(prompt_of), pad)
    completion_ids, completion_mask = _padded([ids for _, ids in row_of], pad)
    owners = torch.tensor([owner for owner, _ in row_of])
    return Batch(
        prompt_ids, prompt_mask, completion_ids, completion_mask, owners, torch.tensor(member)
    )


def _padded(rows: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) of ragged rows, padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return ids, mask


def completion_states(trunk: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states at the last prompt token (R, width), and at completions (R, C, width)."""
    first = trunk(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, use_cache=True)
    lengths = batch.prompt_mask.sum(-1)
    last = first.last_hidden_state[torch.arange(len(lengths), device=lengths.device), lengths - 1]
    cache: Any = first.past_key_values
    cache.batch_select_indices(batch.owner)
    steps = torch.arange(batch.completion_ids.shape[1], device=lengths.device)
    second = trunk(
        input_ids=batch.completion_ids,
        attention_mask=torch.cat([batch.prompt_mask[batch.owner], batch.completion_mask], dim=1),
        position_ids=lengths[batch.owner][:, None] + steps[None, :],
        past_key_values=cache,
        use_cache=True,
    )
    return last[batch.owner], second.last_hidden_state


def token_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(R, C) log-probability of each completion token, logits over `temperature`; 0 at padding."""
    return token_measures(model, batch, temperature=temperature)[0]


def token_measures(model: Any, batch: Batch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logps`, and whether each token is the arg max where it stands; both (R, C).

    Under bf16 autocast the factors of the output layer are rounded to bf16, its logits are not.
    """
    last, states = completion_states(backbone(model), batch)
    predicting = torch.cat([last[:, None], states[:, :-1]], dim=1)
    kept = batch.completion_mask.bool()
    hidden = predicting[kept] / temperature
    rounded = torch.is_autocast_enabled(hidden.device.type)
    weight = model.get_output_embeddings().weight
    values, top = _TargetLogps.apply(hidden, weight, batch.completion_ids[kept], rounded)
    return _scattered(values, kept), _scattered(top, kept)


def _scattered(values: Tensor, kept: Tensor) -> Tensor:
    """The values at the positions `kept`, zero elsewhere."""
    return torch.zeros(kept.shape, dtype=values.dtype, device=values.device).masked_scatter(
        kept, values
    )


def completion_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(B, K) log-probability of each whole completion, nats, summed in fp32."""
    return token_logps(model, batch, temperature=temperature).sum(-1)[batch.member]


def completion_rewards(model: RewardModel, batch: Batch) -> Tensor:
    """(B, K) reward of each completion, read at its last token (EOS)."""
    last, states = completion_states(model.trunk, batch)
    ends = batch.completion_mask.sum(-1) - 1
    hidden = states[torch.arange(len(ends), device=ends.device), ends]
    rewards = model.reward(hidden)
    if any(isinstance(module, FSDPModule) for module in model.trunk.modules()):
        # FSDP gathers a layer's weights for the backward pass when a gradient reaches its output;
        # of the last layer's at the prompt, a reward takes the keys and values alone
        rewards = rewards + 0.0 * last.sum()
    return rewards[batch.member]


class _TargetLogps(torch.autograd.Function):
    """log softmax(h W^T)[target] for N positions, in fp32, a block of the vocabulary at a time.

    Neither pass holds more than LOGITS logits (a running maximum keeps the sum stable); the
    backward pass computes them again. rounded: both factors of every product are rounded to bf16
    and the products summed in fp32, so that the two passes see the same logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rounded: bool
    ) -> tuple[Tensor, Tensor]:
        """hidden (N, width), weight (vocabulary, width), target (N,) -> values, is top: (N,)."""
        states = _factor(hidden, rounded)
        peak = torch.full((len(hidden),), -torch.inf, device=hidden.device)
        total = torch.zeros_like(peak)
        chosen = torch.zeros_like(peak)
        for start, block in _blocks(weight, len(hidden)):
            logits = _product(states, _factor(block, rounded).T)
            _take(chosen, logits, target - start)
            higher = torch.maximum(peak, logits.amax(dim=1))
            total.mul_((peak - higher).exp_())
            total.add_(logits.sub_(higher[:, None]).exp_().sum(dim=1))
            peak = higher
        top = chosen == peak
        normaliser = total.log_().add_(peak)
        ctx.save_for_backward(hidden, weight, target, normaliser)
        ctx.rounded = rounded
        ctx.mark_non_differentiable(top)
        return chosen - normaliser, top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """d/d hidden and d/d weight of sum(grad * log-prob)."""
        grad, rounded = grads[0], ctx.rounded
        hidden, weight, target, normaliser = ctx.saved_tensors
        states = _factor(hidden, rounded)
        pulled = grad[:, None].to(hidden.dtype) * hidden
        grad_weight = torch.zeros_like(weight).index_add_(0, target, pulled)
        pulled = _factor(pulled, rounded)
        expected = torch.zeros_like(hidden)  # sum over tokens of p(token) W[token]
        for start, block in _blocks(weight, len(hidden)):
            tokens = _factor(block, rounded)
            logits = _product(states, tokens.T)
            p = logits.sub_(normaliser[:, None]).exp_().to(tokens.dtype)
            _add_product(expected, p, tokens)
            part = grad_weight[start : start + len(block)]
            _add_product(part, p.T, pulled, -1.0)
        return grad[:, None].to(hidden.dtype) * (weight[target] - expected), grad_weight, None, None


def _factor(values: Tensor, rounded: bool) -> Tensor:
    return values.to(torch.bfloat16) if rounded else values


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32; products of bf16 factors are summed in fp32 and stay so.

    Autocast is off: it would round the sums to bf16, by 0.06 at a logit of 10.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype != torch.bfloat16:
            return (a @ b).float()
        if a.device.type == "cuda":
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


def _add_product(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
    """total += alpha a @ b, in the precision of `_product`."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=alpha)
    else:
        total.add_(_product(a, b), alpha=alpha)


def _blocks(weight: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first token, rows of the output matrix), so that rows x block stays near LOGITS."""
    size = max(MIN_BLOCK, LOGITS.get(weight.device.type, LOGITS["cpu"]) // max(1, rows))
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size]


def _take(chosen: Tensor, logits: Tensor, index: Tensor) -> None:
    """chosen[i] = logits[i, index[i]] where index[i] falls into the block."""
    inside = ((index >= 0) & (index < logits.shape[1])).nonzero()[:, 0]
    chosen[inside] = logits[inside, index[inside]]
