"""The one training loop, on transformers.Trainer: SFT, reward models, DPO offline and online.

What differs between them is the objective (`objectives`). Everything else (schedule, clipping,
checkpoints, resume) is Trainer's; the order of the rows and their split over micro-batches and
processes is `order`'s, so that neither changes a loss.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    get_available_reporting_integrations,
)
from transformers.trainer_utils import get_last_checkpoint

from llm.config import TrainConfig
from llm.errors import InputError
from llm.models.build import autocast, layer_classes
from llm.models.packing import FILL, Batch, collate
from llm.runtime import MICRO_TOKENS
from llm.training.objectives import Objective, Row
from llm.training.order import Collator, LengthSampler, Loader, Rows, Shares, cuts, prompt_groups

LOG_POINTS = 25  # history points a stage
# To the tracker alone, no part of a result: what a clock read, and how passes were cut.
SPEED = "tokens_per_second"
PADDING = "padding"  # the share of a pass that holds no token


def processes() -> int:
    """How many processes train together (torchrun's WORLD_SIZE; 1 without it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files: alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


class _LoggingTrainer(Trainer):
    """Trainer that also logs the means of the objective's statistics since the last log."""

    def __init__(self, *args: Any, sampler: LengthSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.model_accepts_loss_kwargs = False  # the loss is a mean: let Trainer divide it
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._tokens, self._places, self._since = 0, 0, time.perf_counter()

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
        rows = inputs["member"].shape[0] if inputs["share"] else 0  # no row: it fills a place
        for name, value in outputs["statistics"].items():
            total = value.detach().sum().double() if rows else torch.zeros((), dtype=torch.float64)
            self._sums[name] = self._sums.get(name, 0.0) + total.to(value.device)
        self._count += rows
        self._tokens += int((inputs["segment"] != FILL).sum())
        self._places += inputs["segment"].numel()
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def get_train_dataloader(self) -> Loader:
        """This process's micro-batches (accelerate would fill the last with rows of the first)."""
        dataset: Any = self.train_dataset
        arguments = self.args
        shares = Shares(
            self.sampler,
            accumulation=arguments.gradient_accumulation_steps,
            processes=arguments.world_size,
            rank=arguments.process_index,
        )
        return Loader(
            dataset,
            batch_sampler=shares,
            collate_fn=self.data_collator,
            pin_memory=arguments.dataloader_pin_memory,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over all processes; speed and padding go to the tracker alone."""
        if self.state.global_step and "loss" in logs:
            counts = torch.tensor([self._count, self._tokens, self._places], dtype=torch.float64)
            sums = torch.stack([*self._sums.values(), *counts.to(self.args.device)])
            total: Any = self.accelerator.reduce(sums, "sum")
            *means, count, tokens, places = total.tolist()
            logs |= {n: value / count for n, value in zip(self._sums, means, strict=True)}
            logs[PADDING] = 1.0 - tokens / places
            now = time.perf_counter()
            logs[SPEED] = tokens / (now - self._since)
            self._sums, self._count, self._tokens, self._places = {}, 0, 0, 0
            self._since = now
        super().log(logs, start_time)
        for name in (SPEED, PADDING):
            self.state.log_history[-1].pop(name, None)


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
    micro_tokens: int = MICRO_TOKENS,
    accumulation: int | None = None,
    shard: bool = False,
    save: bool = True,
    tracker: str = "none",
    tracker_folder: Path | None = None,
) -> list[dict[str, float]]:
    """Train in place and return the history; resumes from the newest checkpoint under `folder`.

    Data order and everything random follow from `seed`. A run that was killed and started again on
    the same folder ends with the same weights as an unbroken one. Under torchrun every process
    calls it, and the step is still one of `config.batch_size` rows.

    micro_tokens: of a pass at most; a row with more is one by itself. accumulation: passes of a
    process a step, in place of as many as that takes. Both change rounding alone. shard: weights,
    gradients and optimizer states are split over the processes (FSDP), in place of a copy each
    (DDP). save: whether checkpoints are written. tracker: see `check_tracker`; TensorBoard's files
    go to tracker_folder.
    """
    reporters, callbacks = _trackers(tracker, tracker_folder)
    sampler = LengthSampler(
        [row.tokens for row in rows],
        batch_size=config.batch_size,
        seed=seed,
        groups=prompt_groups(rows) if config.order == "prompt" else None,
    )
    passes = accumulation or sampler.passes(micro_tokens, processes(), config.epochs)
    arguments = _arguments(
        config,
        len(rows),
        learning_rate=learning_rate,
        seed=seed,
        folder=folder,
        accumulation=passes,
        report_to=reporters,
        save_strategy="steps" if save else "no",
        **(_sharding(objective) if shard else {}),
    )
    trainer = _LoggingTrainer(
        model=objective,
        args=arguments,
        train_dataset=Rows(rows),
        data_collator=Collator(pad),
        callbacks=[_Progress(report), *callbacks],
        sampler=sampler,
    )
    trainer.remove_callback(PrinterCallback)
    if is_main():
        _drop_broken_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    newest = get_last_checkpoint(str(folder))
    _check_layout(newest, shard)
    trainer.train(resume_from_checkpoint=newest)
    return [_history(entry) for entry in trainer.state.log_history if "loss" in entry]


class _Arguments(TrainingArguments):
    """TrainingArguments whose CPU has no number: torch.load refuses "cpu:0" when a run resumes."""

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        found = super().device
        return torch.device("cpu") if found.type == "cpu" else found


def _arguments(
    config: TrainConfig,
    rows: int,
    *,
    learning_rate: float,
    seed: int,
    folder: Path,
    accumulation: int,
    **more: Any,
) -> TrainingArguments:
    """Trainer's settings: those of the tables, and what makes a run repeatable."""
    steps = math.ceil(rows / config.batch_size) * config.epochs
    every = max(1, steps // LOG_POINTS)
    cuda = torch.cuda.is_available()
    arguments = _Arguments(
        output_dir=str(folder),
        per_device_train_batch_size=-(-config.batch_size // (accumulation * processes())),
        gradient_accumulation_steps=accumulation,
        num_train_epochs=config.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type=config.schedule,
        adam_epsilon=config.adam_eps,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=seed,
        data_seed=seed,
        use_cpu=not cuda,
        ddp_backend=None if processes() == 1 else "nccl" if cuda else "gloo",
        ddp_find_unused_parameters=False if processes() > 1 else None,
        logging_steps=every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=math.ceil(config.save_steps / every) * every,
        save_total_limit=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=cuda,
        **more,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # not DataParallel: it would cut a batch whose rows share prompts
    return arguments


def _sharding(objective: Objective) -> dict[str, Any]:
    """FSDP: weights, gradients and optimizer states split over the GPUs.

    A layer's weights are gathered for its forward pass and again for its backward pass. Gradients
    are split after every micro-batch: left whole until the step, as accelerate leaves them by
    default, they would take 4 bytes a parameter on every GPU.
    """
    settings = {
        "version": 2,
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "transformer_layer_cls_to_wrap": layer_classes(objective.model),
    }
    at_once = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return {"fsdp": True, "fsdp_config": settings, "accelerator_config": at_once}


def check_tracker(name: str) -> None:
    """Raise InputError for a tracker that Trainer does not know or that is not installed.

    "tensorboard", the default, is used where it is installed, and "none" asks for none.
    """
    known = get_available_reporting_integrations()
    if name not in ("none", "tensorboard", *known):
        there = ", ".join(("none", *known))
        raise InputError(f"--tracker {name}: not installed or not known; there are: {there}")


def _trackers(name: str, folder: Path | None) -> tuple[list[str], list[TrainerCallback]]:
    """(what Trainer reports to, callbacks of our own); TensorBoard's files go to `folder`."""
    check_tracker(name)
    if name == "none" or not is_main():
        return [], []
    if name != "tensorboard":
        return [name], []
    if name not in get_available_reporting_integrations() or folder is None:
        return [], []
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return [], [callback]


def _drop_broken_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a kill cut short: Trainer writes trainer_state.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)


def _check_layout(checkpoint: str | None, shard: bool) -> None:
    """Raise InputError for a checkpoint split over GPUs where this run is not, or the reverse."""
    if checkpoint is None or shard == any(Path(checkpoint).glob("pytorch_model_fsdp*")):
        return
    then, now = ("whole", "split over GPUs") if shard else ("split over GPUs", "whole")
    raise InputError(
        f"{checkpoint} holds a model {then}, and this run trains it {now}: go on with the "
        "--gpus of before, or remove the folder to begin the stage again"
    )


def _history(entry: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if isinstance(value, int | float)}


@torch.no_grad()
def score(
    measure: Callable[[Batch], Tensor],
    rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    pad: int,
    tokens: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    report: Callable[[float], None] = lambda fraction: None,
) -> list[tuple[float, ...]]:
    """`measure` (completion_logps or completion_rewards of a model) of many (prompt, completions).

    A pass takes as many rows as have `tokens` tokens, at least one; values are returned in the
    order of the rows, which need the same number of completions each. precision:
    `llm.models.build.autocast`'s.
    """
    costs = [len(prompt) + sum(map(len, group)) for prompt, group in rows]
    results: list[tuple[float, ...]] = [()] * len(rows)
    for part in cuts(costs, tokens):
        batch = collate([rows[i][0] for i in part], [rows[i][1] for i in part], pad=pad)
        with autocast(precision, device):
            measured = measure(batch.to(device))
        for i, values in zip(part, measured.double().tolist(), strict=True):
            results[i] = tuple(values)
        report((part[-1] + 1) / len(rows))
    return results
