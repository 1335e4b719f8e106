"""The presets: the paper's Tables 1-4 at its three sizes, and two that train from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from llm.config import (
    DataKind,
    EvalConfig,
    JudgeConfig,
    ModelConfig,
    OnlineConfig,
    StudyConfig,
    TrainConfig,
)
from llm.data.config import DataConfig
from llm.errors import InputError

Pool = Literal["row", "prompt"]
TWO_WORDS = "Two-Word TL;DR:"
PYTHIA = {
    size: ModelConfig(pretrained=f"EleutherAI/pythia-{size}-deduped")
    for size in ("1.4b", "2.8b", "6.9b")
}


def _sft(batch_size: int, **changes: Any) -> TrainConfig:
    """SFT, on which the paper's tables are silent: its rate and schedule are the reward model's."""
    return TrainConfig(batch_size, 3e-6, 128, "cosine", **changes)


def _global_rm(batch_size: int, **changes: Any) -> TrainConfig:
    """Table 2."""
    return TrainConfig(batch_size, 3e-6, 64, "cosine", **changes)


def _dpo(batch_size: int, **changes: Any) -> TrainConfig:
    """Table 3, and with another beta Table 4."""
    return TrainConfig(batch_size, 3e-7, 128, "linear", **changes)


def _tiny(kind: DataKind) -> StudyConfig:
    """Minutes on two CPU cores. SFT starts from random weights, hence its own fixed rate."""
    return _tiny_task() if kind == "task" else _tiny_text()


def _tiny_task() -> StudyConfig:
    data = DataConfig(n_sft=4096, n_pairs=1024, n_validation_pairs=1024)
    shapes = {"tiny": (64, 2, 2), "nano": (32, 1, 1), "mini": (96, 3, 3)}
    return StudyConfig(
        "tiny",
        "task",
        {name: _scratch(*shape, max_positions=64) for name, shape in shapes.items()},
        data,
        _sft(32, fixed_rate=3e-3),
        _global_rm(8),
        _dpo(16),
        branches={
            "two_word": data,
            "ranked": data,
            "few_prompts": replace(data, paired_prompts=0.5),
        },
        online=OnlineConfig(samples=8, batch_prompts=128),
    )


def _tiny_text() -> StudyConfig:
    data = DataConfig(n_sft=1500, n_pairs=6000, n_validation_pairs=400, n_test=200)
    shapes = {"tiny": (32, 2, 1), "nano": (16, 1, 1)}
    pool: Pool = "prompt"  # text: what the rows of a prompt share is computed once a step
    return StudyConfig(
        "tiny",
        "text",
        {name: _scratch(*shape, max_positions=704) for name, shape in shapes.items()},
        data,
        _sft(16, fixed_rate=3e-3),
        _global_rm(16, order=pool),
        _dpo(32, order=pool),
        branches={"two_word": _two_word(data, n_test=None)},
        online=OnlineConfig(samples=8, pool=pool, batch_prompts=8, more_prompts=1000),
        evaluation=EvalConfig(pool=8, counts=(1, 2, 4, 8)),
    )


def _scratch(hidden_size: int, layers: int, heads: int, *, max_positions: int) -> ModelConfig:
    return ModelConfig(
        hidden_size=hidden_size, layers=layers, heads=heads, max_positions=max_positions
    )


def _tiny_of(n_pairs: int, kind: DataKind) -> StudyConfig:
    """The tiny preset with another number of training pairs; steps x rate stays as it is."""
    tiny = _tiny(kind)
    branches = {name: replace(data, n_pairs=n_pairs) for name, data in tiny.branches.items()}
    data = replace(tiny.data, n_pairs=n_pairs)
    return replace(tiny, preset=f"tiny-{n_pairs}", data=data, branches=branches)


def _two_word(data: DataConfig, n_test: int | None) -> DataConfig:
    """App. C.1: another end of the prompt, five tokens; 6000 test prompts (App. C.4)."""
    return replace(
        data, prompt_end=TWO_WORDS, max_completion_tokens=5, n_test=n_test or data.n_test
    )


def _small(kind: DataKind) -> StudyConfig:
    """Hours on two CPU cores, minutes on a GPU; still from scratch."""
    tiny = _tiny(kind)
    positions = tiny.models["tiny"].max_positions
    shapes = {"small": (256, 4, 4), "smaller": (128, 2, 2)}
    models = {name: _scratch(*shape, max_positions=positions) for name, shape in shapes.items()}
    sft = replace(tiny.sft, fixed_rate=1e-3, epochs=4)
    return replace(
        tiny,
        preset="small",
        models=models,
        sft=sft,
        online=replace(tiny.online, samples=25, pool="row", more_prompts=None),
        evaluation=EvalConfig(),
    )


def _pythia(name: str, sizes: tuple[str, ...], kind: DataKind) -> StudyConfig:
    """The paper's own setting (Tables 1-4): GPUs, the hub's models, the hub's data, a judge."""
    data = DataConfig(n_test=600) if kind == "text" else _tiny_task().data
    own = {"two_word": _two_word(data, 6000)} if kind == "text" else _tiny_task().branches
    return StudyConfig(
        name,
        kind,
        {size: PYTHIA[size] for size in sizes},
        data,
        _sft(128, fixed_rate=3e-6),
        _global_rm(64, fixed_rate=3e-6),
        _dpo(128, fixed_rate=3e-7),
        branches=own,
        wide=("fig3", "fig4", "fig9", "fig10"),
        judge=JudgeConfig(model="gpt-4o"),
        sampler="vllm",
        precision="bf16",
        judges_text=True,
    )


PRESETS: dict[str, Callable[[DataKind], StudyConfig]] = {
    "tiny": _tiny,
    **{f"tiny-{n}": partial(_tiny_of, n) for n in (256, 4096)},  # pairs: less, more (make bridge)
    "small": _small,
    **{size: partial(_pythia, size, (size,)) for size in PYTHIA},
    "paper": partial(_pythia, "paper", tuple(PYTHIA)),
}


def preset(name: str, kind: DataKind) -> StudyConfig:
    """The configuration of a preset for a theory task or for text. Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name](kind)
