"""What compare found, in words: figure by figure, then hypothesis by hypothesis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from llm.results.compare import Report
from llm.results.hypotheses import CARRY_OVER, HYPOTHESES, Evidence
from llm.results.stats import equivalence
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


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The verdicts alone, figure by figure."""
    if not verdicts:
        yield "No prediction was held against these measurements."
    for figure in dict.fromkeys(v.prediction.figure for v in verdicts):
        yield title(figure)
        for verdict in verdicts:
            if verdict.prediction.figure == figure:
                yield from _verdict(verdict)


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
    yield from _unpredicted(measured, judged)
    yield ""


def _levels(measured: Sequence[Measurement]) -> Iterator[str]:
    """Each arm's level, seed by seed, and the length of its samples beside it."""
    alone = {(m.quantity, m.size): m for m in measured if " - " not in m.quantity}
    largest = _largest_n(alone[key].quantity for key in alone)
    for (quantity, size), row in alone.items():
        measure, _, rest = quantity.partition("[")
        if measure not in LEVELS or _n(quantity) != largest:
            continue
        points = ", ".join(number(value) for value in row.per_seed)
        words = [f"{number(row.value)} (seeds: {points})" if points else number(None)]
        for name in LENGTHS:
            length = alone.get((f"{name}[{rest}", size))
            if length is not None:
                words.append(f"{number(length.value, '.1f')} {name.removeprefix('mean_')}")
        if row.note is not None:
            words.append(row.note)
        yield f"  {quantity}{_size(row)}: {'; '.join(words)}"


def _unpredicted(measured: Sequence[Measurement], judged: set[str]) -> Iterator[str]:
    """Differences that no prediction is about: those of levels that are shown."""
    largest = _largest_n(m.quantity for m in measured)
    for row in measured:
        if " - " not in row.quantity or row.quantity in judged or _n(row.quantity) != largest:
            continue
        if row.quantity.split("[")[0] in LEVELS:
            yield f"  {row.quantity}{_size(row)}: {measured_words(row)}; no prediction"
            yield from _over_prompts(row)
            if row.note is not None:
                yield f"    {row.note}"


def _largest_n(quantities: Iterable[str]) -> int | None:
    """The largest N of best-of-N; None where there is none."""
    return max((n for quantity in quantities if (n := _n(quantity)) is not None), default=None)


def _n(quantity: str) -> int | None:
    found = re.search(r"best_of_(\d+)", quantity)
    return int(found[1]) if found else None


def _verdict(verdict: Verdict) -> Iterator[str]:
    prediction, row = verdict.prediction, verdict.measurement
    yield f"  {prediction.quantity}{'' if row is None else _size(row)}"
    yield f"    predicted {predicted_words(prediction, verdict.margin)}"
    yield f"    measured {'nothing' if row is None else measured_words(row)}"
    if row is not None:
        yield from _over_prompts(row)
    if row is not None and row.note is not None:
        yield f"    {row.note}"
    named = f" (bears on {', '.join(verdict.hypotheses)})" if verdict.hypotheses else ""
    yield f"    {verdict.outcome}: {verdict.reason}{named}"
    yield from _equivalence(verdict)
    if verdict.needs is not None:
        yield f"    would decide: {verdict.needs}"


def _equivalence(verdict: Verdict) -> Iterator[str]:
    """The test of "no gap" over seeds: its p where the claim is judged and seeds allow it."""
    prediction, row = verdict.prediction, verdict.measurement
    margin = verdict.margin or prediction.margin
    if row is None or margin is None or verdict.outcome == "model too small to judge":
        return
    found = equivalence(row.per_seed, margin) if prediction.relation == "equal" else None
    if found is not None:
        yield f"    two one-sided t tests over seeds: p = {number(found.p)}; no gap below 0.025"


def predicted_words(prediction: Prediction, margin: float | None) -> str:
    """ "> 0, +0.014 (0.003) at the toy rung"."""
    words = RELATIONS.get(prediction.relation, f"0 within +-{margin or prediction.margin}")
    if prediction.value is None:
        return words
    error = "" if prediction.error is None else f" ({number(prediction.error)})"
    return f"{words}, {number(prediction.value, '+.4f')}{error} at the {prediction.rung} rung"


def measured_words(row: Measurement) -> str:
    """ "+0.030 [-0.010, +0.070], 95% t interval over 3 seeds"."""
    value = number(row.value, "+.4f")
    if row.value is None or row.low is None or row.high is None:
        return f"{value} ({row.interval})"
    low, high = number(row.low, "+.4f"), number(row.high, "+.4f")
    return f"{value} [{low}, {high}], {row.interval}"


def _over_prompts(row: Measurement) -> Iterator[str]:
    """The other interval that a verdict needs, named apart from the one over seeds."""
    if row.over_prompts is not None:
        low, high = (number(end, "+.4f") for end in row.over_prompts)
        yield f"    over prompts [{low}, {high}], 95% t interval: these models, other prompts"


def number(value: float | None, form: str = ".4f") -> str:
    """Four decimals; what they would not show in powers of ten."""
    if value is None:
        return "nothing"
    small = 0 < abs(value) < 5e-4 and "4" in form
    return f"{value:{form.replace('.4f', '.1e') if small else form}}"


def _size(row: Measurement) -> str:
    return f" at {row.size}" if row.size else ""


def _hypothesis(name: str, words: str, mine: Sequence[Evidence]) -> Iterator[str]:
    yield f"  {name}: {words}"
    for each in mine:
        says = "" if each.says is None else f", speaks {each.says} it"
        where = f"{title(each.figure)}{f' at {each.size}' if each.size else ''}"
        yield f"    {where}, {each.quantity}: {each.outcome}{says}"
