"""Figs. 3, 5, 6, 7 and 8: what policies score, arm by arm, and the differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper_figures.compare import (
    CONTROLLED_CAPTION,
    DIFFERENCE_CAPTION,
    LEVEL_CAPTION,
    differences_panels,
    levels_panel,
)
from paper_figures.levels import (
    ARMS,
    Level,
    gap_level,
    levels,
    measured_row,
    score_name,
    size_words,
    sizes_of,
)
from paper_figures.prose import MINUS
from paper_figures.records import Study
from paper_figures.style import Panel, Picture, label
from theory.predictions import Verdict

TITLES = {
    "fig3": "Fig. 3: online against offline",
    "fig5": "Fig. 5: a short horizon",
    "fig6": "Fig. 6: ROUGE-L as the reward",
    "fig7": "Fig. 7: more prompts for online DPO",
    "fig8": "Fig. 8: data from the SFT policy alone",
}
SCORES = {  # title, axis, and the value that means "no better than the reference"
    "win_rate": ("Win rate of each policy", "win rate against the reference (0-1, ties half)", 0.5),
    "rouge_l": ("ROUGE-L of each policy", "ROUGE-L F1 against the reference (0-1)", None),
}
GAP = ("online_dpo_dpo", "dpo")


@dataclass(frozen=True)
class _Drawn:
    panels: list[Panel]
    levels: list[Level]


def policy_figure(figure: str, study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    found = _Drawn([], []) if study is None else _levels(figure, study)
    gaps = _both_gaps(study) if study is not None and figure == "fig5" else []
    differences = differences_panels(figure, study, verdicts)
    panels = (*found.panels, *gaps, *differences)
    if not panels:
        return None
    controlled = any(level.controlled is not None for level in found.levels)
    caption = [LEVEL_CAPTION] * bool(found.panels) + [CONTROLLED_CAPTION] * controlled
    caption += [DIFFERENCE_CAPTION] * bool(differences)
    return Picture(figure, TITLES[figure], panels, " ".join(caption))


def _levels(figure: str, study: Study) -> _Drawn:
    """One panel a size that has any level."""
    drawn = _Drawn([], [])
    score = score_name(study, figure)
    title, axis, even = SCORES[score]
    found = {
        size: levels(study, score, ARMS[figure], figure, size) for size in sizes_of(study, figure)
    }
    measured = [size for size, rows in found.items() if rows]
    every = [level for rows in found.values() for level in rows]
    for size in measured:
        end = f", {size_words(study, size)}" if len(measured) > 1 else ""
        name = f"{figure}-levels" + (f"-{size}" if size else "")
        panel = levels_panel(name, title + end, axis, found[size], reference=even, beside=every)
        drawn.panels.append(panel)
    drawn.levels.extend(every)
    return drawn


def _both_gaps(study: Study) -> list[Panel]:
    """Fig. 5: what online DPO gains at the short horizon, beside what it gains in Fig. 3."""
    score = score_name(study, "fig5")
    quantity = f"{score}[{GAP[0]}] - {score}[{GAP[1]}]"
    rows = []
    for figure in ("fig3", "fig5"):
        measured = measured_row(study, figure, quantity)
        if measured is None:
            row = gap_level(study, figure, figure, score, GAP)
        else:
            row = Level(figure, measured.per_seed, measured.low, measured.high, measured.interval)
        rows += [row] * bool(row.per_seed)
    if len(rows) < 2:
        return []
    words = f"{label(GAP[0])} {MINUS} {label(GAP[1])}"
    axis = f"{words}, {label(score)} (points, 0-1)"
    return [levels_panel("fig5-gaps", "The gap at both horizons", axis, rows, reference=0.0)]
