"""The toy rung: policies and reward models trained on finite data, on one exact tree."""

from theory.toy.five import (
    POLICIES,
    REWARD_MODELS,
    ToyResult,
    five_policies,
    online_policies,
    simulate,
)
from theory.toy.pieces import Pairs, Toy, ToyConfig, World, make_world, mean_loss
from theory.toy.replicates import Report, run_replicates
from theory.toy.shared_policies import policy_basis
from theory.toy.walsh_worlds import contains_gold, task_world, walsh_worlds

__all__ = [
    "POLICIES",
    "REWARD_MODELS",
    "Pairs",
    "Report",
    "Toy",
    "ToyConfig",
    "ToyResult",
    "World",
    "contains_gold",
    "five_policies",
    "make_world",
    "mean_loss",
    "online_policies",
    "policy_basis",
    "run_replicates",
    "simulate",
    "task_world",
    "walsh_worlds",
]
