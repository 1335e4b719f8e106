"""Fig. 10: best-of-N over N by three reward models, on samples of SFT and of DPO."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from paper_figures.compare import DIFFERENCE_CAPTION, differences_panels
from paper_figures.levels import (
    REWARD_MODELS,
    Level,
    around_seeds,
    size_of,
    size_words,
    sizes_of,
    stages_of,
    with_interval,
)
from paper_figures.prose import number
from paper_figures.records import Study
from paper_figures.style import Panel, Picture, label, legend_below, mark
from theory.predictions import Verdict

SOURCES = ("sft", "dpo")
SCORES = ("win_rate", "rouge_l")
TITLE = "Fig. 10: reward models out of distribution"
CAPTION = (
    "Best of N samples by each reward model: the mean over seeds with its 95% t interval, small "
    "dots one for each seed; an interval may leave the frame. N = 1 is a random sample."
)
Curve = dict[int, Level]  # N -> its level


def fig10(study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    """The picture, or None where there is neither a curve nor a prediction to draw."""
    shown = [] if study is None else _curves(study)
    differences = differences_panels("fig10", study, verdicts)
    panels = (*shown, *differences)
    if not panels:
        return None
    caption = " ".join([CAPTION] * bool(shown) + [DIFFERENCE_CAPTION] * bool(differences))
    return Picture("fig10", TITLE, panels, caption)


def _curves(study: Study) -> list[Panel]:
    """One panel a source and size, on one vertical axis for each size."""
    found = {size: drawn for size in sizes_of(study, "fig10") if (drawn := _at_size(study, size))}
    panels = []
    for size, (score, by_source) in found.items():
        end = f", {size_words(study, size)}" if len(found) > 1 else ""
        every = [level for c in by_source.values() for one in c.values() for level in one.values()]
        frame = around_seeds(every)
        for source, curves in by_source.items():
            name = f"fig10-{source}" + (f"-{size}" if size else "")
            title = f"Samples of {label(source)}{end}"
            panels.append(_panel(name, title, score, curves, frame))
    return panels


def _at_size(study: Study, size: str) -> tuple[str, dict[str, dict[str, Curve]]] | None:
    """The score that was measured, and each source's curves by reward model."""
    for score in SCORES:
        found = {source: _source(study, source, score, size) for source in SOURCES}
        drawn = {source: curves for source, curves in found.items() if curves}
        if drawn:
            return score, drawn
    return None


def _source(study: Study, source: str, score: str, size: str) -> dict[str, Curve]:
    curves = {rm: curve(study, f"{source}_{rm}", score, size) for rm in REWARD_MODELS}
    return {rm: found for rm, found in curves.items() if found}


def curve(study: Study, name: str, score: str, size: str = "") -> Curve:
    """The level at every N that was measured; name: "sft_global_rm"."""
    return _measured(study, name, score, size) or _recorded(study, name, score, size)


def _measured(study: Study, name: str, score: str, size: str) -> Curve:
    found: Curve = {}
    for row in study.measurements or ():
        here = row.figure == "fig10" and size_of(study, row) == size
        match = re.fullmatch(rf"{score}\[best_of_(\d+)_{name}\]", row.quantity) if here else None
        if match and row.per_seed:
            found[int(match[1])] = Level(name, row.per_seed, row.low, row.high, row.interval)
    return dict(sorted(found.items()))


def _recorded(study: Study, name: str, score: str, size: str) -> Curve:
    values: dict[int, list[float]] = {}
    for stage in stages_of(study, f"bon_{name}"):
        if (stage.branch, stage.size) == ("", size):
            for key, value in stage.metrics.items():
                metric, at, n = key.partition("@")
                if metric == score and at and n.isdecimal() and value is not None:
                    values.setdefault(int(n), []).append(value)
    return {n: with_interval(name, tuple(values[n])) for n in sorted(values)}


def _panel(
    name: str, title: str, score: str, curves: dict[str, Curve], frame: tuple[float, float]
) -> Panel:
    """One line a reward model over N."""

    def draw(ax: Axes) -> None:
        for i, (rm, found) in enumerate(curves.items()):
            colour, marker = mark(rm)
            spread = 1.025 ** (i - (len(curves) - 1) / 2)
            xs = [n * spread for n in found]
            ax.plot(xs, [p.mean for p in found.values()], marker, ls="-", color=colour,
                    label=label(rm))  # fmt: skip
            for x, level in zip(xs, found.values(), strict=True):
                if level.low is not None and level.high is not None:
                    ax.plot([x, x], [level.low, level.high], color=colour, lw=1.0)
                seeds = [x] * len(level.per_seed)
                ax.plot(seeds, level.per_seed, ".", color=colour, ms=3, alpha=0.6)
        counts = sorted({n for found in curves.values() for n in found})
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(*frame)
        ax.set_xlabel("N")
        ax.set_ylabel(f"{label(score)} of the best of N (0-1)")
        ax.set_title(title)
        legend_below(ax, 3)

    ends = "; ".join(
        f"{label(rm)} {number(found[max(found)].mean)} at N = {max(found)}"
        for rm, found in curves.items()
    )
    return Panel(name, draw, f"{title}: {label(score)} of the best of N. {ends}", 2.7)
