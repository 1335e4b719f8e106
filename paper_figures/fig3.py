"""Fig. 3: does online DPO beat offline DPO? Win rates, and the three differences it predicts."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.compare import (
    DIFFERENCE_CAPTION,
    LEVEL_CAPTION,
    differences_panel,
    levels_panel,
)
from paper_figures.levels import POLICIES, levels, score_name
from paper_figures.records import Study
from paper_figures.style import Picture
from theory.predictions import Verdict

SCORES = {  # title, axis, and the value that means "no better than the reference"
    "win_rate": ("Win rate of each policy", "win rate against the reference (0-1, ties half)", 0.5),
    "rouge_l": ("ROUGE-L of each policy", "ROUGE-L F1 against the reference (0-1)", None),
}


def fig3(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    rows = [row for row in verdicts if row.prediction.figure == "fig3"]
    panels = []
    score = "win_rate" if study is None else score_name(study)
    found = () if study is None else levels(study, score, POLICIES)
    if found:
        title, axis, even = SCORES[score]
        panels.append(levels_panel("fig3-levels", title, axis, found, reference=even))
    if rows:
        title = "Predicted and measured differences"
        panels.append(differences_panel("fig3-differences", title, rows[0].prediction.unit, rows))
    if not panels:
        return None
    caption = " ".join([LEVEL_CAPTION] * bool(found) + [DIFFERENCE_CAPTION] * bool(rows))
    return Picture("fig3", "Fig. 3: online against offline", tuple(panels), caption)
