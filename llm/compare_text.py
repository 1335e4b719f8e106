"""What compare found, in words: figure by figure, then hypothesis by hypothesis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm.compare import Report
from llm.hypotheses import CARRY_OVER, HYPOTHESES, Evidence
from theory.predictions import Measurement, Prediction, Verdict

RELATIONS = {"greater": "> 0", "less": "< 0"}
LEVELS = ("win_rate", "length_controlled_win_rate", "rouge_l", "val_loss", "val_accuracy")
LENGTHS = ("mean_tokens", "mean_words")


def lines(report: Report) -> Iterator[str]:
    """The whole report, a line at a time."""
    figures = [m.figure for m in report.measurements]
    figures += [v.prediction.figure for v in report.verdicts]
    for figure in sorted(set(figures), key=lambda name: int(name.removeprefix("fig"))):
        yield from _figure(figure, report)
    yield "Hypotheses"
    for hypothesis in HYPOTHESES:
        mine = [each for each in report.evidence if each.hypothesis == hypothesis.name]
        yield from _hypothesis(hypothesis.name, hypothesis.words, mine)
        for figure, how in hypothesis.contradictable:
            yield f"    could be contradicted by {title(figure)}: {how}"
    yield ""
    yield CARRY_OVER
    if report.scale_note is not None:
        yield f"No verdict stands at this scale: {report.scale_note}"
    if not report.verdicts:
        yield "No prediction was held against these measurements."


def title(figure: str) -> str:
    """fig3 -> Fig. 3."""
    return f"Fig. {figure.removeprefix('fig')}"


def _figure(figure: str, report: Report) -> Iterator[str]:
    verdicts = [v for v in report.verdicts if v.prediction.figure == figure]
    measured = [m for m in report.measurements if m.figure == figure]
    yield title(figure)
    for claim in dict.fromkeys(v.prediction.paper_claim for v in verdicts):
        yield f"  the paper: {claim}"
    yield from _levels(measured)
    for verdict in verdicts:
        yield from _verdict(verdict)
    judged = {v.prediction.quantity for v in verdicts}
    for row in measured:
        if " - " in row.quantity and row.quantity not in judged:
            yield f"  {row.quantity}{_size(row)}: {measured_words(row)}; no prediction"
            if row.note is not None:
                yield f"    {row.note}"
    yield ""


def _levels(measured: Sequence[Measurement]) -> Iterator[str]:
    """Each arm's level, and the length of its samples beside it."""
    alone = {(m.quantity, m.size): m for m in measured if " - " not in m.quantity}
    for (quantity, size), row in alone.items():
        measure, _, rest = quantity.partition("[")
        if measure not in LEVELS:
            continue
        beside = [
            f"{alone[f'{name}[{rest}', size].value:.1f} {name.removeprefix('mean_')}"
            for name in LENGTHS
            if (f"{name}[{rest}", size) in alone
        ]
        yield f"  {quantity}{_size(row)}: {'; '.join([measured_words(row, sign=False), *beside])}"


def _verdict(verdict: Verdict) -> Iterator[str]:
    prediction, row = verdict.prediction, verdict.measurement
    yield f"  {prediction.quantity}{'' if row is None else _size(row)}"
    yield f"    predicted {predicted_words(prediction, verdict.margin)}"
    yield f"    measured {'nothing' if row is None else measured_words(row)}"
    if row is not None and row.note is not None:
        yield f"    {row.note}"
    named = f" (bears on {', '.join(verdict.hypotheses)})" if verdict.hypotheses else ""
    yield f"    {verdict.outcome}: {verdict.reason}{named}"
    if verdict.needs is not None:
        yield f"    would decide: {verdict.needs}"


def predicted_words(prediction: Prediction, margin: float | None) -> str:
    """ "> 0, +0.014 (0.003) at the toy rung"."""
    words = RELATIONS.get(prediction.relation, f"0 within +-{margin or prediction.margin}")
    if prediction.value is None:
        return words
    error = "" if prediction.error is None else f" ({prediction.error:.4f})"
    return f"{words}, {prediction.value:+.4f}{error} at the {prediction.rung} rung"


def measured_words(row: Measurement, *, sign: bool = True) -> str:
    """ "+0.030 [-0.010, +0.070], 95% t interval over 3 seeds"."""
    if row.value is None:
        return "nothing"
    form = "+.4f" if sign else ".4f"
    if row.low is None or row.high is None:
        return f"{row.value:{form}} ({row.interval})"
    return f"{row.value:{form}} [{row.low:{form}}, {row.high:{form}}], {row.interval}"


def _size(row: Measurement) -> str:
    return f" at {row.size}" if row.size else ""


def _hypothesis(name: str, words: str, mine: Sequence[Evidence]) -> Iterator[str]:
    yield f"  {name}: {words}"
    for each in mine:
        says = {"for": "speaks for it", "against": "speaks against it"}.get(
            each.says or "", "says nothing of it"
        )
        where = f"{title(each.figure)}{f' at {each.size}' if each.size else ''}"
        yield f"    {where}, {each.quantity}: {each.outcome}, {says}"
