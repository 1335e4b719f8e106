"""Small training runs by name, for one process or for several; also a script, for torchrun."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from llm.config import ModelConfig, TrainConfig
from llm.models.build import RewardModel, new_policy, whole_state
from llm.training.objectives import (
    Objective,
    PolicyObjective,
    RewardObjective,
    Row,
    SupervisedObjective,
)
from llm.training.train import is_main, processes, train

PAD, EOS, VOCABULARY = 1, 0, 12
SHAPE = ModelConfig(hidden_size=32, layers=2, heads=2, max_positions=32)
BATCH = 8
gc.freeze()  # accelerate collects after every run: not through all that was imported


def policy(seed: int = 0) -> Any:
    """A small GPT-NeoX."""
    return new_policy(SHAPE, vocabulary=VOCABULARY, eos=EOS, pad=PAD, seed=seed)


def moved(model: Any, spread: float) -> Any:
    """The same model, far from its symmetric start; ready to score."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pairs(n: int, seed: int = 0, reference: tuple[float, float] | None = None) -> list[Row]:
    """Random pairs of ragged lengths, every one ended by EOS; some share their prompt."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

    prompts = [ids(2, 9) for _ in range(max(1, n // 2))]
    completions = [((*ids(1, 6), EOS), (*ids(1, 6), EOS)) for _ in range(n)]
    return [Row(prompts[i % len(prompts)], c, reference) for i, c in enumerate(completions)]


@dataclass(frozen=True)
class Case:
    """What to train, on how many rows (35: the last batch has 3), in which pieces."""

    objective: str  # "sft", "rm", "dpo"
    accumulation: int = 1
    shard: bool = False
    order: str = "row"
    precision: str = "fp32"
    killed: bool = False  # broken off in the second epoch and started again
    rows: int = 35


CASES = {
    "dpo": Case("dpo"),
    "dpo in micro-batches": Case("dpo", accumulation=3, order="prompt"),
    "dpo, more parts than rows": Case("dpo", accumulation=6),
    "rm": Case("rm", accumulation=2),
    "sft killed": Case("sft", killed=True),
    "dpo split": Case("dpo", accumulation=2, shard=True),
    "rm split": Case("rm", shard=True),
    "sft split killed": Case("sft", shard=True, killed=True),
}


class KilledError(Exception):
    """Stands for a kill, at the same step in every process."""


def make(case: Case) -> tuple[Objective, list[Row]]:
    """The case's objective and rows."""
    precision = case.precision
    if case.objective == "dpo":
        rows = pairs(case.rows, reference=(-12.0, -13.0))
        objective = PolicyObjective(policy(), beta=0.5, temperature=0.5, precision=precision)
        return objective, rows
    rows = pairs(case.rows)
    if case.objective == "rm":
        return RewardObjective(RewardModel(policy(), seed=1), precision=precision), rows
    rows = [Row(row.prompt, row.completions[:1]) for row in rows]
    return SupervisedObjective(policy(), precision=precision), rows


def run(case: Case, folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """(history, final weights) of two epochs."""

    def once(limit: float) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        def report(fraction: float) -> None:
            if fraction >= limit:
                raise KilledError

        objective, rows = make(case)
        history = train(
            objective,
            rows,
            TrainConfig(BATCH, 1e-3, BATCH, "linear", epochs=2, save_steps=3, order=case.order),
            learning_rate=1e-3,
            pad=PAD,
            seed=0,
            folder=folder,
            report=report,
            accumulation=case.accumulation,
            shard=case.shard and processes() > 1,
        )
        return history, whole_state(objective.model)

    if case.killed:
        try:
            once(0.75)
        except KilledError:
            assert list(folder.glob("checkpoint-*"))
        else:
            raise AssertionError("the run was to be killed")
    return once(2.0)


def take_cpu_for_gpu(wanted: Callable[[], bool]) -> None:
    """Accelerate splits models over GPUs alone: let it take this CPU for one, where wanted."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    start = PartialState.__init__

    def changed(self: PartialState, *arguments: Any, **settings: Any) -> None:
        start(self, *arguments, **settings)
        if wanted() and self.distributed_type == DistributedType.MULTI_CPU:  # later: FSDP, it stays
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = changed  # type: ignore[method-assign]


def refuse_whole_gradients() -> None:
    """Split models keep no gradient whole between micro-batches: on a GPU it would not fit."""
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    def kept(self: FSDPParam) -> None:
        raise AssertionError("a gradient is left whole until the step")

    FSDPParam.to_accumulated_grad_if_needed = kept  # type: ignore[method-assign]


def main() -> None:
    """Every case in this process and its fellows; the first one writes."""
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    shard = False
    take_cpu_for_gpu(lambda: shard)
    refuse_whole_gradients()
    for name, case in CASES.items():
        shard = case.shard
        found = run(case, root / name)
        if is_main():
            torch.save(found, root / f"{name}.pt")


if __name__ == "__main__":
    main()
