"""Training curves as small multiples: one panel a stage, one line a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from paper_figures.levels import stage_words
from paper_figures.records import Stage, Study
from paper_figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Panel, Picture

SEED_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
CAPTION = (
    "Loss on the training batches, nats per example, one line a seed; dashed where a validation "
    "loss was recorded."
)
TRAINING, VALIDATION = ("loss", "train_loss"), ("eval_loss", "val_loss")


def curves_pictures(study: Study) -> tuple[Picture, ...]:
    """Training curves: of the main branch and size, then of all others; none without a history."""
    kinds = dict.fromkeys((s.stage, bool(s.branch or s.size)) for s in study.stages)
    drawn: dict[bool, list[Panel]] = {False: [], True: []}
    for kind, other in kinds:
        stages = [s for s in study.stages if s.stage == kind and series(s.history, TRAINING)[0]]
        if stages:
            drawn[other].append(_panel(kind, stages))
    named = ((False, "curves", "Training curves"), (True, "curves-more", "More training curves"))
    return tuple(
        Picture(name, title, tuple(drawn[other]), CAPTION)
        for other, name, title in named
        if drawn[other]
    )


def series(
    history: Sequence[dict[str, Any]], keys: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Steps and values of the first of `keys` in the history; rows without it are left out."""
    for key in keys:
        rows = [row for row in history if _is_number(row.get(key)) and _is_number(row.get("step"))]
        if rows:
            return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
    return [], []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panel(kind: str, stages: Sequence[Stage]) -> Panel:
    title = stage_words(stages[0])

    def draw(ax: Axes) -> None:
        for i, stage in enumerate(stages):
            colour = SEED_COLOURS[i % len(SEED_COLOURS)]
            name = "shared" if stage.seed is None else f"seed {stage.seed}"
            ax.plot(*series(stage.history, TRAINING), color=colour, lw=1.1, label=name)
            steps, values = series(stage.history, VALIDATION)
            if steps:
                ax.plot(steps, values, color=colour, lw=1.1, ls="--")
        ax.set_xlabel("step")
        ax.set_ylabel("loss (nats)")
        ax.set_title(title)
        ax.legend(loc="best")

    last = "; ".join(f"{s.name} ends at {series(s.history, TRAINING)[1][-1]:.3f}" for s in stages)
    return Panel(f"curve-{kind}", draw, f"Training loss of {title} against step. {last}", 2.1)
