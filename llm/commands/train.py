"""`python -m llm train`: one model of a study, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from llm.commands.options import Options


@dataclass(frozen=True, kw_only=True)
class Train(Options):
    """Train one model (and whatever it rests on) into a study folder.

    STAGE is a stage of `python -m llm study --dry-run`, with its seed: sft, global_rm[0],
    local_rm[0], dpo[0], dpo_2x[0], online_dpo_sft[0], online_dpo_dpo[0]. A later `study` with the
    same configuration finds it done.

    Under torchrun (several nodes; each needs the study's folder) all its processes train STAGE
    together, whose inputs must be done; on one node --gpus N does that by itself.

    Examples:
      python -m llm train dpo[0] --preset tiny --out out/study
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m llm train dpo@6.9b[0] --preset paper --out /shared/study
    """

    stage: Annotated[str, tyro.conf.Positional]
    """The stage to train."""

    def run(self) -> int:
        """Exit code: 0 when the model is there, 1 when a stage failed, 2 for bad input."""
        from llm.errors import InputError
        from llm.study.study import run_study

        seed = 0
        if "[" in self.stage:
            digits = self.stage.partition("[")[2].removesuffix("]")
            if not digits.isdecimal():
                raise InputError(f"stage {self.stage!r}: the seed in brackets is no number")
            seed = int(digits)
        return run_study(self.request(seeds=seed + 1, only=self.stage))
