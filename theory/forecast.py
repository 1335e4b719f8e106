"""One toy prediction for every quantity of Figs. 3 and 9, in the words the measurements use."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from theory.errors import InputError
from theory.predictions import Prediction
from theory.tasks import Task
from theory.toy import ToyConfig, ToyResult, contains_gold

FIGURES = ("fig3", "fig9")
WIN_UNIT = "win-rate points (0-1)"
LOSS_UNIT = "nats per pair"
ACCURACY_UNIT = "accuracy (0-1)"
FIG3_CLAIM = (
    "Online DPO beats offline DPO from the same SFT checkpoint, preference data and number of "
    "gradient steps (section 3.1, Fig. 3)."
)
FIG9_CLAIM = (
    "Going from a global to a local to a DPO reward model makes the validation likelihood and "
    "accuracy worse (App. B, Fig. 9)."
)
# (figure, field of ToyResult, the side that should be greater, the other, unit, claim)
QUANTITIES = (
    ("fig3", "win_rate", "online_dpo_sft", "dpo", WIN_UNIT, FIG3_CLAIM),
    ("fig3", "win_rate", "online_dpo_dpo", "dpo_2x", WIN_UNIT, FIG3_CLAIM),
    ("fig3", "win_rate", "online_dpo_dpo", "dpo", WIN_UNIT, FIG3_CLAIM),
    ("fig9", "val_loss", "local_rm", "global_rm", LOSS_UNIT, FIG9_CLAIM),
    ("fig9", "val_loss", "dpo_rm", "local_rm", LOSS_UNIT, FIG9_CLAIM),
    ("fig9", "val_accuracy", "global_rm", "local_rm", ACCURACY_UNIT, FIG9_CLAIM),
    ("fig9", "val_accuracy", "local_rm", "dpo_rm", ACCURACY_UNIT, FIG9_CLAIM),
)


def check_figures(figures: tuple[str, ...]) -> tuple[str, ...]:
    """The figures without repetition; raises InputError for one that has no forecast."""
    for figure in figures:
        if figure not in FIGURES:
            raise InputError(f"figure {figure!r} has no forecast; known: {', '.join(FIGURES)}")
    if not figures:
        raise InputError(f"name at least one figure of {', '.join(FIGURES)}")
    return tuple(dict.fromkeys(figures))


def forecast(
    task: Task, figures: tuple[str, ...], config: ToyConfig, result: ToyResult
) -> list[Prediction]:
    """The predictions of `figures` from simulated runs; value = mean over replicates.

    The relation is the hypothesis's, "greater", whatever the toy says; where the toy's own mean
    lies on the other side, or within two standard errors of 0, the note says so.
    """
    wanted = check_figures(figures)
    return [_prediction(task, config, result, row) for row in QUANTITIES if row[0] in wanted]


def _prediction(
    task: Task, config: ToyConfig, result: ToyResult, row: tuple[str, ...]
) -> Prediction:
    figure, kind, greater, less, unit, claim = row
    values = getattr(result, kind)
    differences = values[greater] - values[less]
    value = float(np.mean(differences))
    error = float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
    levels = f"{greater} {np.mean(values[greater]):.4f}, {less} {np.mean(values[less]):.4f}"
    note = f"Toy means: {levels}."
    if value <= 0:
        note = f"The toy rung disagrees: its own mean lies on the other side of 0. {note}"
    elif value < 2 * error:
        note = f"The toy rung cannot tell: its mean lies within 2 standard errors of 0. {note}"
    return Prediction(
        figure=figure,
        quantity=f"{kind}[{greater}] - {kind}[{less}]",
        relation="greater",
        value=value,
        error=error,
        unit=unit,
        rung="toy",
        family=task.family,
        assumptions=assumptions(task, config, result, figure),
        paper_claim=claim,
        replicates=len(differences),
        note=note,
    )


def assumptions(task: Task, config: ToyConfig, result: ToyResult, figure: str) -> tuple[str, ...]:
    """What a prediction rests on, in plain words."""
    degree = task.parameters["degree"]
    contains = "contains" if contains_gold(task) else "does not contain"
    shared = (
        f"{config.n_pairs} preference pairs, two draws of the task's reference each, "
        "Bradley-Terry labels by the gold reward, no other label noise",
        "the SFT policy is the task's reference distribution itself",
        "policies are tables of logits: nothing learned at one prompt or prefix helps at another",
        f"DPO and the local reward model take {config.steps} full-batch Adam steps at rate "
        f"{config.rate:g}, falling linearly to 0",
        f"the global reward model is linear in Walsh features of degree {degree} of prompt and "
        f"completion, fitted with ridge {config.ridge:g} on the summed loss; its class "
        f"{contains} the gold reward",
    )
    if figure == "fig9":
        return (
            *shared,
            f"scale of the local reward model 1/H = 1/{task.tree.horizon}, of DPO's "
            f"{config.dpo_beta:g}; both start at the reference",
            "loss and accuracy in expectation over fresh pairs of the same kind, ties half",
        )
    lost = ", ".join(f"{np.mean(v):.0%} ({name})" for name, v in result.dropped.items())
    return (
        *shared,
        f"online DPO: {config.samples} samples a preference row at temperature "
        f"{config.temperature:g} token by token, best and worst by the fitted global reward model, "
        f"logits of policy and reference divided by {config.temperature:g} in the loss, as many "
        "steps as DPO; DPO (2x) takes twice as many on one schedule",
        f"rows whose samples are all identical are dropped: {lost}",
        f"win rate of decoding at temperature {config.decode:g} against one draw of the reference, "
        "by the gold reward, ties half, exact",
    )


def header(task: Task, config: ToyConfig) -> dict[str, object]:
    """What predictions.json says besides the predictions: the task's hash and the settings."""
    return {"task": task.sha256, "settings": asdict(config)}
