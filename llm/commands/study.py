"""`python -m llm study`: run or resume the stages behind the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Study:
    """Train, sample and measure everything that the figures need; then hold it against theory.

    Reads data (a theory task, a folder of TL;DR files, or hub data sets by name) and predictions;
    writes OUT/stages, OUT/study.json, OUT/measurements.json and OUT/verdicts.json. Killed at any
    moment and started again, it goes on where it was and ends with the same numbers.

    Examples:
      python -m llm study fig3 fig9 --preset tiny --out out/study
      python -m llm study fig9 --data tldr/ --tokenizer 20B_tokenizer.json --out out/real
    """

    out: Path
    """Folder of the study: new, empty, or one of the same configuration."""
    figures: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """fig3, fig9; none means all."""
    preset: str = "tiny"
    """tiny (CPU, minutes), small, 1.4b (the paper's, needs a GPU)."""
    seeds: int = 2
    """Training seeds 0 .. N-1; SFT is shared."""
    data: str | None = None
    """A task.json, a folder or file of TL;DR data, or hub names owner/name[,owner/name]. Default:
    the task that ships with the package."""
    tokenizer: str | None = None
    """tokenizer.json, folder or hub name; needed for text, refused for a task."""
    model: str | None = None
    """A pretrained causal LM by hub name or folder, in place of the preset's model."""
    predictions: Path | None = None
    """predictions.json from `python -m theory forecast`. Default: the shipped ones."""
    jobs: int | None = None
    """Stages at a time. Default: one a CPU core, or one on a GPU. Numbers do not depend on it."""
    dry_run: bool = False
    """Print the stage graph and what is done; run nothing."""

    def run(self) -> int:
        """Exit code: 0 when every stage is done, 1 when one failed, 2 for bad input."""
        from llm.study import Request, prepare, print_plan, run_study

        request = Request(
            self.out,
            self.figures,
            self.preset,
            self.seeds,
            self.data,
            self.tokenizer,
            self.model,
            self.predictions,
            self.jobs,
        )
        if self.dry_run:
            print_plan(prepare(request)[0])
            return 0
        return run_study(request)
