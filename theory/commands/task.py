"""`python -m theory task`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from theory.errors import InputError
from theory.outputs import check_output
from theory.rouge_task import RougeTask, make_rouge_task
from theory.tasks import WalshTask, make_task, save_task


@dataclass(frozen=True)
class Task:
    """Export a ground-truth task for the language-model study.

    Writes task.json: tokens, prompts, and for every completion of every prompt the gold reward and
    the probability under the distribution that SFT data are drawn from. Same options, same bytes.
    Fig. 5 takes a second task with fewer completion bits, Fig. 6 one of --family rouge.

    Examples:
      python -m theory task --out out/task.json --seed 1
      python -m theory task --out out/short_task.json --completion-bits 2
      python -m theory task --out out/rouge_task.json --family rouge
    """

    out: Path
    """File to write."""
    family: Literal["walsh", "rouge"] = "walsh"
    """walsh: a random polynomial of bits (of full degree: a lookup table). rouge: ROUGE-L against a
    hidden reference for each prompt, with the options --rouge.*"""
    walsh: Annotated[WalshTask, tyro.conf.arg(name="")] = field(default_factory=WalshTask)
    rouge: RougeTask = field(default_factory=RougeTask)

    def run(self) -> int:
        """0 when the file is written."""
        unused = self.rouge != RougeTask() if self.family == "walsh" else self.walsh != WalshTask()
        if unused:
            other = "--rouge.* options" if self.family == "walsh" else "options without --rouge."
            raise InputError(f"--family {self.family} does not read the {other}")
        check_output(self.out, "--out")
        body = make_task(self.walsh) if self.family == "walsh" else make_rouge_task(self.rouge)
        save_task(self.out, body)
        leaves = len(next(iter(body["reward"].values())))
        print(f"{self.out}: {len(body['prompts'])} prompts, {leaves} completions each")
        return 0
