"""One small pure function a loss: per example, the caller reduces."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole completions, chosen and rejected: (B,) each, nats."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """log pi(chosen) - log pi(rejected), (B,)."""
        return self.chosen - self.rejected


def sft_loss(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-probability of a completion's tokens, EOS included: (B,), nats a token."""
    return -(token_logps * mask).sum(-1) / mask.sum(-1)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r(chosen) - r(rejected)), (B,), nats: the global reward model, Eq. 6."""
    return -F.logsigmoid(chosen - rejected)


def local_loss(policy: PairLogps, *, beta: float) -> Tensor:
    """-log sigmoid(beta * policy margin), (B,), nats: no reference; Eq. 9 with beta = 1/H."""
    return -F.logsigmoid(beta * policy.margin)


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """-log sigmoid(beta (policy margin - reference margin)), (B,), nats. Rafailov 2023, eq. 7."""
    return -F.logsigmoid(beta * (policy.margin - reference.margin))
