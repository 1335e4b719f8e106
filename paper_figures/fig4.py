"""Fig. 4: best-of-N by reward models of every size, on samples of policies of every size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes

from paper_figures.compare import DIFFERENCE_CAPTION, differences_panels
from paper_figures.levels import (
    Level,
    around_seeds,
    main_size,
    per_seed,
    size_of,
    size_words,
    sizes,
    with_interval,
)
from paper_figures.prose import number
from paper_figures.records import Study
from paper_figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    Panel,
    Picture,
    label,
    legend_below,
)
from theory.predictions import Verdict

LOOKS = ((BLUE, "o"), (ORANGE, "v"), (GREEN, "s"), (PURPLE, "D"), (VERMILION, "^"))
SCORES = ("win_rate", "rouge_l")
TITLE = "Fig. 4: reward model size against policy size"
CAPTION = (
    "Both panels show the same numbers. Marks: the mean over seeds of best-of-N at the largest N, "
    "with the 95% t interval over seeds, which may leave the frame; small dots, one for each seed."
)
Grid = dict[tuple[str, str], Level]  # (policy size, reward model size) -> its level


def fig4(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a level nor a prediction to draw."""
    score, found = ("", {}) if study is None else _grid(study)
    shown: list[Panel] = []
    if study is not None and found:
        shown = [_panel(study, found, score, by_policy=side) for side in (True, False)]
    differences = differences_panels("fig4", study, verdicts)
    panels = (*shown, *differences)
    if not panels:
        return None
    caption = " ".join([CAPTION] * bool(shown) + [DIFFERENCE_CAPTION] * bool(differences))
    return Picture("fig4", TITLE, panels, caption)


def _grid(study: Study) -> tuple[str, Grid]:
    """What was measured ("" for nothing) and its level for every crossing that was run."""
    order = sizes(study)
    for score in SCORES:
        grid = {}
        for policy, rm in product(order, order):
            if level := _cell(study, score, policy, rm or main_size(study)):
                grid[policy, rm] = level
        if grid:
            return score, grid
    return "", {}


def _cell(study: Study, score: str, policy: str, rm: str) -> Level | None:
    """Best-of-N at the largest N: as measured, else out of the stages' own records."""
    name = re.compile(rf"{score}\[best_of_(\d+)_by_{re.escape(rm)}\]")
    found = {
        int(match[1]): Level(rm, row.per_seed, row.low, row.high, row.interval)
        for row in study.measurements or ()
        if row.figure == "fig4" and row.per_seed and size_of(study, row) == policy
        if (match := name.fullmatch(row.quantity))
    }
    if found:
        return found[max(found)]
    values = per_seed(study, score, f"bon_sft_by_{rm}", "", policy)
    return with_interval(rm, tuple(values.values())) if values else None


def _panel(study: Study, grid: Grid, score: str, *, by_policy: bool) -> Panel:
    """by_policy: one line a policy size over reward model sizes; else the other way round."""
    lines, across = ("policy", "RM") if by_policy else ("RM", "policy")
    order = [size for size in sizes(study) if any(size in key for key in grid)]
    words = [size_words(study, size) or "main" for size in order]
    title = f"Larger {'reward models' if by_policy else 'policies'}"

    def draw(ax: Axes) -> None:
        for i, size in enumerate(order):
            colour, marker = LOOKS[i % len(LOOKS)]
            shift = 0.06 * (i - (len(order) - 1) / 2)
            points = [
                (j + shift, grid[key])
                for j, other in enumerate(order)
                if (key := (size, other) if by_policy else (other, size)) in grid
            ]
            xs, ys = [x for x, _ in points], [level.mean for _, level in points]
            ax.plot(xs, ys, marker, ls="-", color=colour, label=f"{lines} {words[i]}")
            for x, level in points:
                if level.low is not None and level.high is not None:
                    ax.plot([x, x], [level.low, level.high], color=colour, lw=1.0)
                seeds = [x] * len(level.per_seed)
                ax.plot(seeds, level.per_seed, ".", color=colour, ms=3, alpha=0.6)
        ax.set_xticks(range(len(order)), words)
        ax.set_xlim(-0.4, len(order) - 0.6)
        ax.set_ylim(*around_seeds(grid.values()))
        ax.set_xlabel(f"size of the {'reward model' if by_policy else 'policy'}")
        ax.set_ylabel(f"best-of-N {label(score)} (0-1)")
        ax.set_title(title)
        legend_below(ax, 3)

    said = "; ".join(
        f"policy {size_words(study, policy) or 'main'} by RM {size_words(study, rm) or 'main'} "
        f"{number(level.mean)}"
        for (policy, rm), level in grid.items()
    )
    return Panel(f"fig4-{across.lower()}", draw, f"{title}: best-of-N {label(score)}. {said}", 2.9)
