"""The bridge: small transformers against exact theory, on several tasks and numbers of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures.bridge_records import BridgeRecord, BridgeRow
from paper_figures.compare import levels_panel
from paper_figures.levels import Level, with_interval
from paper_figures.prose import ABSENT, figure_name, number, quantity_words, span, tally
from paper_figures.style import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    VERMILION,
    Panel,
    Picture,
    label,
    legend_below,
)

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo", "local_rm_policy")
OUTCOMES = {
    "supported": (BLUE, "o"),
    "inconclusive": (ORANGE, "s"),
    "contradicted": (VERMILION, "X"),
}
ACCURACY = "val_accuracy"
CAPTION = (
    "First panels: KL of each trained policy to the optimum, exact by enumeration; dots, one for "
    "each seed; bar, their mean; line, the 95% t interval. Last panels: each prediction's value at "
    "the toy rung against what was measured, with its interval over seeds; in the shaded quarters "
    "both have one sign, which is all that may be compared."
)


@dataclass(frozen=True)
class BridgeLine:
    """One row of a table: a cell, and a text a column."""

    cell: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class BridgeTable:
    """A table of the report: a line a cell."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[BridgeLine, ...]


# --- pictures -------------------------------------------------------------------------------------


def bridge_picture(bridge: BridgeRecord) -> Picture | None:
    """KL of every policy in every cell, and all predictions against what was measured."""
    found = {cell: _levels(bridge, cell) for cell in bridge.cells}
    every = [level for levels in found.values() for level in levels]
    panels = [
        levels_panel(f"bridge-{cell}", cell, "KL to the optimum (nats)", levels, beside=every)
        for cell, levels in found.items()
        if levels
    ]
    judged = [r for r in bridge.rows if r.part == "verdict" and r.outcome in OUTCOMES]
    losses = [row for row in judged if row.name.startswith("val_loss")]
    points = [row for row in judged if not row.name.startswith("val_loss")]
    for name, title, rows in (
        ("points", "Win rates, accuracies, ROUGE-L (0-1)", points),
        ("losses", "Validation losses (nats per pair)", losses),
    ):
        if any(row.predicted is not None and row.value is not None for row in rows):
            panels.append(_signs(f"bridge-{name}", title, rows))
    if not panels:
        return None
    return Picture("bridge", "Small transformers against exact theory", tuple(panels), CAPTION)


def _levels(bridge: BridgeRecord, cell: str) -> list[Level]:
    values = bridge.main("policy", "kl_to_optimum", cell)
    return [with_interval(name, values[name]) for name in POLICIES if name in values]


def _signs(name: str, title: str, rows: Sequence[BridgeRow]) -> Panel:
    """Predicted value across, measured value upwards, one mark a prediction and cell."""
    drawn = [
        (r.predicted, r.value, r) for r in rows if r.predicted is not None and r.value is not None
    ]

    def draw(ax: Axes) -> None:
        wide = max(abs(x) for x, _, _ in drawn) * 1.15 or 1.0
        high = max(abs(y) for _, y, _ in drawn) * 1.3 or 1.0
        ax.fill_between([0, wide], 0, high, color=GRID, alpha=0.13, lw=0)
        ax.fill_between([-wide, 0], -high, 0, color=GRID, alpha=0.13, lw=0)
        ax.axhline(0.0, color=INK, lw=0.7)
        ax.axvline(0.0, color=INK, lw=0.7)
        for x, y, row in drawn:
            colour, marker = OUTCOMES[row.outcome]
            if row.low is not None and row.high is not None:
                ends = [max(row.low, -high), min(row.high, high)]
                ax.plot([x, x], ends, color=colour, lw=0.8, alpha=0.6)
            ax.plot(x, y, marker, color=colour, ms=4)
        ax.set_xlim(-wide, wide)
        ax.set_ylim(-high, high)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("predicted by the toy forecast")
        ax.set_ylabel("measured")
        ax.set_title(title)
        handles = [
            Line2D([], [], color=colour, marker=marker, ls="none", label=outcome)
            for outcome, (colour, marker) in OUTCOMES.items()
        ]
        legend_below(ax, 3, handles=handles)

    return Panel(name, draw, f"{title}: {sign_sentence(rows)}", 3.0)


def sign_sentence(rows: Sequence[BridgeRow]) -> str:
    """How often toy and transformer are on one side of 0, and the verdicts."""
    both = [(r.predicted, r.value) for r in rows if r.predicted and r.value]
    same = sum((a > 0) == (b > 0) for a, b in both)
    words = tally(row.outcome for row in rows)
    return f"{same} of {len(both)} on the predicted value's side of 0; {words}"


# --- tables ---------------------------------------------------------------------------------------


def bridge_tables(bridge: BridgeRecord) -> tuple[BridgeTable, ...]:
    """Policies, Theorem 2.2's violation, and what the forecast assumes and the models break."""
    made = (
        _table(bridge, "KL to the optimum, nats (mean over seeds)", "policy", "kl_to_optimum"),
        _table(bridge, "Win rate, exact (mean over seeds)", "policy", "win_rate"),
        _table(
            bridge,
            "Theorem 2.2 says 0: KL from soft RL of a reward model to a policy, nats",
            "theorem_2_2",
            "kl",
        ),
        _table(
            bridge, "Beside it, how far training moved that policy, nats", "theorem_2_2", "moved"
        ),
        _table(bridge, "Validation accuracy of reward models (0-1)", "reward_model", ACCURACY),
        _table(bridge, "Validation accuracy of reward models (0-1)", "likelihood", ACCURACY),
    )
    return tuple(table for table in made if table.lines)


def _table(bridge: BridgeRecord, title: str, part: str, measure: str) -> BridgeTable:
    found = {cell: bridge.main(part, measure, cell) for cell in bridge.cells}
    names = dict.fromkeys(name for values in found.values() for name in values)
    lines = [
        BridgeLine(cell, tuple(_mean(values.get(name, ())) for name in names))
        for cell, values in found.items()
        if values
    ]
    return BridgeTable(title, tuple(_column(name) for name in names), tuple(lines))


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values)) if values else ABSENT


def _column(name: str) -> str:
    """'local_rm_policy' -> 'Local RM, as a policy'; 'other seed: dpo to dpo' in words."""
    kind, colon, roads = name.partition(": ")
    if not colon:
        return label(name)
    first, _, second = roads.partition(" to ")
    return f"{kind}: {label(first)} to {label(second)}"


@dataclass(frozen=True)
class BridgeVerdict:
    """One prediction in one cell."""

    cell: str
    figure: str
    quantity: str
    predicted: str
    measured: str
    outcome: str
    reason: str


def bridge_verdicts(bridge: BridgeRecord) -> tuple[BridgeVerdict, ...]:
    """Every prediction in every cell, the file's order."""
    return tuple(
        BridgeVerdict(
            cell=row.cell,
            figure=figure_name(row.measure),
            quantity=f"{quantity_words(row.name)} {_relation(row)}",
            predicted=number(row.predicted, sign=True),
            measured=f"{number(row.value, sign=True)} {span(row.low, row.high)}".strip(),
            outcome=row.outcome,
            reason=row.reason,
        )
        for row in bridge.rows
        if row.part == "verdict"
    )


def _relation(row: BridgeRow) -> str:
    if row.relation == "equal":
        return "= 0" + ("" if row.margin is None else f" within {row.margin:g}")
    return {"greater": "> 0", "less": "< 0"}.get(row.relation, row.relation)


def bridge_sentences(bridge: BridgeRecord) -> list[str]:
    """What the table says, cell by cell, made from its rows."""
    judged = [row for row in bridge.rows if row.part == "verdict" and row.outcome in OUTCOMES]
    out = [f"All cells: {sign_sentence(judged)}."] if judged else []
    for cell in bridge.cells:
        mine = [row for row in judged if row.cell == cell]
        kl = bridge.main("policy", "kl_to_optimum", cell)
        if "dpo" in kl and "online_dpo_sft" in kl:
            off, on = (sum(kl[name]) / len(kl[name]) for name in ("dpo", "online_dpo_sft"))
            roads = (
                f"KL to the optimum {number(off)} nats offline (DPO) and {number(on)} online "
                f"(from SFT), a difference of {number(off - on, sign=True)}"
            )
            out.append(f"{cell}: {roads}; {tally(row.outcome for row in mine) or 'no verdict'}.")
    return out
