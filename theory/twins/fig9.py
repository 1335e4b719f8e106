"""Fig. 9: global, local and DPO reward models, judged on pairs like those they were trained on."""

from __future__ import annotations

from theory.tasks import Task
from theory.toy import ToyConfig, ToyResult
from theory.twins import words
from theory.twins.base import ACCURACY_UNIT, LOSS_UNIT, Figure, Twin, difference
from theory.twins.fig3 import simulate

CLAIM = (
    "Going from a global to a local to a DPO reward model makes the validation likelihood and "
    "accuracy worse (App. B, Fig. 9)."
)


def read(task: Task, config: ToyConfig, result: ToyResult) -> Twin:
    """Losses (worse - better) and accuracies (better - worse)."""
    loss, accuracy = result.val_loss, result.val_accuracy
    return Twin(
        (
            difference("val_loss", loss, "local_rm", "global_rm", LOSS_UNIT),
            difference("val_loss", loss, "dpo_rm", "local_rm", LOSS_UNIT),
            difference("val_accuracy", accuracy, "global_rm", "local_rm", ACCURACY_UNIT),
            difference("val_accuracy", accuracy, "local_rm", "dpo_rm", ACCURACY_UNIT),
        ),
        task.family,
        (
            *words.of_task(task, config),
            f"scale of the local reward model 1/H = 1/{task.tree.horizon}, of DPO's "
            f"{config.dpo_beta:g}; both start at the reference",
            "loss and accuracy in expectation over fresh pairs of the same kind, ties half",
        ),
    )


FIGURE = Figure("fig9", CLAIM, simulate, read)
