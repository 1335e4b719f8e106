"""Fig. 9: global, local and DPO reward models on held-out pairs: loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.compare import (
    DIFFERENCE_CAPTION,
    differences_panels,
    levels_panel,
)
from paper_figures.levels import ARMS, levels, measured_row, size_words, sizes_of
from paper_figures.prose import number, span
from paper_figures.records import Study
from paper_figures.style import Panel, Picture
from theory.predictions import Verdict

METRICS = (
    ("val_loss", "Validation loss", "nats per pair (lower is better)"),
    ("val_accuracy", "Validation accuracy", "accuracy (0-1, higher is better)"),
)
TITLE = "Fig. 9: reward models in distribution"
CAPTION = (
    "Levels: dots, one for each seed; bar, their mean, with the interval where one was recorded. "
    "On held-out pairs, each model's own class. Matched: batch, learning rate and schedule of the "
    "other reward models."
)


def fig9(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    shown = [] if study is None else _levels(study)
    differences = differences_panels("fig9", study, verdicts)
    panels = (*shown, *differences)
    if not panels:
        return None
    caption = " ".join([CAPTION] * bool(shown) + [DIFFERENCE_CAPTION] * bool(differences))
    return Picture("fig9", TITLE, panels, caption)


def _levels(study: Study) -> list[Panel]:
    """Loss and accuracy side by side, one row of panels a size."""
    names = ARMS["fig9"]
    found = {
        (metric, size): levels(study, metric, names, "fig9", size)
        for size in sizes_of(study, "fig9")
        for metric, _, _ in METRICS
    }
    panels = []
    several = len({size for (_, size), rows in found.items() if rows}) > 1
    for size in sizes_of(study, "fig9"):
        end = f", {size_words(study, size)}" if several else ""
        for metric, title, axis in METRICS:
            if rows := found[metric, size]:
                name = f"fig9-{metric}" + (f"-{size}" if size else "")
                every = [x for (other, _), some in found.items() if other == metric for x in some]
                panels.append(levels_panel(name, title + end, axis, rows, beside=every))
    return panels


def matched_sentences(study: Study) -> list[str]:
    """What becomes of "local is worse than global" once both are trained the same way."""
    quantity = "val_loss[local_rm] - val_loss[global_rm_matched]"
    found = {size: measured_row(study, "fig9", quantity, size) for size in sizes_of(study, "fig9")}
    rows = {size: row for size, row in found.items() if row is not None}
    out = []
    for size, row in rows.items():
        where = f", {size_words(study, size)}" if len(rows) > 1 else ""
        value = f"{number(row.value, sign=True)} {span(row.low, row.high)}".strip()
        note = f" {row.note[:1].upper()}{row.note[1:]}." if row.note else ""
        out.append(
            "Validation loss of Local RM less that of a global reward model trained like the "
            f"others{where}: {value} {row.unit}.{note}"
        )
    return out
