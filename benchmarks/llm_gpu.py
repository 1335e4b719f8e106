"""A training step of each kind, scoring and sampling at a Pythia's shape, random weights, in bf16.

The batches are the paper's (Tables 2 to 4) in micro-batches; prompts and completions have TL;DR's
lengths. Printed, and written with --json: seconds a step, tokens a second, peak memory.

    python benchmarks/llm_gpu.py --json gpu.json                  # 1.4B on one GPU
    python benchmarks/llm_gpu.py --shape tiny --device cpu --batch 4 --prompts 2    # anywhere
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from timing import machine, version

from llm.config import ModelConfig, TrainConfig
from llm.models.build import RewardModel, autocast, new_policy
from llm.models.forward import completion_logps, completion_rewards
from llm.sampling.sample import TransformersSampler
from llm.training.objectives import (
    Objective,
    PolicyObjective,
    RewardObjective,
    Row,
    SupervisedObjective,
)
from llm.training.train import score, train

EOS, PAD = 0, 1
SHAPES = {  # Pythia's, vocabulary as published (padded)
    "1.4b": (ModelConfig(hidden_size=2048, layers=24, heads=16, max_positions=2048), 50304),
    "2.8b": (ModelConfig(hidden_size=2560, layers=32, heads=32, max_positions=2048), 50304),
    "6.9b": (ModelConfig(hidden_size=4096, layers=32, heads=32, max_positions=2048), 50432),
    "70m": (ModelConfig(hidden_size=512, layers=6, heads=8, max_positions=2048), 50304),
    "tiny": (ModelConfig(hidden_size=32, layers=1, heads=1, max_positions=640), 300),
}
PROMPT, COMPLETION = (200, 512), (20, 53)  # tokens, shortest and longest; TL;DR's middle half


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    shape: Literal["1.4b", "2.8b", "6.9b", "tiny"] = "1.4b"
    device: Literal["cuda", "cpu"] = "cuda"
    precision: Literal["bf16", "fp32"] = "bf16"
    batch: int | None = None
    """Rows a step. Default: the paper's, 128 or, for the global reward model, 64."""
    micro_tokens: int = 2**13
    """Tokens a pass at most."""
    steps: int = 3
    """Optimizer steps timed, after one that is not."""
    prompts: int = 16
    """Prompts scored and sampled from, 25 completions each."""
    only: tuple[str, ...] = ()
    """sft, global_rm, local_rm, dpo, score, reward, sample; none means all."""
    json: Path | None = None


@dataclass(frozen=True)
class Line:
    """One measurement. memory: the most that tensors took on the GPU, None on a CPU."""

    what: str
    rows: int  # a step, or in all
    seconds: float
    tokens_per_second: float
    memory_gib: float | None
    parameters: int
    first_loss: float | None = None


def random_rows(count: int, vocabulary: int, completions: int) -> list[Row]:
    """Prompts and completions of random tokens, closed by EOS."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(2, vocabulary, (length,), generator=generator).tolist())

    low, high = COMPLETION
    return [
        Row(ids(*PROMPT), tuple((*ids(low - 1, high - 1), EOS) for _ in range(completions)))
        for _ in range(count)
    ]


def tokens_of(rows: Sequence[Row]) -> int:
    """Tokens of prompts and completions."""
    return sum(len(row.prompt) + sum(map(len, row.completions)) for row in rows)


class Clock:
    """Seconds and the most memory, from here on."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.start = self.now()

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None


def training(what: str, options: Options) -> Line:
    """Whole steps of `llm.training.train`, the first left out of the time."""
    shape, vocabulary = SHAPES[options.shape]
    batch = options.batch or (64 if what == "global_rm" else 128)
    rows = random_rows(batch * (1 + options.steps), vocabulary, 1 if what == "sft" else 2)
    if what == "dpo":  # any finite reference: its numbers do not change the work
        rows = [replace(row, reference=(-200.0, -200.0)) for row in rows]
    clock = Clock(options.device)
    with torch.device(options.device):
        policy = new_policy(shape, vocabulary=vocabulary, eos=EOS, pad=PAD, seed=0)
        model = RewardModel(policy, seed=0) if what == "global_rm" else policy
    objective = _objective(what, model, options.precision)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            objective,
            rows,
            TrainConfig(batch, 3e-7, batch, "linear", save_steps=10**6),
            learning_rate=3e-7,
            pad=PAD,
            seed=0,
            folder=Path(folder),
            report=lambda fraction: ends.append(clock.now()),
            micro_tokens=options.micro_tokens,
            save=False,
        )
    seconds = (ends[-1] - ends[0]) / options.steps
    speed = tokens_of(rows) / (1 + options.steps) / seconds
    parameters = sum(p.numel() for p in model.parameters())
    return Line(what, batch, seconds, speed, clock.memory, parameters, history[0]["loss"])


def _objective(what: str, model: Any, precision: str) -> Objective:
    if what == "sft":
        return SupervisedObjective(model, precision=precision)
    if what == "global_rm":
        return RewardObjective(model, precision=precision)
    local = what == "local_rm"
    beta = 1 / 53 if local else 0.05
    return PolicyObjective(model, beta=beta, with_reference=not local, precision=precision)


def measuring(what: str, options: Options) -> Line:
    """Scoring 25 completions a prompt by log-prob or reward, or drawing them."""
    shape, vocabulary = SHAPES[options.shape]
    rows = random_rows(options.prompts, vocabulary, 25)
    clock = Clock(options.device)
    with torch.device(options.device):
        policy = new_policy(shape, vocabulary=vocabulary, eos=EOS, pad=PAD, seed=0).eval()
        model = RewardModel(policy, seed=0).eval() if what == "reward" else policy
    run: Callable[[], Any] = partial(_sample if what == "sample" else _score, model, rows, options)
    run()  # the first one also compiles, allocates, looks things up
    start = clock.now()
    tokens = run()
    seconds = clock.now() - start
    parameters = sum(p.numel() for p in model.parameters())
    return Line(what, len(rows), seconds, tokens / seconds, clock.memory, parameters)


def _score(model: Any, rows: Sequence[Row], options: Options) -> int:
    measure = completion_rewards if isinstance(model, RewardModel) else completion_logps
    score(
        partial(measure, model),
        [(row.prompt, row.completions) for row in rows],
        pad=PAD,
        tokens=options.micro_tokens,
        device=options.device,
        precision=options.precision,
    )
    return tokens_of(rows)


def _sample(model: Any, rows: Sequence[Row], options: Options) -> int:
    """Tokens drawn (of random weights, nearly all completions run to the limit)."""
    sampler = TransformersSampler(model, eos=EOS, pad=PAD, batch_prompts=options.prompts)
    with autocast(options.precision, options.device):
        drawn = sampler.sample(
            [row.prompt for row in rows], k=25, temperature=1.0, max_tokens=COMPLETION[1], seed=0
        )
    return sum(len(sample.ids) for samples in drawn for sample in samples)


KINDS: dict[str, Callable[[str, Options], Line]] = {
    **dict.fromkeys(("sft", "global_rm", "local_rm", "dpo"), training),
    **dict.fromkeys(("score", "reward", "sample"), measuring),
}


def main(options: Options) -> int:
    """Print and write every measurement; 2 for what cannot be run here."""
    unknown = set(options.only) - set(KINDS)
    if unknown:
        print(f"error: --only {min(unknown)}: none of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: there is no GPU here", file=sys.stderr)
        return 2
    lines = [KINDS[what](what, options) for what in options.only or KINDS]
    print(f"{'':10} {'rows':>5} {'seconds':>9} {'tokens/s':>10} {'GiB':>7}")
    for line in lines:
        memory = "-" if line.memory_gib is None else f"{line.memory_gib:.1f}"
        numbers = f"{line.rows:5} {line.seconds:9.3f} {line.tokens_per_second:10.0f} {memory:>7}"
        print(f"{line.what:10} {numbers}")
    if options.json is not None:
        record = {
            "benchmark": "llm_gpu",
            "options": {k: v for k, v in asdict(options).items() if k != "json"},
            "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
            "machine": machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
            "lines": [asdict(line) for line in lines],
        }
        options.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
