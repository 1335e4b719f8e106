"""log softmax(h W^T)[target] at chosen positions: never a whole row of logits kept, fp32 sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Logits that exist at one time: 2 MB in fp32 stay in a processor's cache, a GPU wants large blocks.
LOGITS = {"cpu": 2**19, "cuda": 2**27}
MIN_BLOCK = 256  # vocabulary entries, however many positions there are


class TargetLogps(torch.autograd.Function):
    """log softmax(h W^T)[target] for N positions, in fp32, a block of the vocabulary at a time.

    Neither pass holds more than LOGITS logits, or N x MIN_BLOCK where that is more (on a CPU from
    2048 positions on); a running maximum keeps the sum stable, the backward pass computes them
    again. rounded: both factors of every product are rounded to bf16
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
