"""The arms of the proper-learning sweep: what each fits to one set of pairs, and how.

ARMS[name](batch, weights) -> Outcome. All arms are given the same pairs and the same ridges.
"""

from __future__ import annotations

import importlib

import numpy as np
from jaxtyping import Float

from theory.arms.base import Candidate, FitArm, Outcome
from theory.arms.linear import two_stage, two_stage_full
from theory.arms.newton import newton_linear
from theory.arms.policies import logits_to_leaves, soft_policy
from theory.arms.proper import offline_proper
from theory.arms.tabular import TOLERANCE, offline_all, offline_all_one_hot, offline_matched
from theory.batch import Batch


def _later(module: str, name: str) -> FitArm:
    """An arm whose module is imported when it is first called."""

    def arm(batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome:
        return getattr(importlib.import_module(f"theory.arms.{module}"), name)(batch, weights)

    arm.__name__ = name
    return arm


ONLINE = (
    "online_dpo_sft",
    "online_dpo_dpo",
    "online_population_sft",
    "online_population_dpo",
)
NETWORKS = (
    "mlp_two_stage",
    "mlp_offline",
    "mlp_dpo",
    "transformer_two_stage",
    "transformer_offline",
    "transformer_dpo",
)

ARMS: dict[str, FitArm] = {
    "two_stage": two_stage,
    "two_stage_full": two_stage_full,
    "offline_all": offline_all,
    "offline_all_one_hot": offline_all_one_hot,
    "offline_matched": offline_matched,
    "offline_proper": offline_proper,
    **{name: _later("online", name) for name in ONLINE},
    **{name: _later("network_arms", name) for name in NETWORKS},
}

__all__ = [
    "ARMS",
    "TOLERANCE",
    "Candidate",
    "FitArm",
    "Outcome",
    "logits_to_leaves",
    "newton_linear",
    "soft_policy",
]
