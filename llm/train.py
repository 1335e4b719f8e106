"""The one training loop, on transformers.Trainer: SFT, reward models, DPO offline and online.

What differs between them is the objective: a module that owns the model and turns a batch into one
loss an example. Everything else (schedule, clipping, checkpoints, resume, data order) is Trainer's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from llm.config import TrainConfig
from llm.forward import Batch, collate, completion_logps, completion_rewards, token_logps
from llm.losses import PairLogps, bradley_terry_loss, dpo_loss, local_loss, sft_loss

LOG_POINTS = 25  # history points a stage
WINDOW = 16  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Row:
    """One training example: prompt ids, one completion (SFT) or chosen and rejected, references."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    reference: tuple[float, ...] | None = None  # the reference's log-probs of the completions, nats


class Objective(nn.Module):
    """A model and its loss. `losses` gives one loss an example and the numbers worth logging."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses in nats and (B,) statistics by name."""
        raise NotImplementedError

    def forward(self, reference: Tensor | None = None, **tensors: Tensor) -> dict[str, Any]:
        """The Trainer's call: the mean loss over the batch."""
        losses, statistics = self.losses(Batch(**tensors), reference)
        return {"loss": losses.mean(), "statistics": statistics}


class SupervisedObjective(Objective):
    """Maximum likelihood of the completion (SFT)."""

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats a token."""
        losses = sft_loss(token_logps(self.model, batch), batch.completion_mask)
        losses = losses[batch.member[:, 0]]
        return losses, {"nats_per_token": losses}


class RewardObjective(Objective):
    """Bradley-Terry over a global reward model."""

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats a pair."""
        rewards = completion_rewards(self.model, batch)  # type: ignore[arg-type]
        chosen, rejected = rewards.unbind(1)
        return bradley_terry_loss(chosen, rejected), _margins("reward", chosen, rejected)


class PolicyObjective(Objective):
    """DPO against a cached reference, or, without one, the local reward model.

    temperature: logits of the policy are divided by it before the softmax (Table 3's note); the
    cached reference must have been computed with the same one.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float,
        temperature: float = 1.0,
        with_reference: bool = True,
    ) -> None:
        super().__init__(model)
        self.beta, self.temperature, self.with_reference = beta, temperature, with_reference

    def losses(self, batch: Batch, reference: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats a pair."""
        logps = completion_logps(self.model, batch, temperature=self.temperature)
        policy = PairLogps(*logps.unbind(1))
        statistics = _margins("logp", policy.chosen, policy.rejected)
        if not self.with_reference:
            return local_loss(policy, beta=self.beta), statistics
        if reference is None:
            raise ValueError("DPO needs the reference's log-probs of every row")
        anchor = PairLogps(*reference.unbind(1))
        losses = dpo_loss(policy, anchor, beta=self.beta)
        margin = self.beta * (policy.margin - anchor.margin)
        return losses, {**statistics, "margin": margin, "accuracy": _accuracy(margin)}


def _margins(kind: str, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
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


class _Collator:
    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = collate([r.prompt for r in rows], [r.completions for r in rows], pad=self.pad)
        tensors = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
        if rows[0].reference is not None:
            tensors["reference"] = torch.tensor([r.reference for r in rows], dtype=torch.float32)
        return tensors


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def prompt_groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows of each prompt, in order of first appearance."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.prompt, []).append(i)
    return list(found.values())


class LengthSampler(torch.utils.data.Sampler):
    """A shuffled order in which neighbours have similar lengths, so that little is padding.

    groups: rows that stay together (rows of one prompt, or single rows). They are shuffled, sorted
    by length inside windows of WINDOW batches, cut into batches of exactly `batch_size` rows and
    the batches shuffled: all from (seed, epoch), so a resumed run goes on in its order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.groups = groups or [[i] for i in range(len(lengths))]

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        shuffled = [self.groups[i] for i in rng.permutation(len(self.groups))]
        window = max(1, WINDOW * self.batch_size * len(self.groups) // len(self.lengths))
        order: list[int] = []
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            for group in sorted(part, key=lambda group: max(self.lengths[i] for i in group)):
                order += group
        whole = len(order) - len(order) % self.batch_size  # a short batch stays the last one
        starts = range(0, whole, self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        for index in rng.permutation(len(batches)):
            yield from batches[index]
        yield from order[whole:]


class _LoggingTrainer(Trainer):
    """Trainer that also logs the means of the objective's statistics since the last log."""

    def __init__(self, *args: Any, by_prompt: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.by_prompt = by_prompt
        self.model_accepts_loss_kwargs = False  # the loss is a mean: let Trainer divide it
        self._sums: dict[str, float] = {}
        self._count = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's mean loss; its statistics are summed for the next log."""
        outputs = model(**inputs)
        if not torch.isfinite(outputs["loss"]):
            raise FloatingPointError(f"the loss is not finite at step {self.state.global_step}")
        for name, value in outputs["statistics"].items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().sum())
        self._count += inputs["member"].shape[0]
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        dataset: Any = train_dataset or self.train_dataset
        lengths = [len(row.prompt) + max(map(len, row.completions)) for row in dataset.rows]
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        groups = prompt_groups(dataset.rows) if self.by_prompt else None
        return LengthSampler(lengths, batch_size=size, seed=self.args.seed, groups=groups)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means, drop Trainer's wall-clock figures (they are no part of a result)."""
        if self._count and "loss" in logs:
            logs |= {name: total / self._count for name, total in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, start_time)


class _Progress(TrainerCallback):
    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step / max(1, state.max_steps))


def train(
    objective: Objective,
    rows: Sequence[Row],
    config: TrainConfig,
    *,
    learning_rate: float,
    pad: int,
    seed: int,
    folder: Path,
    report: Callable[[float], None] = lambda fraction: None,
) -> list[dict[str, float]]:
    """Train in place and return the history; resumes from the newest checkpoint under `folder`.

    Data order and everything random follow from `seed`. A run that was killed and started again on
    the same folder ends with the same weights as an unbroken one.
    """
    steps = math.ceil(len(rows) / config.batch_size) * config.epochs
    every = max(1, steps // LOG_POINTS)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type=config.schedule,
        adam_epsilon=config.adam_eps,
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        use_cpu=not cuda,
        logging_steps=every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=math.ceil(config.save_steps / every) * every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=cuda,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # not DataParallel: it would cut a batch whose rows share prompts
    trainer = _LoggingTrainer(
        model=objective,
        args=arguments,
        train_dataset=_Rows(rows),
        data_collator=_Collator(pad),
        callbacks=[_Progress(report)],
        by_prompt=config.order == "prompt",
    )
    trainer.remove_callback(PrinterCallback)
    _drop_broken_checkpoints(folder)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return [_history(entry) for entry in trainer.state.log_history if "loss" in entry]


def _drop_broken_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a kill cut short: Trainer writes trainer_state.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)


def _history(entry: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if isinstance(value, int | float)}


@torch.no_grad()
def score(
    measure: Callable[[Batch], Tensor],
    rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    pad: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    report: Callable[[float], None] = lambda fraction: None,
) -> list[tuple[float, ...]]:
    """`measure` (completion_logps or completion_rewards of a model) of many (prompt, completions).

    Rows are batched by length, to waste little padding, and returned in their own order. All rows
    of one call need the same number of completions.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), i))
    results: list[tuple[float, ...]] = [()] * len(rows)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([rows[i][0] for i in part], [rows[i][1] for i in part], pad=pad)
        for i, values in zip(part, measure(batch.to(device)).double().tolist(), strict=True):
            results[i] = tuple(values)
        report(min(1.0, (start + len(part)) / len(order)))
    return results
