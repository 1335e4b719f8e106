"""Fig. 9: global, local and DPO reward models on held-out pairs: loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.compare import (
    DIFFERENCE_CAPTION,
    LEVEL_CAPTION,
    differences_panel,
    levels_panel,
)
from paper_figures.levels import REWARD_MODELS, levels
from paper_figures.records import Study
from paper_figures.style import Picture
from theory.predictions import Verdict

METRICS = (
    ("val_loss", "Validation loss", "nats per pair, each model's own class (lower is better)"),
    ("val_accuracy", "Validation accuracy", "accuracy on held-out pairs (0-1, higher is better)"),
)


def fig9(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    rows = [row for row in verdicts if row.prediction.figure == "fig9"]
    level_panels, difference_panels = [], []
    for metric, title, axis in METRICS:
        found = () if study is None else levels(study, metric, REWARD_MODELS)
        if found:
            level_panels.append(levels_panel(f"fig9-{metric}", title, axis, found))
        mine = [row for row in rows if row.prediction.quantity.startswith(f"{metric}[")]
        if mine:
            unit = mine[0].prediction.unit
            words = f"{title}: differences"
            name = f"fig9-{metric}-differences"
            difference_panels.append(differences_panel(name, words, unit, mine))
    panels = (*level_panels, *difference_panels)
    if not panels:
        return None
    parts = [LEVEL_CAPTION] * bool(level_panels) + [DIFFERENCE_CAPTION] * bool(difference_panels)
    return Picture("fig9", "Fig. 9: reward models in distribution", panels, " ".join(parts))
