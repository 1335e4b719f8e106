"""`python -m llm study`: run or resume the stages behind the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from llm.commands.options import Options


@dataclass(frozen=True, kw_only=True)
class Study(Options):
    """Train, sample and measure everything that the figures need; then hold it against theory.

    Reads data (a theory task, a folder of TL;DR files, or hub data sets by name) and predictions;
    writes OUT/stages, OUT/study.json, OUT/measurements.json and OUT/verdicts.json. Killed at any
    moment and started again, it goes on where it was and ends with the same numbers.

    Examples:
      python -m llm study fig3 fig9 --preset tiny --out out/study
      python -m llm study fig9 --data tldr/ --tokenizer 20B_tokenizer.json --out out/real
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """fig3 .. fig10; none means all that the data allow."""
    seeds: int = 2
    """Training seeds 0 .. N-1; SFT is shared."""
    predictions: Path | None = None
    """predictions.json from `python -m theory forecast`. Default: the shipped ones."""
    dry_run: bool = False
    """Print the stage graph and what is done; run nothing."""

    def run(self) -> int:
        """Exit code: 0 when every stage is done, 1 when one failed, 2 for bad input."""
        from llm.study import prepare, print_plan, run_study

        request = self.request(figures=self.figures, seeds=self.seeds, predictions=self.predictions)
        if self.dry_run:
            print_plan(prepare(request)[0])
            return 0
        return run_study(request)
