"""What the sweep says in sentences; every number comes from the records."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.efficiency import at_centres, best_target, ratio_words, select, stated_targets
from paper_figures.overview import central_words, first_kind
from paper_figures.prose import count, listing, number, plural
from paper_figures.style import label
from paper_figures.sweep_records import HINDSIGHT, Cell, SweepRecord
from paper_figures.sweep_stats import (
    ALL,
    FIRST,
    MATCHED,
    PROPER,
    Mean,
    centre,
    gap,
    kinds,
    level,
)
from paper_figures.sweep_words import apart, family_words, setting_words, short_words

MOST_NAMED = 8
ROUNDING = 1e-6  # nats; a gap below it is one of rounding


def findings(sweep: SweepRecord) -> list[str]:
    """The short answer: how big, how many times the pairs, and where not."""
    out = [_amount(sweep)]
    out += _gap_sentence(sweep.cells)
    out += ratio_sentences(sweep)
    out += _where_not(sweep.cells)
    return out


def _amount(sweep: SweepRecord) -> str:
    """How much was run, and that the sweep has not ended, if it has not."""
    replicates = sorted({len(f.seeds) for cell in sweep.cells for f in cell.fits.values()})
    several = listing([count(n) for n in dict.fromkeys((replicates[0], replicates[-1]))])
    said = (
        f"Sweep {sweep.name!r}: {plural(len(sweep.cells), 'cell')} in "
        f"{plural(len(kinds(sweep.cells)), 'family').replace('familys', 'families')}, "
        f"{several} replicates a cell, {plural(len(sweep), 'row')}."
    )
    return said + _missing(sweep)


def _missing(sweep: SweepRecord) -> str:
    if sweep.there == sweep.planned:
        return ""
    return f" It has not ended: {sweep.there} of {sweep.planned} cells are there."


def _span(mean: Mean, *, sign: bool = False) -> str:
    if mean.low is None or mean.high is None:
        return number(mean.value, sign=sign)
    largest = max(abs(mean.low), abs(mean.high))
    if largest < ROUNDING:
        return f"0 (within {number(largest)})" if largest else "0"
    low, high = number(mean.low, sign=sign), number(mean.high, sign=sign)
    return f"{number(mean.value, sign=sign)} [{low}, {high}]"


def _gap_sentence(cells: Sequence[Cell]) -> list[str]:
    """The two roads at the middle N of the first family's centre, and the arms without a gap."""
    kind = first_kind(cells)
    rows = [cell for cell in centre(cells, kind) if gap(cell, ALL) is not None]
    if not rows:
        return []
    cell = rows[len(rows) // 2]
    first, offline, between = level(cell, FIRST), level(cell, ALL), gap(cell, ALL)
    assert first is not None
    assert offline is not None
    assert between is not None
    place = setting_words(cell.place, central_words(cell))
    said = (
        f"{family_words(kind)}, {place}, N = {cell.n_pairs}: KL to the optimum "
        f"{number(first.value)} nats by two-stage and {number(offline.value)} by offline learning "
        f"over all policies, a gap of {_span(between, sign=True)}"
    )
    hindsight = gap(cell, ALL, HINDSIGHT)
    if hindsight is not None:
        said += f" ({_span(hindsight, sign=True)} in hindsight)"
    beside = [
        f"{_span(mean, sign=True)} for {label(arm)}"
        for arm in (PROPER, MATCHED)
        if (mean := gap(cell, arm)) is not None
    ]
    return [said + (f"; it is {listing(beside)}." if beside else ".")]


def pair_sentences(cells: Sequence[Cell]) -> list[str]:
    """The gap of every family at its centre, at the largest N."""
    parts = []
    for kind in kinds(cells):
        rows = [cell for cell in centre(cells, kind) if gap(cell, ALL) is not None]
        if len(rows) > 1:
            between = gap(rows[-1], ALL)
            assert between is not None
            parts.append(
                f"{family_words(kind)} {_span(between, sign=True)} at N = {rows[-1].n_pairs}"
            )
    return [f"Gap in nats at the largest N: {'; '.join(parts)}."] if parts else []


def ratio_sentences(sweep: SweepRecord) -> list[str]:
    """The data-efficiency ratio of every family at its centre."""
    if sweep.ratios is None:
        return ["The ratios of data efficiency are written when all cells of the sweep are there."]
    here = at_centres(sweep.cells, select(sweep.ratios))
    stated = stated_targets(sweep.ratios)
    parts, without = [], []
    for kind in kinds(sweep.cells):
        row = best_target([r for r in here if r.kind == kind], stated)
        if row is None:
            without.append(family_words(kind))
        else:
            parts.append(f"{family_words(kind)} {ratio_words(row)} (KL {row.target_kl:.2g})")
    out = []
    if parts:
        out.append(
            "Pairs that offline learning over all policies needs, as a multiple of those of "
            f"two-stage: {'; '.join(parts)}."
        )
    if without:
        out.append(f"No ratio within the N that were run: {listing(without)}.")
    return out


def _where_not(cells: Sequence[Cell]) -> list[str]:
    """Where the gap is not above 0, the settings with a gap that is negative first."""
    found = [(cell, mean) for cell in cells if (mean := gap(cell, ALL)) is not None]
    judged = [(cell, mean) for cell, mean in found if mean.low is not None]
    closed = [(cell, mean) for cell, mean in judged if mean.low is not None and mean.low <= 0]
    if not judged:
        return []
    turned = sum(1 for _, mean in closed if mean.high is not None and mean.high < 0)
    said = (
        f"Of {plural(len(judged), 'cell')} with both arms, two-stage is better beyond the 95% "
        f"interval in {count(len(judged) - len(closed))}, offline learning over all policies in "
        f"{count(turned)}."
    )
    if not closed:
        return [said]
    closed.sort(key=lambda row: row[1].value)
    places: dict[tuple, list[tuple[Cell, Mean]]] = {}
    for cell, mean in closed:
        places.setdefault(cell.setting, []).append((cell, mean))
    here = {kind: centre(cells, kind)[0].place for kind in kinds(cells)}
    parts = [_closed_words(rows, here) for rows in list(places.values())[:MOST_NAMED]]
    rest = len(places) - len(parts)
    more = f"; and {plural(rest, 'other setting')}" if rest else ""
    return [said, f"Not better in (lowest gap in nats): {'; '.join(parts)}{more}."]


def _closed_words(rows: Sequence[tuple[Cell, Mean]], here: dict[str, dict]) -> str:
    """One setting, the N where two-stage is not better, and the lowest gap.

    here: each family's centre; a setting is named by what sets it apart from that.
    """
    cell, lowest = rows[0]
    words = ", ".join(filter(None, [short_words(cell.kind), apart(cell.place, here[cell.kind])]))
    ns = listing([str(n) for n in sorted(c.n_pairs for c, _ in rows)])
    return f"{words}, N = {ns} ({number(lowest.value, sign=True)})"
