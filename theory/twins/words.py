"""The assumptions that several figures rest on, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.tasks import Task, WalshTask
from theory.toy import ToyConfig, contains_gold

SFT = "the SFT policy is the task's reference distribution itself"
TABLES = "policies are tables of logits: nothing learned at one prompt or prefix helps at another"


def pairs_of_reference(config: ToyConfig) -> str:
    """How the preference pairs are made in Figs. 3, 5, 7, 9 and 10."""
    return (
        f"{config.n_pairs} preference pairs, two draws of the task's reference each, "
        "Bradley-Terry labels by the gold reward, no other label noise"
    )


def training(config: ToyConfig) -> str:
    """How offline policies are trained."""
    return (
        f"DPO and the local reward model take {config.steps} full-batch Adam steps at rate "
        f"{config.rate:g}, falling linearly to 0"
    )


def walsh_model(task: Task, config: ToyConfig) -> str:
    """The global reward model of an exported task."""
    contains = "contains" if contains_gold(task) else "does not contain"
    return (
        f"the global reward model is linear in Walsh features of degree {task.parameters['degree']}"
        f" of prompt and completion, fitted with ridge {config.ridge:g} on the summed loss; its "
        f"class {contains} the gold reward"
    )


def of_task(task: Task, config: ToyConfig) -> tuple[str, ...]:
    """What figures on the exported task share."""
    return (
        pairs_of_reference(config),
        SFT,
        TABLES,
        training(config),
        walsh_model(task, config),
    )


def own_tasks(spec: WalshTask, config: ToyConfig) -> str:
    """What is drawn for figures with trees of their own."""
    return (
        f"a Walsh task of its own for each replicate (seeds {spec.seed} to "
        f"{spec.seed + config.replicates - 1}), not the exported one: {spec.prompt_bits} "
        f"prompt bits, {spec.completion_bits} completion bits, gold reward of degree "
        f"{spec.degree} and sharpness {spec.sharpness:g}, reference share "
        f"{spec.reference_share:g}; {pairs_of_reference(config)}"
    )


def online(config: ToyConfig) -> str:
    """How online DPO is run."""
    return (
        f"online DPO: {config.samples} samples a preference row at temperature "
        f"{config.temperature:g} token by token, best and worst by the fitted global reward model, "
        f"logits of policy and reference divided by {config.temperature:g} in the loss, as many "
        "steps as DPO; DPO (2x) takes twice as many on one schedule"
    )


def dropped_rows(dropped: Mapping[str, np.ndarray]) -> str:
    """How many rows gave no pair."""
    lost = ", ".join(f"{np.mean(v):.0%} ({name})" for name, v in dropped.items())
    return f"rows whose samples are all identical are dropped: {lost}"


def judged(config: ToyConfig) -> str:
    """How policies are judged."""
    return (
        f"win rate of decoding at temperature {config.decode:g} against one draw of the reference, "
        "by the gold reward, ties half, exact"
    )
