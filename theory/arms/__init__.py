"""The arms of the proper-learning sweep: what each fits to one set of pairs, and how.

ARMS[name](batch, weights) -> Outcome. All arms are given the same pairs and the same ridges.
"""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.arms.base import Candidate, FitArm, Outcome
from theory.arms.linear import two_stage, two_stage_full
from theory.arms.newton import newton_linear
from theory.arms.proper import offline_proper
from theory.arms.tabular import TOLERANCE, offline_all, offline_all_one_hot, offline_matched
from theory.batch import Batch


def _later(name: str, module: str, function: str, **options: Any) -> tuple[str, FitArm]:
    """An arm and its name; its module is imported when it is first called."""

    def arm(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
        fit = getattr(importlib.import_module(f"theory.arms.{module}"), function)
        return fit(batch, weights, **options)

    arm.__name__ = name
    return name, arm


ONLINE = dict(
    _later(
        f"online_{pairs}_{start}",
        *("online", "online_arm"),
        from_dpo=start == "dpo",
        population=pairs == "population",
    )
    for pairs, start in product(("dpo", "population"), ("sft", "dpo"))
)
NETWORKS = dict(
    _later(f"{kind}_{road}", "network_arms", "network_arm", kind=kind, road=road)
    for kind, road in product(("mlp", "transformer"), ("two_stage", "offline", "dpo"))
)

ARMS: dict[str, FitArm] = {
    "two_stage": two_stage,
    "two_stage_full": two_stage_full,
    "offline_all": offline_all,
    "offline_all_one_hot": offline_all_one_hot,
    "offline_matched": offline_matched,
    "offline_proper": offline_proper,
    **ONLINE,
    **NETWORKS,
}

__all__ = [
    "ARMS",
    "TOLERANCE",
    "Candidate",
    "FitArm",
    "Outcome",
    "newton_linear",
]
