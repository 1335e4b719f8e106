"""A preset small enough for tests, and `python -m llm` with it; also a script, to be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llm.__main__ import main
from llm.config import ModelConfig, OnlineConfig, StudyConfig
from llm.data.config import DataConfig
from llm.protocol import presets


def small(kind: str) -> StudyConfig:
    """Seconds on one core: a few dozen examples, a few steps a stage, checkpoints often."""
    tiny = presets._tiny(kind)
    if kind == "task":
        data = DataConfig(n_sft=64, n_pairs=48, n_validation_pairs=32)
    else:
        data = DataConfig(n_sft=8, n_pairs=30, n_validation_pairs=6, n_test=4)
    return replace(
        tiny,
        preset="test",
        models={
            "test": ModelConfig(hidden_size=32, layers=1, heads=1, max_positions=768),
            "less": ModelConfig(hidden_size=16, layers=1, heads=1, max_positions=768),
        },
        data=data,
        branches={name: replace(data, **_own(old)) for name, old in tiny.branches.items()},
        sft=replace(tiny.sft, save_steps=1),
        dpo=replace(tiny.dpo, batch_size=4, save_steps=4),
        global_rm=replace(tiny.global_rm, batch_size=4),
        online=OnlineConfig(samples=4, pool=tiny.online.pool, temperature=0.5),
    )


def _own(limits: DataConfig) -> dict[str, object]:
    """What a branch's limits have of their own, sizes aside."""
    names = ("prompt_end", "paired_prompts", "max_completion_tokens")
    return {name: getattr(limits, name) for name in names}


presets.PRESETS["test"] = small

if __name__ == "__main__":
    sys.exit(main())
