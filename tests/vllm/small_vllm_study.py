"""`python -m llm` with a preset that samples with vLLM, and steps long enough to be seen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "llm"))

from small_study import main, presets, small

from llm.config import ModelConfig, StudyConfig


def vllm(kind: str) -> StudyConfig:
    """Heads of 32, which the kernels know."""
    base = small(kind)
    return replace(
        base,
        preset="vllm",
        models={"test": ModelConfig(hidden_size=64, layers=1, heads=2, max_positions=768)},
        wide=(),
        sft=replace(base.sft, fixed_rate=1e-2),
        dpo=replace(base.dpo, fixed_rate=1e-2),
        sampler="vllm",
    )


presets.PRESETS["vllm"] = vllm

if __name__ == "__main__":
    sys.exit(main())
