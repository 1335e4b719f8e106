"""A preset small enough for tests, and `python -m llm` with it; also a script, to be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llm import config as configs
from llm.__main__ import main
from llm.config import ModelConfig, OnlineConfig
from llm.data.config import DataConfig


def small(kind: str) -> configs.StudyConfig:
    """Seconds on one core: a few dozen examples, a few steps a stage, checkpoints often."""
    tiny = configs._tiny(kind)
    if kind == "task":
        data = DataConfig(n_sft=64, n_pairs=48, n_validation_pairs=32)
    else:
        data = DataConfig(n_sft=8, n_pairs=30, n_validation_pairs=6, n_test=4)
    return replace(
        tiny,
        preset="test",
        model=ModelConfig(hidden_size=32, layers=1, heads=1, max_positions=768),
        data=data,
        sft=replace(tiny.sft, save_steps=1),
        dpo=replace(tiny.dpo, batch_size=4, save_steps=4),
        global_rm=replace(tiny.global_rm, batch_size=4),
        online=OnlineConfig(samples=4, pool=tiny.online.pool, temperature=0.5),
    )


configs.PRESETS["test"] = small

if __name__ == "__main__":
    sys.exit(main())
