"""The two kinds of panel that Figs. 3 and 9 share: levels, and prediction against measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures.levels import Level
from paper_figures.prose import MINUS, number, parse_quantity, quantity_words
from paper_figures.style import GRID, INK, MEASURED, PREDICTED, Panel, label, mark
from theory.predictions import Verdict

DIFFERENCE_CAPTION = (
    "Differences: open diamond, the prediction of the toy rung with its standard error; dots, one "
    "for each seed; bar, the mean over seeds with the interval named in the verdict table. "
    "Pale band: paired bootstrap within one seed. "
    "An interval that leaves the frame ends in an arrow. The shaded side is the predicted one."
)
LEVEL_CAPTION = (
    "Levels: dots, one for each seed; bar, their mean, with the interval where one was recorded."
)


def levels_panel(
    name: str, title: str, axis: str, rows: Sequence[Level], *, reference: float | None = None
) -> Panel:
    """One row a method: every seed as a point, the mean as a bar. axis: its label with the unit.

    reference: a value to mark (0.5 for a win rate).
    """

    def draw(ax: Axes) -> None:
        values = [value for row in rows for value in row.per_seed]
        frame = _frame(values if reference is None else [*values, reference])
        for i, row in enumerate(rows):
            colour, marker = mark(row.name)
            if row.low is not None and row.high is not None:
                _bar(ax, i, row.low, row.high, colour, frame)
            offsets = _spread(len(row.per_seed), 0.16)
            ax.plot(row.per_seed, i + offsets, marker, color=colour, ms=4, alpha=0.75, ls="none")
            ax.plot([row.mean, row.mean], [i - 0.32, i + 0.32], color=colour, lw=2)
        ax.set_xlim(*frame)
        if reference is not None:
            ax.axvline(reference, color=INK, lw=0.8, ls=":")
        ax.set_yticks(range(len(rows)), [label(row.name) for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(axis)
        ax.set_title(title)

    means = "; ".join(f"{label(row.name)} {number(row.mean)}" for row in rows)
    return Panel(name, draw, f"{title}, means over seeds: {means}", height=0.95 + 0.34 * len(rows))


def differences_panel(name: str, title: str, axis: str, rows: Sequence[Verdict]) -> Panel:
    """One row a prediction: predicted value above, measured value below, 0 marked."""

    def draw(ax: Axes) -> None:
        frame = _frame([0.0, *(value for row in rows for value in _points(row))])
        ax.set_xlim(*frame)
        _shade(ax, rows, frame)
        for i, row in enumerate(rows):
            _draw_row(ax, i, row, frame)
        ax.set_ylim(len(rows) - 0.35, -0.85)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(axis)
        ax.set_title(title, pad=18)
        _legend(ax)

    said = "; ".join(f"{quantity_words(row.prediction.quantity)}: {row.outcome}" for row in rows)
    return Panel(name, draw, f"{title}. {said}", height=1.25 + 0.62 * len(rows))


def _draw_row(ax: Axes, i: int, row: Verdict, frame: tuple[float, float]) -> None:
    parts = parse_quantity(row.prediction.quantity)
    if parts is None or parts.second is None:
        words = row.prediction.quantity
    else:
        words = f"{label(parts.first)} {MINUS} {label(parts.second)}"
    ax.text(0.0, i - 0.47, words, transform=ax.get_yaxis_transform(), va="center", weight="bold")
    ax.text(
        1.0, i - 0.47, row.outcome, transform=ax.get_yaxis_transform(), va="center", ha="right",
        style="italic",
    )  # fmt: skip
    ax.plot([0.0, 0.0], [i - 0.3, i + 0.42], color=INK, lw=0.9)
    predicted, measured = row.prediction, row.measurement
    if predicted.value is not None:
        error = predicted.error or 0.0
        _bar(ax, i - 0.15, predicted.value - error, predicted.value + error, PREDICTED, frame)
        ax.plot(predicted.value, i - 0.15, "D", mfc="none", mec=PREDICTED, mew=1.4, ms=5, zorder=4)
    if measured is None:
        return
    if measured.low is not None and measured.high is not None:
        _bar(ax, i + 0.17, measured.low, measured.high, MEASURED, frame)
    if measured.per_seed:
        offsets = _spread(len(measured.per_seed), 0.07)
        for inside, offset in zip(measured.within or (), offsets, strict=False):
            if inside is not None:
                ax.plot(inside, [i + 0.17 + offset] * 2, color=MEASURED, lw=3.2, alpha=0.2)
        ax.plot(
            measured.per_seed, i + 0.17 + offsets, "o", color=MEASURED, ms=3.4, alpha=0.7, ls="none"
        )
    if measured.value is not None:
        ax.plot([measured.value] * 2, [i + 0.02, i + 0.32], color=MEASURED, lw=2.2, zorder=4)


def _bar(
    ax: Axes, y: float, low: float, high: float, colour: str, frame: tuple[float, float]
) -> None:
    """A horizontal interval, cut at the frame; a cut end becomes an arrow head."""
    left, right = max(low, frame[0]), min(high, frame[1])
    if left > right:
        return
    ax.plot([left, right], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    for end, cut, head in ((left, low < frame[0], "<"), (right, high > frame[1], ">")):
        ax.plot(end, y, head if cut else "|", color=colour, ms=5, clip_on=False)


def _shade(ax: Axes, rows: Sequence[Verdict], frame: tuple[float, float]) -> None:
    """Shade the predicted side where all rows share it, or the margin of an equality."""
    relations = {row.prediction.relation for row in rows}
    if relations == {"greater"}:
        ax.axvspan(0.0, frame[1], color=GRID, alpha=0.1, lw=0)
    elif relations == {"less"}:
        ax.axvspan(frame[0], 0.0, color=GRID, alpha=0.1, lw=0)


def _legend(ax: Axes) -> None:
    handles = [
        Line2D(
            [],
            [],
            marker="D",
            mfc="none",
            mec=PREDICTED,
            color=PREDICTED,
            mew=1.4,
            label="predicted",
        ),
        Line2D([], [], marker="o", color=MEASURED, label="measured"),
    ]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, borderaxespad=0
    )


def _points(row: Verdict) -> list[float]:
    """What must lie inside the frame: seeds, means, the prediction with its error."""
    predicted, measured = row.prediction, row.measurement
    points: list[float] = []
    if predicted.value is not None:
        error = predicted.error or 0.0
        points += [predicted.value - error, predicted.value + error]
    if measured is not None:
        points += list(measured.per_seed) + ([] if measured.value is None else [measured.value])
    return points


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits around the points with a margin of 18%."""
    low, high = min(values), max(values)
    pad = 0.18 * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - pad, high + pad


def _spread(n: int, width: float) -> np.ndarray:
    """Offsets (n,) that keep the seeds' points apart."""
    return np.linspace(-width, width, n) if n > 1 else np.zeros(1)
