"""A prediction for every quantity of Figs. 3 to 10, in the words the measurements use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from theory.errors import InputError
from theory.predictions import Prediction
from theory.tasks import Task, WalshTask, load_task, make_task, save_task
from theory.toy import ToyConfig
from theory.twins import FIGURES, Figure, Quantity, Reproduced, Twin
from theory.twins.base import Simulate

Progress = Callable[[str, int], object]  # (what runs, replicates done)


@dataclass(frozen=True)
class Row:
    """A prediction, and whether the twin that it comes from reproduces the paper's claim."""

    prediction: Prediction
    reproduced: Reproduced
    elsewhere: bool = False
    """Whether the note says what other settings give."""


def check_figures(figures: Sequence[str]) -> tuple[str, ...]:
    """The figures without repetition; raises InputError for one that has no forecast."""
    for figure in figures:
        if figure not in FIGURES:
            raise InputError(f"figure {figure!r} has no forecast; known: {', '.join(FIGURES)}")
    if not figures:
        raise InputError(f"name at least one figure of {', '.join(FIGURES)}")
    return tuple(dict.fromkeys(figures))


def read_task(path: Path | None) -> Task:
    """The task of a file, or the default Walsh task as `python -m theory task` writes it."""
    if path is not None:
        return load_task(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        save_task(file, make_task(WalshTask()))
        return load_task(file)


def forecast(
    task: Task,
    figures: Sequence[str],
    config: ToyConfig,
    progress: Progress = lambda what, done: None,
) -> list[Row]:
    """The predictions of `figures`; value = mean over replicates.

    The relation is the paper's, whatever the twin says. Where the twin contradicts it, or cannot
    tell, by two standard errors, the note says so, and what the figure's other settings give.
    """
    runs: dict[Simulate, Any] = {}
    rows = []
    for name in check_figures(figures):
        figure = FIGURES[name]
        if figure.simulate not in runs:
            runs[figure.simulate] = figure.simulate(task, config, _labelled(progress, name))
        twin = figure.read(task, config, runs[figure.simulate])
        progress(name, config.replicates)
        regimes = _regimes(task, figure, config, progress, twin)
        rows += [
            _row(figure, twin, place, regimes, config.replicates)
            for place in range(len(twin.quantities))
        ]
    return rows


def _regimes(
    task: Task, figure: Figure, config: ToyConfig, progress: Progress, twin: Twin
) -> dict[str, Twin]:
    """What the figure's controls give, and its other settings where the claim is not reproduced.

    On a quarter of the replicates.
    """
    settings = dict(figure.controls)
    if any(quantity.reproduced != "yes" for quantity in twin.quantities):
        settings |= figure.others
    few = replace(config, replicates=max(2, config.replicates // 4))
    made = {}
    for i, (words, simulate) in enumerate(settings.items(), 1):
        label = f"{figure.name}, other setting {i}"
        result = simulate(task, few, _labelled(progress, label))
        progress(label, config.replicates)
        made[words] = figure.read(task, few, result)
    return made


def _labelled(progress: Progress, label: str) -> Callable[[int], object]:
    progress(label, 0)
    return lambda done: progress(label, done)


def _row(figure: Figure, twin: Twin, place: int, regimes: dict[str, Twin], replicates: int) -> Row:
    quantity = twin.quantities[place]
    prediction = Prediction(
        figure=figure.name,
        quantity=quantity.name,
        relation=quantity.relation,
        value=quantity.value,
        error=quantity.error,
        unit=quantity.unit,
        rung="toy",
        family=twin.family,
        assumptions=twin.assumptions,
        paper_claim=figure.claim,
        margin=quantity.margin,
        replicates=replicates,
        note=_note(quantity, {words: t.quantities[place] for words, t in regimes.items()}),
    )
    return Row(prediction, quantity.reproduced, bool(regimes))


def _note(quantity: Quantity, regimes: dict[str, Quantity]) -> str:
    """The means, after what the twin says of the claim and before what other settings give."""
    parts = ", ".join(f"{name} {mean:.4f}" for name, mean in quantity.means.items())
    note = f"Toy means: {parts}."
    words = {"yes": "the claim holds", "no": "it does not hold", "undecided": "undecided"}
    elsewhere = ""
    for setting, other in regimes.items():
        number = f"{other.value:+.4f} ({other.error:.4f})"
        elsewhere += f" With {setting}: {number}, {words[other.reproduced]}."
    if quantity.reproduced == "yes":
        return note + elsewhere
    if quantity.relation == "equal":
        where = f"the margin +-{quantity.margin:g}"
        outside, near = f"lies outside {where}", f"lies within 2 standard errors of {where}"
    else:
        outside = "lies on the other side of 0"
        near = "lies within 2 standard errors of 0"
    if quantity.reproduced == "no":
        note = f"The twin contradicts this: its mean {outside}. {note}"
    else:
        note = f"The twin cannot tell: its mean {near}. {note}"
    return note + elsewhere


def header(task: Task, config: ToyConfig) -> dict[str, object]:
    """What predictions.json says besides the predictions: the task's hash and the settings."""
    return {"task": task.sha256, "settings": asdict(config)}


def summary(rows: Sequence[Row]) -> dict[str, str]:
    """For each figure whether its twin reproduces it: yes, no, undecided, or in part and how."""
    found = {}
    for figure in dict.fromkeys(row.prediction.figure for row in rows):
        mine = [row for row in rows if row.prediction.figure == figure]
        counts = {v: sum(row.reproduced == v for row in mine) for v in ("yes", "no", "undecided")}
        whole = [verdict for verdict, count in counts.items() if count == len(mine)]
        parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
        found[figure] = whole[0] if whole else f"in part: {', '.join(parts)}"
    return found
