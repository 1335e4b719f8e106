"""Fig. 3: online against offline DPO, from one SFT policy, one data set and as many steps."""

from __future__ import annotations

from theory import toy
from theory.tasks import Task
from theory.toy import Report, ToyConfig, ToyResult
from theory.twins import words
from theory.twins.base import WIN_UNIT, Figure, Twin, difference

CLAIM = (
    "Online DPO beats offline DPO from the same SFT checkpoint, preference data and number of "
    "gradient steps (section 3.1, Fig. 3)."
)
PAIRS = (("online_dpo_sft", "dpo"), ("online_dpo_dpo", "dpo_2x"), ("online_dpo_dpo", "dpo"))


def simulate(task: Task, config: ToyConfig, report: Report) -> ToyResult:
    """Five policies and three reward models on the exported task; Fig. 9 reads the same runs."""
    return toy.simulate(task, config, report)


def read(task: Task, config: ToyConfig, result: ToyResult) -> Twin:
    """The quantities of Fig. 3."""
    rates = result.win_rate
    return Twin(
        tuple(difference("win_rate", rates, a, b, WIN_UNIT) for a, b in PAIRS),
        task.family,
        (
            *words.of_task(task, config),
            words.online(config),
            words.dropped_rows(result.dropped),
            words.judged(config),
        ),
    )


FIGURE = Figure("fig3", CLAIM, simulate, read)
