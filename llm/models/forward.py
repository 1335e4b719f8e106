"""Log-probs and rewards of completions: each prompt runs once, logits only at completions.

A batch (`packing`) is one row that holds every distinct prompt once and its completions behind it.
The model runs over it once; completions see their prompt and themselves (`attention`), and
gradients flow through the shared prompt. Packing changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm.errors import InputError
from llm.models.attention import NAME, block_mask
from llm.models.build import RewardModel, backbone
from llm.models.packing import Batch, collate
from llm.models.target_logps import TargetLogps

UNPACKED = "this kind of model cannot run several completions behind one prompt"


def packed_states(trunk: Any, batch: Batch) -> Tensor:
    """Last hidden state of every token of the row: (T, width)."""
    if trunk.config._attn_implementation != NAME:
        trunk.set_attn_implementation(NAME)
    outputs = trunk(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=block_mask(batch),
        use_cache=False,
    )
    return outputs.last_hidden_state[0]


def token_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(R, C) log-probability of each completion token, logits over `temperature`; 0 at padding."""
    return token_measures(model, batch, temperature=temperature)[0]


def token_measures(model: Any, batch: Batch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logps`, and whether each token is the arg max where it stands; both (R, C).

    Under bf16 autocast the factors of the output layer are rounded to bf16, its logits are not.
    """
    kept = batch.completion_mask.bool()
    hidden = packed_states(backbone(model), batch)[batch.places[:, :-1][kept]] / temperature
    rounded = torch.is_autocast_enabled(hidden.device.type)
    weight = model.get_output_embeddings().weight
    values, top = TargetLogps.apply(hidden, weight, batch.completion_ids[kept], rounded)
    return _scattered(values, kept), _scattered(top, kept)


def _scattered(values: Tensor, kept: Tensor) -> Tensor:
    """The values at the positions `kept`, zero elsewhere."""
    return torch.zeros(kept.shape, dtype=values.dtype, device=values.device).masked_scatter(
        kept, values
    )


def completion_logps(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(B, K) log-probability of each whole completion, nats, summed in fp32."""
    return token_logps(model, batch, temperature=temperature).sum(-1)[batch.member]


@torch.no_grad()
def check_packing(place: str, model: Any) -> None:
    """Raise InputError for a model that gives other log-probs in a packed row than by itself.

    Such models mix tokens by other means than transformers' attention interface. Nor may they
    differ while it trains (dropout, noise): a reference would not be what training starts from.
    """
    ids = [2 + i % (int(model.config.vocab_size) - 2) for i in range(12)]
    prompts, completions = [ids[:5], ids[5:7]], [[ids[7:9], ids[9:12]], [ids[8:11], ids[:1]]]
    training, batch = model.training, collate(prompts, completions, pad=ids[0])
    try:
        packed = completion_logps(model.eval(), batch)
        whole = _unpacked_logps(model, prompts, completions)
        with torch.random.fork_rng(devices=[]):
            trained = [completion_logps(model.train(), batch) for _ in range(2)]
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{place}: {UNPACKED} ({type(error).__name__}: {error})") from error
    finally:
        model.train(training)
    _check_equal(f"{place}: {UNPACKED}", packed, whole)
    for again in trained:
        _check_equal(f"{place}: its log-probs differ while it trains (dropout?)", again, packed)


def _unpacked_logps(
    model: Any, prompts: Sequence[list[int]], completions: Sequence[Sequence[list[int]]]
) -> Tensor:
    """(B, K) log-probs by the model's own forward, a row for each completion."""
    values = []
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].float()
            found = logits[len(prompt) - 1 : -1].log_softmax(-1)
            values.append(found.gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(values).view(len(prompts), -1)


def _check_equal(fault: str, values: Tensor, expected: Tensor) -> None:
    """To rounding; NaN never passes."""
    for value, other in zip(values.flatten().tolist(), expected.flatten().tolist(), strict=True):
        if not abs(other - value) <= 1e-4 * (1 + abs(other)):
            raise InputError(f"{fault} (log-prob {value:.6g}, not {other:.6g})")


def completion_rewards(model: RewardModel, batch: Batch) -> Tensor:
    """(B, K) reward of each completion, read at its last token (EOS)."""
    hidden = packed_states(model.trunk, batch)[batch.places[:, -1]]
    return model.reward(hidden)[batch.member]
