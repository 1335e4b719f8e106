"""The objectives of preference fine-tuning on a token tree: losses, and the optima they have.

One sense throughout: a loss, to be minimised; returns carry a minus sign. A loss is a pure function
of log_p (P, L), the log-probability of every completion (-inf at slots that are no completion), as
`theory.classes.chain(policies.log_policy(theta))` makes it, differentiable in theta. Population
data are pairs with fractional counts, or exact distributions; finite data are counts.
"""

from theory.objectives.optima import (
    Optimum,
    best_of_n_sft_optimum,
    dpo_optimum,
    ipo_optimum,
    mle_optimum,
    policy_gradient_optimum,
    rlhf_optimum,
    rwr_optimum,
    simpo_optimum,
    slic_optimum_of_two,
    slic_zero_loss,
)
from theory.objectives.pairs import (
    dpo_loss,
    ipo_loss,
    lengths,
    mle_loss,
    reference_free_dpo_loss,
    simpo_loss,
    slic_loss,
)
from theory.objectives.returns import (
    best_of_n_sft_loss,
    policy_gradient_loss,
    reinforce_loss,
    rlhf_loss,
    rwr_loss,
    sft_loss,
)

__all__ = [
    "Optimum",
    "best_of_n_sft_loss",
    "best_of_n_sft_optimum",
    "dpo_loss",
    "dpo_optimum",
    "ipo_loss",
    "ipo_optimum",
    "lengths",
    "mle_loss",
    "mle_optimum",
    "policy_gradient_loss",
    "policy_gradient_optimum",
    "reference_free_dpo_loss",
    "reinforce_loss",
    "rlhf_loss",
    "rlhf_optimum",
    "rwr_loss",
    "rwr_optimum",
    "sft_loss",
    "simpo_loss",
    "simpo_optimum",
    "slic_loss",
    "slic_optimum_of_two",
    "slic_zero_loss",
]
