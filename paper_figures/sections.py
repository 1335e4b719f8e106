"""Figs. 3 to 10 as sections of the report: claim, hypothesis, picture and verdicts of each one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from paper_figures import prose
from paper_figures.fig4 import TITLE as FIG4
from paper_figures.fig4 import fig4
from paper_figures.fig9 import TITLE as FIG9
from paper_figures.fig9 import fig9, matched_sentences
from paper_figures.fig10 import TITLE as FIG10
from paper_figures.fig10 import fig10
from paper_figures.policy_figures import TITLES, policy_figure
from paper_figures.records import Evidence, Hypothesis, Study
from paper_figures.style import Picture
from theory.predictions import Verdict

ALL_TITLES = TITLES | {"fig4": FIG4, "fig9": FIG9, "fig10": FIG10}
FIGURES = tuple(f"fig{n}" for n in range(3, 11))


@dataclass(frozen=True)
class FigureLine:
    """One verdict of a figure, in a line."""

    claim: str
    numbers: str
    outcome: str
    needs: str


@dataclass(frozen=True)
class FigureSection:
    """What the report says of one figure."""

    name: str
    title: str
    drawn: bool
    claims: tuple[str, ...]  # the paper's, each once
    hypotheses: tuple[tuple[str, str, str], ...]  # (name, what it says, what would contradict it)
    lines: tuple[FigureLine, ...]
    sentences: tuple[str, ...]  # what was measured beside the predictions
    tally: str  # "2 supported, 1 inconclusive"
    others: tuple[str, ...]  # differences that were measured and that nothing was predicted of


def figure_pictures(study: Study | None, verdicts: Sequence[Verdict]) -> tuple[Picture, ...]:
    """Every figure asked for or predicted that the records can fill, in the paper's order.

    Figures share arms: what one left behind would half fill another that nobody asked for.
    """
    wanted = {verdict.prediction.figure for verdict in verdicts}
    wanted |= set(() if study is None else study.figures)
    found = [_picture(figure, study, verdicts) for figure in FIGURES if figure in wanted]
    return tuple(picture for picture in found if picture is not None)


def _picture(figure: str, study: Study | None, verdicts: Sequence[Verdict]) -> Picture | None:
    own = {"fig4": fig4, "fig9": fig9, "fig10": fig10}
    if figure in own:
        return own[figure](study, verdicts)
    return policy_figure(figure, study, verdicts)


def figure_sections(
    study: Study | None, verdicts: Sequence[Verdict], drawn: Container[str]
) -> list[FigureSection]:
    """The figures with anything to show, and those that the study was asked for."""
    asked = () if study is None else study.figures
    wanted = [figure for figure in FIGURES if figure in drawn or figure in asked]
    return [_section(figure, study, verdicts, figure in drawn) for figure in wanted]


def _section(
    figure: str, study: Study | None, verdicts: Sequence[Verdict], drawn: bool
) -> FigureSection:
    mine = [verdict for verdict in verdicts if verdict.prediction.figure == figure]
    names = dict.fromkeys(name for verdict in mine for name in verdict.hypotheses)
    known = {} if study is None else {each.name: each for each in study.hypotheses}
    matched = matched_sentences(study) if study is not None and figure == "fig9" else []
    notes = (v.measurement.note for v in mine if v.measurement and v.measurement.note)
    return FigureSection(
        name=figure,
        title=ALL_TITLES[figure],
        drawn=drawn,
        claims=tuple(dict.fromkeys(verdict.prediction.paper_claim for verdict in mine)),
        hypotheses=tuple(_hypothesis(name, figure, known.get(name)) for name in names),
        lines=tuple(_line(verdict) for verdict in mine),
        sentences=(*matched, *dict.fromkeys(notes)),
        tally=prose.tally(verdict.outcome for verdict in mine),
        others=tuple(_not_predicted(figure, study, mine)),
    )


def _not_predicted(figure: str, study: Study | None, mine: Sequence[Verdict]) -> Iterator[str]:
    """Differences beside the predicted ones: of lengths, at other N, of matched hyperparameters."""
    predicted = {verdict.prediction.quantity for verdict in mine}
    for row in () if study is None else study.measurements or ():
        if row.figure == figure and " - " in row.quantity and row.quantity not in predicted:
            size = f", {row.size}" if row.size else ""
            value = f"{prose.number(row.value, sign=True)} {prose.span(row.low, row.high)}".strip()
            yield f"{prose.quantity_words(row.quantity)}{size}: {value} {row.unit}"


def _hypothesis(name: str, figure: str, known: Hypothesis | None) -> tuple[str, str, str]:
    if known is None:
        return name, "", ""
    return name, known.words, "; ".join(how for at, how in known.contradictable if at == figure)


@dataclass(frozen=True)
class HypothesisSection:
    """What all figures together say of one hypothesis."""

    name: str
    words: str
    tally: str  # "for it 2, against it 1, neither 3"
    lines: tuple[tuple[str, str], ...]  # (what was compared, what it says)
    contradictable: tuple[tuple[str, str], ...]  # (figure, how)


SAYS = {"for": "for it", "against": "against it", None: "says nothing of it"}


def hypothesis_sections(study: Study | None) -> list[HypothesisSection]:
    """Every hypothesis that the study's records name."""
    return [
        HypothesisSection(
            name=each.name,
            words=each.words,
            tally=_counted(each.evidence),
            lines=tuple(
                (_compared(row), f"{row.outcome}, {SAYS.get(row.says, row.says)}")
                for row in each.evidence
            ),
            contradictable=tuple((prose.figure_name(at), how) for at, how in each.contradictable),
        )
        for each in (() if study is None else study.hypotheses)
    ]


def _counted(evidence: Sequence[Evidence]) -> str:
    counts = Counter(row.says for row in evidence)
    silent = len(evidence) - counts["for"] - counts["against"]
    words = f"for it {counts['for']}, against it {counts['against']}, neither {silent}"
    return words if evidence else ""


def _compared(row: Evidence) -> str:
    size = f" at {row.size}" if row.size else ""
    return f"{prose.figure_name(row.figure)}{size}, {prose.quantity_words(row.quantity)}"


def _line(verdict: Verdict) -> FigureLine:
    row = prose.verdict_row(verdict)
    measured = f"{row.measured} {row.interval}".strip()
    return FigureLine(
        claim=row.claim + (f", {row.size}" if row.size else ""),
        numbers=f"predicted {row.predicted}, measured {measured}",
        outcome=row.outcome,
        needs="" if row.needs == prose.ABSENT else row.needs,
    )
