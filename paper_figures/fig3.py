"""Fig. 3: does online DPO beat offline DPO? Win rates, and the three differences it predicts."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.compare import (
    DIFFERENCE_CAPTION,
    LEVEL_CAPTION,
    differences_panel,
    levels_panel,
)
from paper_figures.levels import POLICIES, levels
from paper_figures.records import Study
from paper_figures.style import Picture
from theory.predictions import Verdict


def fig3(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    rows = [row for row in verdicts if row.prediction.figure == "fig3"]
    found = () if study is None else levels(study, "win_rate", POLICIES)
    panels = []
    if found:
        title, axis = "Win rate of each policy", "win rate against the reference (0-1, ties half)"
        panels.append(levels_panel("fig3-levels", title, axis, found, reference=0.5))
    if rows:
        title = "Predicted and measured differences"
        panels.append(differences_panel("fig3-differences", title, rows[0].prediction.unit, rows))
    if not panels:
        return None
    caption = " ".join([LEVEL_CAPTION] * bool(found) + [DIFFERENCE_CAPTION] * bool(rows))
    return Picture("fig3", "Fig. 3: online against offline", tuple(panels), caption)
