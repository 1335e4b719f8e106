"""The arms of the proper-learning sweep: what each fits to one set of pairs, and how."""

from theory.arms.base import Candidate, Outcome
from theory.arms.walsh_arms import (
    TOLERANCE,
    Arm,
    Fit,
    fit,
    jacobian_rank,
    logits_to_leaves,
    make_arm,
    newton_linear,
    pair_objective,
    soft_policy,
)

__all__ = [
    "TOLERANCE",
    "Arm",
    "Candidate",
    "Fit",
    "Outcome",
    "fit",
    "jacobian_rank",
    "logits_to_leaves",
    "make_arm",
    "newton_linear",
    "pair_objective",
    "soft_policy",
]
