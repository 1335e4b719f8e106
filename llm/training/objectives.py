"""Objectives: a module that owns the model and turns a batch into one loss an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm.models.build import autocast
from llm.models.forward import completion_rewards, token_measures
from llm.models.packing import Batch
from llm.training.losses import PairLogps, bradley_terry_loss, dpo_loss, local_loss, sft_loss

Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One training example: prompt ids, one completion (SFT) or chosen and rejected, references."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    reference: tuple[float, ...] | None = None  # the reference's log-probs of the completions, nats

    @property
    def tokens(self) -> int:
        """Of the prompt and its completions."""
        return len(self.prompt) + sum(map(len, self.completions))


class Objective(nn.Module):
    """A model and its loss. `losses` gives one loss an example and the numbers worth logging.

    precision: of the forward pass (`llm.models.build.autocast`); the weights stay as they are.
    """

    def __init__(self, model: nn.Module, *, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, Statistics]:
        """(B,) losses in nats and (B,) statistics by name."""
        raise NotImplementedError

    def forward(
        self, reference: Tensor | None = None, share: float = 1.0, **tensors: Tensor
    ) -> dict[str, Any]:
        """The Trainer's call: the mean loss over the batch, times the batch's share of a step."""
        batch = Batch(**tensors)
        with autocast(self.precision, batch.ids.device):
            losses, statistics = self.losses(batch, reference)
        logged = {name: value.detach() for name, value in statistics.items()}
        return {"loss": losses.mean() * share, "statistics": logged}


class SupervisedObjective(Objective):
    """Maximum likelihood of the completion (SFT)."""

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, Statistics]:
        """Nats a token."""
        logps, top = token_measures(self.model, batch)
        rows = batch.member[:, 0]
        losses = sft_loss(logps, batch.completion_mask)
        losses = losses[rows]
        return losses, {
            "nats_per_token": losses,
            "tokens": _lengths(batch)[:, 0],
            "eos_rate": _ends(self.model, batch, top)[:, 0],
        }


class RewardObjective(Objective):
    """Bradley-Terry over a global reward model."""

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, Statistics]:
        """Nats a pair."""
        rewards = completion_rewards(self.model, batch)  # type: ignore[arg-type]
        chosen, rejected = rewards.unbind(1)
        statistics = {**_margins("reward", chosen, rejected), **_pair("tokens", _lengths(batch))}
        return bradley_terry_loss(chosen, rejected), statistics


class PolicyObjective(Objective):
    """DPO against a cached reference, or, without one, the local reward model.

    temperature: logits of the policy are divided by it before the softmax (Table 3's note); the
    cached reference must have been computed with the same one.

    Only the margin is trained: DPO's chosen log-prob usually falls along with the rejected one
    (Pal et al. 2024), so that both are logged. kl_from_reference is the mean over the batch's
    completions of log pi_ref - log pi: an unbiased estimate of KL(pi_ref || pi), nats, where the
    reference drew them at random; for pairs picked by a judge or reward model, an indication.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float,
        temperature: float = 1.0,
        with_reference: bool = True,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, precision=precision)
        self.beta, self.temperature, self.with_reference = beta, temperature, with_reference

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, Statistics]:
        """Nats a pair."""
        tokens, top = token_measures(self.model, batch, temperature=self.temperature)
        logps = tokens.sum(-1)[batch.member]
        policy = PairLogps(*logps.unbind(1))
        statistics = {
            **_margins("logp", policy.chosen, policy.rejected),
            **_pair("tokens", _lengths(batch)),
            **_pair("eos_rate", _ends(self.model, batch, top)),
        }
        if not self.with_reference:
            return local_loss(policy, beta=self.beta), statistics
        if reference is None:
            raise ValueError("DPO needs the reference's log-probs of every row")
        anchor = PairLogps(*reference.unbind(1))
        margin = self.beta * (policy.margin - anchor.margin)
        statistics |= {
            "margin": margin,
            "accuracy": _accuracy(margin),
            "kl_from_reference": (reference - logps).mean(1),
        }
        return dpo_loss(policy, anchor, beta=self.beta), statistics


def _pair(name: str, values: Tensor) -> Statistics:
    return {f"chosen_{name}": values[:, 0], f"rejected_{name}": values[:, 1]}


def _margins(kind: str, chosen: Tensor, rejected: Tensor) -> Statistics:
    margin = chosen - rejected
    return {
        f"chosen_{kind}": chosen,
        f"rejected_{kind}": rejected,
        "margin": margin,
        "accuracy": _accuracy(margin),
    }


def _accuracy(margin: Tensor) -> Tensor:
    """1 where the chosen one scores higher, ties half."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()


def _lengths(batch: Batch) -> Tensor:
    """(B, K) tokens of each completion, EOS included."""
    return batch.completion_mask.sum(-1)[batch.member]


def _ends(model: nn.Module, batch: Batch, top: Tensor) -> Tensor:
    """(B, K) 1 where a completion ends with EOS and EOS is the model's arg max there, else 0."""
    last = batch.completion_mask.sum(-1, keepdim=True) - 1
    eos = model.config.eos_token_id  # type: ignore[union-attr]
    known = [] if eos is None else eos if isinstance(eos, list) else [eos]
    ended = torch.isin(
        batch.completion_ids.gather(1, last), torch.tensor(known, device=last.device)
    )
    closed = ended & top.gather(1, last)
    return closed[:, 0].float()[batch.member]
