"""Fig. 10: best of N by three reward models, on samples of SFT and of DPO."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from theory.tasks import Task
from theory.toy import (
    REWARD_MODELS,
    Report,
    Toy,
    ToyConfig,
    World,
    run_replicates,
    task_world,
)
from theory.twins import words
from theory.twins.base import (
    ACCURACY_UNIT,
    WIN_UNIT,
    Figure,
    Quantity,
    Twin,
    more_pairs,
    other_config,
)

CLAIM = (
    "Out of distribution reward models keep the order of Fig. 9: at large N best-of-N is best by "
    "the global, then the local, then the DPO reward model (App. A.5, Fig. 10)."
)
COUNTS = (1, 2, 5, 10, 25)
SOURCES = ("sft", "dpo")
ORDER = (("global_rm", "local_rm"), ("local_rm", "dpo_rm"))


@dataclass(frozen=True, eq=False)
class Curves:
    """win_rate (R, sources, reward models, counts); accuracy (R, reward models) on DPO's pairs."""

    win_rate: np.ndarray
    accuracy: np.ndarray


def simulate(task: Task, config: ToyConfig, report: Report) -> Curves:
    """Best-of-N curves by every reward model, samples of SFT and DPO, exact."""
    world = task_world(task)

    def one(world: World, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        toy = Toy(world, config)
        pairs = toy.preferences(key)
        dpo, local = toy.dpo(pairs), toy.local(pairs)
        scores = toy.implied(toy.global_reward(pairs), dpo, local)
        sources = [toy.log_probs(logits, config.temperature) for logits in (toy.sft, dpo)]
        rates = [
            [toy.win(toy.best_of(log_p, score, n)) for n in COUNTS]
            for log_p in sources
            for score in scores
        ]
        shape = (len(SOURCES), len(REWARD_MODELS), len(COUNTS))
        plain = toy.log_probs(dpo)
        accuracy = [toy.validate(score, plain)[1] for score in scores]
        return jnp.asarray(rates).reshape(shape), jnp.stack(accuracy)

    return Curves(*run_replicates(one, world, config, report))


def read(task: Task, config: ToyConfig, result: Curves) -> Twin:
    """The order of the reward models at the largest N, and on pairs of the DPO policy."""
    quantities = [
        _at_largest(result.win_rate[:, s], source, first, second)
        for s, source in enumerate(SOURCES)
        for first, second in ORDER
    ]
    for first, second in ORDER:
        a, b = (result.accuracy[:, REWARD_MODELS.index(name)] for name in (first, second))
        name = "val_accuracy_on_dpo_pairs"
        means = {first: float(a.mean()), second: float(b.mean())}
        quantities.append(
            Quantity(f"{name}[{first}] - {name}[{second}]", a - b, ACCURACY_UNIT, means)
        )
    return Twin(
        tuple(quantities),
        task.family,
        (
            *words.of_task(task, config),
            f"scale of the local reward model 1/H = 1/{task.tree.horizon}, of DPO's "
            f"{config.dpo_beta:g}; both start at the reference",
            f"best of N samples of the SFT policy and of DPO at temperature "
            f"{config.temperature:g}; scores without that temperature; exact",
            "win rate against one draw of the reference, by the gold reward, ties half, exact",
            "pairs of the DPO policy: two draws at temperature 1, labels by the gold reward",
        ),
    )


def _at_largest(rates: np.ndarray, source: str, first: str, second: str) -> Quantity:
    """rates (R, reward models, counts) of samples of `source`."""
    rows = {name: rates[:, REWARD_MODELS.index(name)] for name in (first, second)}
    means = {
        f"{name} at N = {n}": float(row[:, i].mean())
        for name, row in rows.items()
        for i, n in enumerate(COUNTS)
    }
    n = COUNTS[-1]
    return Quantity(
        f"win_rate[best_of_{n}_{source}_{first}] - win_rate[best_of_{n}_{source}_{second}]",
        rows[first][:, -1] - rows[second][:, -1],
        WIN_UNIT,
        means,
    )


OTHERS = {
    "samples at temperature 1 instead of 0.1": other_config(simulate, temperature=1.0),
    "four times as many preference pairs": more_pairs(simulate, 4),
}
FIGURE = Figure("fig10", CLAIM, simulate, read, OTHERS)
