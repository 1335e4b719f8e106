"""`python -m llm study`: run or resume the stages behind the paper's figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from llm.commands.options import Options
from llm.errors import InputError
from llm.study.costs import Machine


@dataclass(frozen=True, kw_only=True)
class Study(Options):
    """Train, sample and measure everything that the figures need; then hold it against theory.

    Reads data (a theory task, a folder of TL;DR files, or hub data sets by name) and predictions;
    writes OUT/stages, OUT/study.json, OUT/measurements.json and OUT/verdicts.json. Killed at any
    moment and started again, it goes on where it was and ends with the same numbers.

    Examples:
      python -m llm study fig3 fig9 --preset tiny --out out/study
      python -m llm study fig3 --preset paper --dry-run
      python -m llm study fig9 --data tldr/ --tokenizer 20B_tokenizer.json --out out/real
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """fig3 .. fig10; none means all that the data allow."""
    seeds: int | None = None
    """Training seeds 0 .. N-1; SFT is shared. Default: 3 with the paper's presets, else 2."""
    predictions: Path | None = None
    """predictions.json from `python -m theory forecast`. Default: the shipped ones."""
    dry_run: bool = False
    """Print the stage graph and what it would take (GPU hours, memory, disk, questions to the
    judge); run nothing, ask nobody."""
    json: bool = False
    """With --dry-run: print the plan as JSON."""
    cluster: str | None = None
    """Run stages as Ray tasks: local, auto, or host:port of a cluster that shares this file
    system."""
    machine: Annotated[Machine, tyro.conf.OmitArgPrefixes] = field(default_factory=Machine)
    """The GPU that a plan's hours and memory are estimated for."""

    def run(self) -> int:
        """Exit code: 0 when every stage is done, 1 when one failed, 2 for bad input."""
        from llm.study.request import default_seeds
        from llm.study.study import planned, run_study

        request = self.request(
            figures=self.figures,
            seeds=default_seeds(self.preset) if self.seeds is None else self.seeds,
            predictions=self.predictions,
            cluster=self.cluster,
        )
        if not self.dry_run:
            if self.json:
                raise InputError("--json is of --dry-run; `status --json` tells of a study")
            return run_study(request)
        plan = planned(request, self.machine)
        if self.json:
            print(json.dumps(plan.to_json(), indent=1, allow_nan=False))
        else:
            from llm.study.plan_text import print_plan

            print_plan(plan)
        return 0
