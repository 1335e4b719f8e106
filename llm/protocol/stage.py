"""One stage of a study, and the word that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Inputs = tuple[tuple[str, str], ...]
TRAINING = ("sft", "global_rm", "local_rm", "dpo", "online_dpo")  # kinds, one process a GPU


@dataclass(frozen=True)
class Stage:
    """One stage. `settings` and the hashes of `inputs` decide its content; cost is a weight."""

    name: str  # "online_pairs_sft"
    kind: str  # which function runs it (llm.stages.kinds)
    seed: int | None
    inputs: Inputs  # (role, stage id): ("policy", "dpo[0]")
    settings: Mapping[str, Any]
    cost: float
    branch: str = ""
    size: str = ""  # "" for the main size

    @property
    def label(self) -> str:
        """Name, branch and size: "dpo", "dpo.narrow@2.8b"."""
        return label(self.name, self.branch, self.size)

    @property
    def id(self) -> str:
        """ "dpo[0]", or "sft" for a stage that all seeds share."""
        return self.label if self.seed is None else f"{self.label}[{self.seed}]"


def label(name: str, branch: str = "", size: str = "") -> str:
    """Name, branch and size in one word; the main branch and size are not written."""
    return name + (f".{branch}" if branch else "") + (f"@{size}" if size else "")
