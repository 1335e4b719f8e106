"""Fig. 6: ROUGE-L against a hidden reference, a verifier as complex as its generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jax.scipy.special import logsumexp

from theory.families import Rouge
from theory.rouge_task import OWN_SEED, RougeTask
from theory.tasks import Task, WalshTask
from theory.toy import Report, Toy, ToyConfig, World, make_world, run_replicates, walsh_worlds
from theory.twins import words
from theory.twins.base import ROUGE_UNIT, Figure, Twin, difference

CLAIM = (
    "With ROUGE-L against unobserved references as reward, online DPO does not improve on offline "
    "DPO; a second epoch of offline DPO does so slightly (section 3.2, Fig. 6)."
)
MARGIN = 0.01  # ROUGE-L F1: what counts as no improvement
K = 25  # samples whose best and worst make a pair
SHARE, OWN = RougeTask.reference_share, RougeTask.reference_sharpness  # of the SFT policy
ROUGE = RougeTask().family()


@dataclass(frozen=True)
class Setting:
    """The family, and its prompts."""

    rouge: Rouge = ROUGE
    walsh: WalshTask | None = None
    """Instead: a simple verifier that prompts share, measured by its own reward."""
    best_and_worst: bool = True
    """Pairs are best and worst of K by the gold reward; otherwise as in Fig. 3."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Expected gold score (R,) by policy, and the share of rows dropped."""

    score: dict[str, np.ndarray]
    dropped: dict[str, np.ndarray]
    setting: Setting


SETTING = Setting()


def simulate(_: Task, config: ToyConfig, report: Report, *, setting: Setting = SETTING) -> Scores:
    """DPO, DPO (2x) and online DPO from DPO."""
    if setting.walsh is None:
        worlds = [rouge_world(replace(setting.rouge, seed=i)) for i in range(config.replicates)]
    else:
        worlds = walsh_worlds(setting.walsh, config.replicates)

    def one(world: World, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        keys = jax.random.split(key, 3)
        toy = Toy(world, config)
        if setting.best_and_worst:
            prompt = toy.prompts(keys[0], config.n_pairs)
            cold = toy.log_probs(toy.sft, config.temperature)
            pairs = toy.best_and_worst(keys[1], prompt, cold, toy.reward, K)
        else:
            pairs = toy.preferences(keys[0])
        dpo, twice = toy.dpo(pairs), toy.dpo(pairs, 2 * config.steps)
        online, lost = toy.online(keys[2], pairs.prompt, toy.global_reward(pairs), dpo)
        policies = {"sft": toy.sft, "dpo": dpo, "dpo_2x": twice, "online_dpo_dpo": online}
        return (
            {name: expected_score(toy, logits) for name, logits in policies.items()},
            {"data": 1.0 - pairs.weight.mean(), "online_dpo_dpo": lost},
        )

    score, dropped = run_replicates(one, worlds, config, report)
    return Scores(score, dropped, setting)


def rouge_world(spec: Rouge) -> World:
    """A tree with ROUGE-L as its reward; the reference leans to it and to another draw of it.

    Features are those of one prompt: every prompt has weights of its own.
    """
    truth = spec.draw()
    own = replace(spec, seed=spec.seed + OWN_SEED, sharpness=OWN).draw().reward
    score = np.where(truth.tree.leaf_mask, SHARE * truth.reward + own, -np.inf)
    log_reference = score - np.asarray(logsumexp(score, axis=1, keepdims=True))
    width = truth.features.shape[2] // spec.prompts
    one = truth.features[0, :, :width] / np.sqrt(spec.prompts)
    return make_world(truth.tree, truth.reward, log_reference, one)


def expected_score(toy: Toy, logits: jax.Array) -> jax.Array:
    """Expected gold reward of decoding, over the best completion's of each prompt.

    That is ROUGE-L F1 itself: it is 1 at the hidden reference, and the reward is in proportion.
    """
    p = jax.numpy.exp(toy.log_probs(logits, toy.config.decode))
    f1 = toy.reward / toy.reward.max(axis=1, keepdims=True)
    return (toy.weights[:, None] * p * f1).sum()


def read(_: Task, config: ToyConfig, result: Scores) -> Twin:
    """Online DPO and DPO (2x) against DPO."""
    score, spec = result.score, result.setting.rouge
    return Twin(
        (
            difference(
                "rouge_l",
                score,
                "online_dpo_dpo",
                "dpo",
                ROUGE_UNIT,
                relation="equal",
                margin=MARGIN,
            ),
            difference("rouge_l", score, "dpo_2x", "dpo", ROUGE_UNIT),
        ),
        "rouge",
        (
            f"a tree of its own for each replicate, not the exported task: {spec.prompts} prompts, "
            f"up to {spec.horizon} words of {spec.words}, a hidden reference of {spec.reference} "
            f"words for each prompt, ROUGE-L F1 times a factor as reward (sharpness "
            f"{spec.sharpness:g})",
            f"the SFT policy is proportional to exp({SHARE:g} reward + another such reward of "
            f"sharpness {OWN:g})",
            f"{config.n_pairs} pairs, best and worst by ROUGE-L of {K} SFT samples at temperature "
            f"{config.temperature:g}",
            words.TABLES,
            words.training(config),
            "the global reward model sums the ROUGE-L with every possible reference, a prompt its "
            f"own weights, ridge {config.ridge:g}; its class contains the gold reward",
            words.online(config),
            words.dropped_rows(result.dropped),
            f"expected ROUGE-L F1 of decoding at temperature {config.decode:g}, exact, on the "
            "prompts that were trained on",
        ),
    )


OTHERS = {
    "32 prompts, half the pairs for each": partial(
        simulate, setting=Setting(replace(ROUGE, prompts=32))
    )
}
CONTROLS = {
    "a simple verifier (the default Walsh task) and pairs made the same way, where H6 expects "
    "online DPO to gain": partial(simulate, setting=Setting(walsh=WalshTask())),
    "a simple verifier and the pairs of Fig. 3, where H6 expects online DPO to gain": partial(
        simulate, setting=Setting(walsh=WalshTask(), best_and_worst=False)
    ),
    "ROUGE-L and the pairs of Fig. 3, where H6 expects online DPO not to gain": partial(
        simulate, setting=Setting(best_and_worst=False)
    ),
}
FIGURE = Figure("fig6", CLAIM, simulate, read, OTHERS, CONTROLS)
