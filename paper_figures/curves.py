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
LOGP_TITLE = "Log-probabilities during preference training"
LOGP_CAPTION = (
    "Log-probability of the preferred (solid) and the other completion (dashed), nats, mean over a "
    "step's pairs; one colour a seed."
)
CHOSEN, REJECTED = ("chosen_logp",), ("rejected_logp",)
TRAINING, VALIDATION = ("loss", "train_loss"), ("eval_loss", "val_loss")


def curves_pictures(study: Study) -> tuple[Picture, ...]:
    """Losses of the main branch and size, then of all others; log-probs of both completions."""
    kinds = dict.fromkeys((s.stage, bool(s.branch or s.size)) for s in study.stages)
    drawn: dict[bool, list[Panel]] = {False: [], True: []}
    for kind, other in kinds:
        stages = [s for s in study.stages if s.stage == kind and series(s.history, TRAINING)[0]]
        if stages:
            drawn[other].append(_panel(kind, stages))
    named = ((False, "curves", "Training curves"), (True, "curves-more", "More training curves"))
    found = [
        Picture(name, title, tuple(drawn[other]), CAPTION)
        for other, name, title in named
        if drawn[other]
    ]
    panels = tuple(_logp_panel(stages) for stages in _with_logps(study))
    return (*found, *([Picture("logps", LOGP_TITLE, panels, LOGP_CAPTION)] if panels else []))


def _with_logps(study: Study) -> list[list[Stage]]:
    """Stages of the main branch and size that logged log-probs, the seeds of one kind together."""
    found: dict[str, list[Stage]] = {}
    for stage in study.stages:
        if not stage.branch + stage.size and series(stage.history, CHOSEN)[0]:
            found.setdefault(stage.base, []).append(stage)
    return list(found.values())


def logp_sentences(study: Study) -> list[str]:
    """Where the preferred completions became less probable while the margin grew."""
    out = []
    for stages in _with_logps(study):
        ends = [series(stage.history, CHOSEN)[1] for stage in stages]
        fell = sum(values[-1] < values[0] for values in ends)
        if fell:
            out.append(
                f"{stage_words(stages[0])}: the log-probability of preferred completions fell in "
                f"{fell} of {len(ends)} runs. The loss raises the margin, not the preferred "
                "completion, so this alone is no fault."
            )
    return out


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


def _logp_panel(stages: Sequence[Stage]) -> Panel:
    def draw(ax: Axes) -> None:
        for i, stage in enumerate(stages):
            colour = SEED_COLOURS[i % len(SEED_COLOURS)]
            ax.plot(
                *series(stage.history, CHOSEN), color=colour, lw=1.1, label=f"seed {stage.seed}"
            )
            ax.plot(*series(stage.history, REJECTED), color=colour, lw=1.1, ls="--")
        ax.set_xlabel("step")
        ax.set_ylabel("log-probability (nats)")
        ax.set_title(stage_words(stages[0]))
        ax.legend(loc="best")

    ends = [(stage.name, series(stage.history, CHOSEN)[1]) for stage in stages]
    said = "; ".join(f"{name} from {values[0]:.2f} to {values[-1]:.2f}" for name, values in ends)
    title = f"Log-probability of preferred completions in {stage_words(stages[0])}"
    return Panel(f"logp-{stages[0].stage}", draw, f"{title}: {said}", 2.1)
