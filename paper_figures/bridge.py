"""The bridge: small transformers against exact theory, on several tasks and numbers of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from paper_figures.bridge_panels import OUTCOMES, sign_sentence, signs_panel, verdict_map
from paper_figures.bridge_records import BridgeRecord, BridgeRow
from paper_figures.compare import levels_panel
from paper_figures.levels import Level, with_interval
from paper_figures.prose import (
    ABSENT,
    figure_name,
    number,
    plural,
    plus_minus,
    quantity_words,
    span,
    tally,
)
from paper_figures.style import Picture, label
from theory.predictions import SURE, TAIL, foreseen

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo", "local_rm_policy")
CAPTION = (
    "Verdicts: each claim says that its difference is above 0, unless it says otherwise; in "
    "brackets the figure of the paper. Predicted against measured: the toy forecast's value, and "
    "what was measured with its 95% t interval over seeds; both axes are linear up to 0.01 and "
    "logarithmic beyond; in the shaded quarters both have one sign, which is all that may be "
    "compared. Last panels: KL of each trained policy to the optimum, exact by enumeration; dots, "
    "one for each seed; bar, their mean; line, the 95% t interval, which ends in an arrow where it "
    "leaves the frame."
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
    """The verdicts by claim and cell, predicted against measured, KL of every policy."""
    judged = [row for row in bridge.verdicts if row.outcome in OUTCOMES]
    panels = [verdict_map(bridge.verdicts)] if bridge.verdicts else []
    for name, title, unit, losses in (
        ("points", "Win rates, accuracies, ROUGE-L", "points, 0-1", False),
        ("losses", "Validation losses", "nats per pair", True),
    ):
        rows = [row for row in judged if row.name.startswith("val_loss") == losses]
        if any(row.predicted is not None and row.value is not None for row in rows):
            panels.append(signs_panel(f"bridge-{name}", title, unit, rows))
    found = {cell: _levels(bridge, cell) for cell in bridge.cells}
    every = [level for levels in found.values() for level in levels]
    panels += [
        levels_panel(f"bridge-{cell}", cell, "KL to the optimum (nats)", levels, beside=every)
        for cell, levels in found.items()
        if levels
    ]
    if not panels:
        return None
    return Picture("bridge", "Small transformers against exact theory", tuple(panels), CAPTION)


def _levels(bridge: BridgeRecord, cell: str) -> list[Level]:
    values = bridge.main("policy", "kl_to_optimum", cell)
    return [with_interval(name, values[name]) for name in POLICIES if name in values]


# --- tables ---------------------------------------------------------------------------------------


def bridge_tables(bridge: BridgeRecord) -> tuple[BridgeTable, ...]:
    """Verdicts, policies, Theorem 2.2's violation, and what is assumed and the models break."""
    over = "mean over seeds, below it the 95% t interval"
    runs = "nats, mean over pairs of runs, below it the largest"
    road = "KL from soft RL of a reward model to a policy"
    made = (
        _counts(bridge),
        _table(bridge, f"KL to the optimum, exact, nats: {over}", "policy", "kl_to_optimum"),
        _table(bridge, f"Win rate, exact, 0-1: {over}", "policy", "win_rate"),
        _table(bridge, f"Theorem 2.2 says 0: {road}, {runs}", "theorem_2_2", "kl"),
        _moved(
            bridge, "For scale: KL from a policy to SFT, nats, mean over runs, below it the largest"
        ),
        _accuracies(bridge, f"Validation accuracy of reward models, 0-1: {over}"),
        _reached(bridge),
    )
    return tuple(table for table in made if table.lines)


def _counts(bridge: BridgeRecord) -> BridgeTable:
    """Verdicts by outcome, a line a cell and one for all."""
    outcomes = list(dict.fromkeys([*reversed(OUTCOMES), *(row.outcome for row in bridge.verdicts)]))
    found = {cell: Counter(r.outcome for r in bridge.of("verdict", cell)) for cell in bridge.cells}
    found["all cells"] = sum(found.values(), Counter[str]())
    lines = [
        BridgeLine(cell, (*(str(count[name]) for name in outcomes), str(count.total())))
        for cell, count in found.items()
        if count
    ]
    return BridgeTable("Verdicts, number of predictions", (*outcomes, "all"), tuple(lines))


def _table(bridge: BridgeRecord, title: str, part: str, measure: str) -> BridgeTable:
    """A column a name; the mean, and below it how sure it is."""
    found = {cell: bridge.main(part, measure, cell) for cell in bridge.cells}
    names = dict.fromkeys(name for values in found.values() for name in values)
    show = _largest if part == "theorem_2_2" else _interval
    lines = [
        BridgeLine(cell, tuple(show(values.get(name, ())) for name in names))
        for cell, values in found.items()
        if values
    ]
    return BridgeTable(title, tuple(_column(name) for name in names), tuple(lines))


def _moved(bridge: BridgeRecord, title: str) -> BridgeTable:
    """How far training moved each policy that Theorem 2.2 is held against: a column a policy."""
    table = _table(bridge, title, "theorem_2_2", "moved")
    first: dict[str, int] = {}
    for i, name in enumerate(table.columns):
        first.setdefault(name.rpartition(" to ")[2], i)
    lines = [
        BridgeLine(line.cell, tuple(line.values[i] for i in first.values())) for line in table.lines
    ]
    return BridgeTable(title, tuple(first), tuple(lines))


def _accuracies(bridge: BridgeRecord, title: str) -> BridgeTable:
    """Those of the models, and last the best that any model can have."""
    table = _table(bridge, title, "likelihood", "val_accuracy")
    best = {cell: bridge.main("likelihood", "best_accuracy", cell) for cell in bridge.cells}
    if not any(best.values()):
        return table
    lines = [
        BridgeLine(line.cell, (*line.values, _mean(next(iter(best[line.cell].values()), ()))))
        for line in table.lines
    ]
    return BridgeTable(table.title, (*table.columns, "Best possible"), tuple(lines))


def _reached(bridge: BridgeRecord) -> BridgeTable:
    """Theorem 2.2's own assumptions: a maximum, and that training reaches it."""

    def mean(cell: str, name: str, digits: int = 3) -> str:
        values = bridge.main("likelihood", name, cell)
        return _mean(next(iter(values.values()), ()), digits)

    lines = [
        BridgeLine(
            cell,
            (
                f"{mean(cell, 'prompts_with_maximiser', 0)} of {mean(cell, 'prompts', 0)}",
                *(mean(cell, name) for name in ("least_loss", "dpo_loss", "local_rm_loss")),
            ),
        )
        for cell in bridge.cells
        if bridge.main("likelihood", "prompts", cell)
    ]
    title = (
        "Theorem 2.2 assumes that the likelihood has a maximum and that training reaches it: "
        "training losses, nats a pair"
    )
    heads = ("Prompts with a maximiser", "Least possible loss", "DPO loss", "Local RM loss")
    return BridgeTable(title, heads, tuple(lines))


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return number(sum(values) / len(values), digits) if values else ABSENT


def _interval(values: Sequence[float]) -> str:
    """The mean; below it the 95% t interval, where there are seeds to have one."""
    at = with_interval("", tuple(values))
    return _below(_mean(values), span(at.low, at.high, sign=False))


def _largest(values: Sequence[float]) -> str:
    """The mean; below it the value that is farthest from 0."""
    return _below(_mean(values), f"up to {number(max(values, key=abs))}" if len(values) > 1 else "")


def _below(text: str, small: str) -> str:
    """HTML: a second text in small type on its own line; nothing more where it is empty."""
    return Markup("{}<small>{}</small>").format(text, small) if small else text


def _column(name: str) -> str:
    """A name's words: 'Local RM, as a policy'; 'other seed: dpo to dpo' on two lines of HTML."""
    kind, colon, roads = name.partition(": ")
    if not colon:
        return label(name)
    first, _, second = roads.partition(" to ")
    return Markup("{}:<br>{} to {}").format(kind, label(first), label(second))


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
            predicted=plus_minus(row.predicted, row.predicted_error),
            measured=_below(_measured(row), " ".join(filter(None, [row.reason, _needs(row)]))),
            outcome=row.outcome,
            reason=row.reason,
        )
        for row in bridge.verdicts
    )


def _measured(row: BridgeRow) -> str:
    """'+0.071 [-0.217, +0.358] win-rate points (0-1)'."""
    return " ".join(filter(None, [number(row.value, sign=True), span(row.low, row.high), row.unit]))


def _needs(row: BridgeRow) -> str:
    return f"(would decide: {row.needs})" if row.needs else ""


def _relation(row: BridgeRow) -> str:
    if row.relation == "equal":
        return "= 0" + ("" if row.margin is None else f" within {row.margin:g}")
    return {"greater": "> 0", "less": "< 0"}.get(row.relation, row.relation)


def bridge_sentences(bridge: BridgeRecord) -> list[str]:
    """What the table says: all verdicts, every contradicted claim by name, then cell by cell."""
    judged = bridge.verdicts
    against = [row for row in judged if row.outcome == "contradicted"]
    out = [f"All cells: {plural(len(judged), 'prediction')}: {sign_sentence(judged)}."]
    if against:
        known = sum(_foreseen(row) for row in against)
        out.append(
            f"Of the {len(against)} contradicted, the toy forecast had foreseen {known}: it lies "
            f"there itself, by more than {SURE:g} of its standard errors. {_by_chance(judged)}"
        )
    out = out if judged else []
    return [*out, *map(_contradiction, against), *(_cell_sentence(bridge, c) for c in bridge.cells)]


def _contradiction(row: BridgeRow) -> str:
    """A contradicted claim, marked as in the tables, with all its numbers. HTML."""
    words = f"{row.cell}, {figure_name(row.measure)}, {quantity_words(row.name)} {_relation(row)}"
    toy = plus_minus(row.predicted, row.predicted_error)
    how = "foreseen by" if _foreseen(row) else "not foreseen by"
    mark = Markup('<span class="verdict" data-outcome="contradicted">contradicted</span>')
    return mark + f" {words}: measured {_measured(row)}; {how} the toy forecast, {toy}."


def _foreseen(row: BridgeRow) -> bool:
    """Whether the forecast lies where the measurement does, against the claim, and surely so."""
    return foreseen(
        row.predicted, row.predicted_error, row.value, relation=row.relation, margin=row.margin
    )


def _by_chance(rows: Sequence[BridgeRow]) -> str:
    sides = sum(row.relation != "equal" and row.low is not None for row in rows)
    n = f"{TAIL * sides:.0f}"
    return f"Were every difference 0, 95% intervals would contradict about {n} by chance."


def _cell_sentence(bridge: BridgeRecord, cell: str) -> str:
    """Offline against online DPO, paired by seed, and the cell's verdicts."""
    words = tally(row.outcome for row in bridge.of("verdict", cell)) or "no verdict"
    off, on = (bridge.seeds("kl_to_optimum", name, cell) for name in ("dpo", "online_dpo_sft"))
    gap = with_interval("", tuple(off[seed] - on[seed] for seed in off if seed in on))
    if not gap.per_seed:
        return f"{cell}: {words}."
    return (
        f"{cell}: KL to the optimum {_mean([*off.values()])} nats offline (DPO) and "
        f"{_mean([*on.values()])} online (from SFT), a difference of "
        f"{number(gap.mean, sign=True)} {span(gap.low, gap.high)} nats; {words}."
    ).replace("  ", " ")
