"""Training curves as small multiples: one panel a stage, one line a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from paper_figures.records import Stage, Study
from paper_figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Panel, Picture, label

SEED_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
CAPTION = (
    "Loss on the training batches, nats per example, one line a seed; dashed where a validation "
    "loss was recorded."
)
TRAINING, VALIDATION = ("loss", "train_loss"), ("eval_loss", "val_loss")


def curves_picture(study: Study) -> Picture | None:
    """All training curves of a study, or None where no stage kept a history."""
    kinds = list(dict.fromkeys(stage.stage for stage in study.stages))
    panels = []
    for kind in kinds:
        stages = [s for s in study.stages if s.stage == kind and series(s.history, TRAINING)[0]]
        if stages:
            panels.append(_panel(kind, stages))
    return Picture("curves", "Training curves", tuple(panels), CAPTION) if panels else None


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
        ax.set_title(label(kind))
        ax.legend(loc="best")

    last = "; ".join(f"{s.name} ends at {series(s.history, TRAINING)[1][-1]:.3f}" for s in stages)
    return Panel(f"curve-{kind}", draw, f"Training loss of {label(kind)} against step. {last}", 2.1)
