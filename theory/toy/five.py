"""The five policies of Fig. 3 and the three reward models of Fig. 9, all from the same pairs."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from theory.tasks import Task
from theory.toy.pieces import Pairs, Toy, ToyConfig, World
from theory.toy.replicates import Report, run_replicates
from theory.toy.walsh_worlds import task_world

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")


@dataclass(frozen=True)
class ToyResult:
    """Per replicate, (R,) each."""

    win_rate: dict[str, np.ndarray]  # policy -> against one reference draw, ties half, 0-1
    val_loss: dict[str, np.ndarray]  # reward model -> nats a pair
    val_accuracy: dict[str, np.ndarray]  # reward model -> 0-1, ties half
    dropped: dict[str, np.ndarray]  # online policy -> share of pairs whose samples were identical


def simulate(task: Task, config: ToyConfig, report: Report = lambda done: None) -> ToyResult:
    """Run every replicate; report(n) is called as the first n are done.

    Raises InputError for a task that is not a Walsh task, one bit a token, without EOS.
    """
    world = task_world(task)

    def one(world: World, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        return five_policies(Toy(world, config), key)

    return ToyResult(*run_replicates(one, world, config, report))


def five_policies(toy: Toy, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
    """(win_rate, val_loss, val_accuracy, dropped) of one data set."""
    keys = jax.random.split(key, 3)
    pairs = toy.preferences(keys[0])
    score = toy.global_reward(pairs)
    dpo, twice = toy.dpo(pairs), toy.dpo(pairs, 2 * toy.config.steps)
    local = toy.local(pairs)
    from_sft, from_dpo, dropped = online_policies(toy, keys[1:], pairs, score, dpo)
    policies = (toy.sft, dpo, twice, from_sft, from_dpo)
    implied = toy.implied(score, dpo, local)
    judged = {name: toy.validate(r) for name, r in zip(REWARD_MODELS, implied, strict=True)}
    return (
        {name: toy.judge(p) for name, p in zip(POLICIES, policies, strict=True)},
        {name: loss for name, (loss, _) in judged.items()},
        {name: accuracy for name, (_, accuracy) in judged.items()},
        dropped,
    )


def online_policies(
    toy: Toy, keys: jax.Array, pairs: Pairs, score: jax.Array, dpo: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Online DPO from SFT and from DPO on the prompts of `pairs`: logits, and shares dropped."""
    from_sft, lost_sft = toy.online(keys[0], pairs.prompt, score, toy.sft)
    from_dpo, lost_dpo = toy.online(keys[1], pairs.prompt, score, dpo)
    return from_sft, from_dpo, {"online_dpo_sft": lost_sft, "online_dpo_dpo": lost_dpo}
