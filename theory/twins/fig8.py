"""Fig. 8: preference data from the SFT policy alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from theory.tasks import Task
from theory.toy import Report, Toy, ToyConfig, World, online_policies, run_replicates, task_world
from theory.twins import words
from theory.twins.base import WIN_UNIT, Figure, Twin, difference

CLAIM = (
    "With pairs of two SFT samples at temperature 0.1 online DPO from DPO still improves on DPO, "
    "and online DPO from SFT roughly matches it (App. A.4, Fig. 8)."
)
MARGIN = 0.02  # win rate: what counts as a match
NARROW = 0.1  # temperature of the data


@dataclass(frozen=True, eq=False)
class Rates:
    """Win rates (R,), and shares of rows dropped or, for the data, of two identical samples."""

    win_rate: dict[str, np.ndarray]
    dropped: dict[str, np.ndarray]
    temperature: float


def simulate(
    task: Task, config: ToyConfig, report: Report, *, temperature: float = NARROW
) -> Rates:
    """DPO and both online policies, all from pairs of the SFT policy at `temperature`."""
    world = task_world(task)

    def one(world: World, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        keys = jax.random.split(key, 3)
        toy = Toy(world, config)
        drawn = toy.preferences(keys[0], toy.log_probs(toy.sft, temperature))
        pairs = toy.without_equals(drawn)
        score, dpo = toy.global_reward(pairs), toy.dpo(pairs)
        from_sft, from_dpo, dropped = online_policies(toy, keys[1:], pairs, score, dpo)
        policies = {
            "sft": toy.sft,
            "dpo": dpo,
            "online_dpo_sft": from_sft,
            "online_dpo_dpo": from_dpo,
        }
        return (
            {name: toy.judge(logits) for name, logits in policies.items()},
            {"data": 1.0 - jnp.mean(pairs.weight), **dropped},
        )

    win_rate, dropped = run_replicates(one, world, config, report)
    return Rates(win_rate, dropped, temperature)


def read(task: Task, config: ToyConfig, result: Rates) -> Twin:
    """Both online policies against DPO."""
    rates = result.win_rate
    return Twin(
        (
            difference("win_rate", rates, "online_dpo_dpo", "dpo", WIN_UNIT),
            difference(
                "win_rate",
                rates,
                "online_dpo_sft",
                "dpo",
                WIN_UNIT,
                relation="equal",
                margin=MARGIN,
            ),
        ),
        task.family,
        (
            f"{config.n_pairs} preference pairs, two draws of the reference at temperature "
            f"{result.temperature:g} each, Bradley-Terry labels by the gold reward; the reward "
            "model and DPO see these pairs alone",
            words.SFT,
            words.TABLES,
            words.training(config),
            words.walsh_model(task, config),
            words.online(config),
            words.dropped_rows(result.dropped),
            words.judged(config),
        ),
    )


OTHERS = {
    "data at temperature 0.5 instead of 0.1": partial(simulate, temperature=0.5),
    "data at temperature 1 instead of 0.1": partial(simulate, temperature=1.0),
}
FIGURE = Figure("fig8", CLAIM, simulate, read, OTHERS)
