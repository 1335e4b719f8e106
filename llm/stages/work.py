"""One stage being run: what every kind of stage is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm import tables
from llm.config import TrainConfig
from llm.data.example import Example
from llm.protocol.stage import Stage
from llm.runtime import Runtime


@dataclass(frozen=True)
class Work:
    """One stage being run: where its inputs stand, where its own files go."""

    stage: Stage
    inputs: Mapping[str, Path]  # role -> folder of the finished stage
    folder: Path
    source: str  # of the branch's data, for the data stage
    tokenizer: str | None
    runtime: Runtime = field(default_factory=Runtime)
    report: Callable[[float], None] = lambda fraction: None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the graph fixed for this stage."""
        return self.stage.settings

    @property
    def study(self) -> Path:
        """The study's folder: what stages share (the store of verdicts) stands there."""
        return self.folder.parent.parent

    def examples(self, part: str) -> list[Example]:
        """Tokenised examples: those that the branch made itself, else those of the data stage."""
        made = self.inputs.get("made")
        if made is not None and (made / f"{part}.parquet").exists():
            return _examples(made / f"{part}.parquet")
        return _examples(self.inputs["data"] / f"{part}.parquet")

    @property
    def vocabulary(self) -> dict[str, int]:
        """{"size", "eos", "pad"} of the data stage's tokenizer."""
        return json.loads((self.inputs["data"] / "vocabulary.json").read_text())

    @property
    def train_config(self) -> TrainConfig:
        """The stage's own training settings."""
        settings = {k: v for k, v in self.settings["train"].items() if k != "precision"}
        return TrainConfig(**settings)

    @property
    def seed(self) -> int:
        """The stage's seed (SFT's stands in its settings: all seeds share it)."""
        return int(self.settings["seed"] if self.stage.seed is None else self.stage.seed)


@lru_cache(maxsize=8)
def _examples(path: Path) -> list[Example]:
    return tables.read_examples(path)
