"""Stages run by hand: a data stage, a policy and a reward model of random weights, and a Work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.config import ModelConfig, OnlineConfig
from llm.data.config import DataConfig
from llm.models.build import RewardModel, new_policy, save_policy, save_reward_model
from llm.protocol.graph import Stage
from llm.stages.kinds import make_data
from llm.stages.work import Work

SAMPLING = {"sampler": "transformers", "precision": "fp32"}
SHAPE = ModelConfig(hidden_size=32, layers=1, heads=1, max_positions=768)


def data_stage(
    folder: Path, source: Path, limits: DataConfig, tokenizer: Path | None = None
) -> Path:
    """The folder of a finished data stage."""
    folder.mkdir(parents=True)
    settings = {"limits": asdict(limits), "data": {"split_seed": 0}}
    stage = Stage("data", "data", None, (), settings, 1)
    make_data(Work(stage, {}, folder, str(source), None if tokenizer is None else str(tokenizer)))
    return folder


def random_policy(folder: Path, words: Mapping[str, int], seed: int = 0) -> Path:
    """A small GPT-NeoX whose samples differ: what SFT would leave, untrained."""
    model = new_policy(
        SHAPE, vocabulary=words["size"], eos=words["eos"], pad=words["pad"], seed=seed
    )
    save_policy(model, folder)
    return folder


def random_reward_model(folder: Path, words: Mapping[str, int], seed: int = 1) -> Path:
    """Its head and trunk, untrained."""
    policy = new_policy(
        SHAPE, vocabulary=words["size"], eos=words["eos"], pad=words["pad"], seed=seed
    )
    save_reward_model(RewardModel(policy, seed=seed), folder)
    return folder


def work_of(folder: Path, inputs: Mapping[str, Path], seed: int | None, **settings: Any) -> Work:
    """A stage below folder/stages with the settings that sampling stages share."""
    below = folder / "stages" / "work"
    below.mkdir(parents=True)
    shared: dict[str, Any] = {
        "online": asdict(OnlineConfig(samples=4, temperature=1.0)),
        "sampling": SAMPLING,
        "tokens": 8,
    }
    stage = Stage("work", "", seed, (), {**shared, **settings}, 1)
    return Work(stage, inputs, below, "", None)
