"""The same work as `llm` does, as others do it: TRL's trainers, and one row a completion.

Every function returns a call that does the work once. Batches are padded on the right, as TRL's.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llm.models.build import RewardModel, autocast, backbone
from llm.models.target_logps import TargetLogps
from llm.training.losses import PairLogps, dpo_loss
from llm.training.objectives import Row

Ids = Sequence[int]
Lines = Sequence[tuple[Ids, Ids]]  # (prompt, completion)
MAX_NORM = 1.0


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The study's optimizer, the same on both sides."""
    return torch.optim.AdamW(model.parameters(), lr=1e-7, eps=1e-5, weight_decay=0.0, fused=True)


def step(
    losses: Sequence[Callable[[], Tensor]], model: Any, optimizer: torch.optim.Optimizer
) -> float:
    """One optimizer step over micro-batches whose losses add up; the sum."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        value = loss()
        value.backward()
        total += float(value.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return total


# --- TRL -----------------------------------------------------------------------------------------


def word_tokenizer(size: int) -> Any:
    """A tokenizer whose words are the ids themselves, so that TRL reads our ids as they are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({_word(i): i for i in range(size)}, unk_token="2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=_word(0), pad_token=_word(1))


def _word(token: int) -> str:
    return {0: "<eos>", 1: "<pad>"}.get(token, str(token))


def _words(ids: Ids) -> str:
    return "".join(f"{_word(i)} " for i in ids)


def _settings(folder: str, device: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "report_to": [],
        "use_cpu": device == "cpu",
        "per_device_train_batch_size": 1,
        "max_length": None,
        "disable_tqdm": True,
        "dataset_num_proc": None,
        "bf16": False,  # autocast is ours, on both sides
        "gradient_checkpointing": False,
    }


def trl_dpo(
    policy: Any, rows: Sequence[Row], *, micro: int, beta: float, precision: str, device: str
) -> Callable[[], float]:
    """TRL's DPOTrainer with its references computed beforehand; `micro` pairs a pass."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    lines = [
        {
            "prompt": _words(r.prompt),
            "chosen": _words(r.completions[0]).strip(),
            "rejected": _words(r.completions[1]).strip(),
        }
        for r in rows
    ]
    model = copy.deepcopy(policy)
    model.set_attn_implementation("sdpa")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = DPOConfig(**_settings(folder, device), beta=beta, precompute_ref_log_probs=True)
        trainer = DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(lines),
            processing_class=word_tokenizer(model.config.vocab_size),
        )
        found: Any = trainer.train_dataset
        kept = [dict(found[i]) for i in range(len(rows))]
    for line, row in zip(kept, rows, strict=True):
        texts = tuple(tuple(line[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        if texts != (tuple(row.prompt), *map(tuple, row.completions)):
            raise AssertionError("TRL reads other tokens than ours")
        if row.reference is not None:  # ours: its loss then shows whether its log-probs are ours
            line["ref_chosen_logps"], line["ref_rejected_logps"] = row.reference
    return _trl_step(trainer, model, kept, micro, precision, device)


def trl_reward(
    reward: RewardModel, rows: Sequence[Row], *, micro: int, precision: str, device: str
) -> Callable[[], float]:
    """TRL's RewardTrainer on the same trunk and head; `micro` pairs a pass."""
    from datasets import Dataset
    from transformers import GPTNeoXForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    config = copy.deepcopy(reward.config)
    config.num_labels, config.pad_token_id = 1, 1
    model = GPTNeoXForSequenceClassification(config)
    model.gpt_neox.load_state_dict(reward.trunk.state_dict())
    model.score.weight.data.copy_(reward.head.weight.data)  # its head has no bias; ours starts at 0
    model.set_attn_implementation("sdpa")
    lines = [
        {
            "chosen_ids": [*r.prompt, *r.completions[0]],
            "rejected_ids": [*r.prompt, *r.completions[1]],
        }
        for r in rows
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**_settings(folder, device)),
            train_dataset=Dataset.from_list(lines),
            processing_class=word_tokenizer(config.vocab_size),
        )
    return _trl_step(trainer, model, lines, micro, precision, device)


def _trl_step(
    trainer: Any, model: Any, lines: list[dict[str, Any]], micro: int, precision: str, device: str
) -> Callable[[], float]:
    model.to(device).train()
    parts = [lines[i : i + micro] for i in range(0, len(lines), micro)]
    collated = [trainer.data_collator(part) for part in parts]
    batches = [{k: v.to(device) for k, v in batch.items()} for batch in collated]
    optimizer = optimizer_of(model)

    def loss(part: list[dict[str, Any]], batch: dict[str, Tensor]) -> Tensor:
        with autocast(precision, device):
            return trainer.compute_loss(model, dict(batch)) * (len(part) / len(lines))

    calls = [lambda p=p, b=b: loss(p, b) for p, b in zip(parts, batches, strict=True)]
    return lambda: step(calls, model, optimizer)


# --- one row a completion ------------------------------------------------------------------------


def padded(lines: Lines, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, completion mask), each (rows, longest), padded on the right."""
    width = max(len(p) + len(c) for p, c in lines)
    ids = torch.full((len(lines), width), 1)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(lines):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor([*prompt, *completion])
        mask[i, :end] = 1
        scored[i, len(prompt) : end] = True
    return ids.to(device), mask.to(device), scored.to(device)


def plain_logps(model: Any, lines: Lines, device: str) -> Tensor:
    """(rows,) log-prob of each completion: logits at completions only, one row each."""
    ids, mask, scored = padded(lines, device)
    trunk = backbone(model)
    states = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    rounded = torch.is_autocast_enabled(device)
    weight = model.get_output_embeddings().weight
    chosen = TargetLogps.apply(states[:, :-1][scored[:, 1:]], weight, ids[scored], rounded)[0]
    values = torch.zeros(scored.shape, device=device).masked_scatter(scored, chosen)
    return values.sum(1)


def full_logps(model: Any, lines: Lines, device: str) -> Tensor:
    """The same from the logits of every position, as most code has it."""
    ids, mask, scored = padded(lines, device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (chosen * scored[:, 1:]).sum(1)


def plain_rewards(model: RewardModel, lines: Lines, device: str) -> Tensor:
    """(rows,) reward at the last token, one row a completion."""
    ids, mask, _ = padded(lines, device)
    states = model.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.reward(states[torch.arange(len(lines)), mask.sum(1) - 1])


def batches(lines: Lines, size: int) -> Iterator[tuple[list[int], Lines]]:
    """Rows of about one length together: (their places, the rows)."""
    order = sorted(range(len(lines)), key=lambda i: len(lines[i][0]) + len(lines[i][1]))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield part, [lines[i] for i in part]


@torch.no_grad()
def plain_scores(
    measure: Callable[[Any, Lines, str], Tensor],
    model: Any,
    lines: Lines,
    *,
    size: int,
    precision: str,
    device: str,
) -> list[float]:
    """`measure` of every row, `size` rows a pass."""
    found = [0.0] * len(lines)
    for places, part in batches(lines, size):
        with autocast(precision, device):
            values = measure(model, part, device).tolist()
        for place, value in zip(places, values, strict=True):
            found[place] = value
    return found


def plain_dpo(
    policy: Any, rows: Sequence[Row], *, micro: int, beta: float, precision: str, device: str
) -> Callable[[], float]:
    """A DPO step with one row a completion and logits at completions only; `micro` pairs a pass."""
    model = copy.deepcopy(policy).to(device).train()
    optimizer = optimizer_of(model)
    order = sorted(rows, key=lambda row: row.tokens)
    parts = [order[i : i + micro] for i in range(0, len(order), micro)]

    def loss(part: Sequence[Row]) -> Tensor:
        lines = [(row.prompt, row.completions[side]) for side in (0, 1) for row in part]
        anchor = PairLogps(*torch.tensor([r.reference for r in part], device=device).unbind(1))
        with autocast(precision, device):
            logps = plain_logps(model, lines, device)
        losses = dpo_loss(PairLogps(*logps.chunk(2)), anchor, beta=beta)
        return losses.sum() / len(rows)

    return lambda: step([lambda p=p: loss(p) for p in parts], model, optimizer)
