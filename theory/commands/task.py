"""`python -m theory task`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from theory.outputs import check_output
from theory.tasks import WalshTask, make_task, save_task


@dataclass(frozen=True)
class Task:
    """Export a ground-truth task for the language-model study.

    Writes task.json: tokens, prompts, and for every completion of every prompt the gold reward and
    the probability under the distribution that SFT data are drawn from. Same options, same bytes.

    Example: python -m theory task --out out/task.json --seed 1
    """

    out: Path
    """File to write."""
    walsh: Annotated[WalshTask, tyro.conf.arg(name="")] = field(default_factory=WalshTask)

    def run(self) -> int:
        """0 when the file is written."""
        check_output(self.out, "--out")
        body = make_task(self.walsh)
        save_task(self.out, body)
        leaves = len(next(iter(body["reward"].values())))
        print(f"{self.out}: {len(body['prompts'])} prompts, {leaves} completions each")
        return 0
