"""Words and numbers made from records: nothing in the report's prose is typed by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paper_figures.style import BEST_OF_N, EXTREME, SIDES, label
from theory.predictions import Measurement, Prediction, Verdict

TOO_SMALL = "model too small to judge"
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EM DASH}"
QUANTITY = re.compile(r"^(\w+)\[(\w+)\](?: - (\w+)\[(\w+)\])?$")
RELATION_WORDS = {"greater": "> 0", "less": "< 0", "equal": "= 0"}


@dataclass(frozen=True)
class Quantity:
    """`metric[first] - metric[second]` taken apart; second is None for a single level."""

    metric: str
    first: str
    second: str | None


def parse_quantity(text: str) -> Quantity | None:
    """The parts of a quantity's name, or None where the name has another shape."""
    found = QUANTITY.match(text)
    if found is None or (found.group(3) and found.group(3) != found.group(1)):
        return None
    return Quantity(found.group(1), found.group(2), found.group(4))


def quantity_words(text: str) -> str:
    """'win_rate[dpo] - win_rate[sft]' -> 'win rate: DPO - SFT' with a true minus sign."""
    parts = parse_quantity(text)
    if parts is None:
        return text
    return f"{label(parts.metric)}: {arms_words(parts)}"


def arms_words(parts: Quantity) -> str:
    """'DPO - SFT' with a true minus sign; what both arms share is said once."""
    first, second = parts.first, parts.second
    if second is None:
        return label(first)
    if first == f"{second}_more_prompts":
        return f"{label(second)}: more {MINUS} same prompts"
    for shape in (BEST_OF_N, EXTREME):
        a, b = shape.fullmatch(first), shape.fullmatch(second)
        if a and b and a["n"] == b["n"]:
            return _best_of_words(a, b)
    return f"{label(first)} {MINUS} {label(second)}"


def _best_of_words(a: re.Match[str], b: re.Match[str]) -> str:
    n = f" (N = {a['n']})" if a["n"] else ""
    if a.re is EXTREME:
        return f"{a['which']} {MINUS} {b['which']} {SIDES[a['side']]}{n}"
    return f"{label(a['source'])} samples{n}: {label(a['by'])} {MINUS} {label(b['by'])}"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with `digits` decimals (scientific where that would print 0), a dash for None."""
    if value is None:
        return ABSENT
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    text = f"{value:{'+' if sign else ''}.{1 if small else digits}{'e' if small else 'f'}}"
    return text.replace("-", MINUS)


def plus_minus(value: float | None, error: float | None) -> str:
    """'+0.081 +- 0.012' or a dash; as many decimals as the error needs, at most 6."""
    if value is None:
        return ABSENT
    if error is None:
        return number(value, sign=True)
    digits = 3 if error <= 0 else min(max(3, math.ceil(-math.log10(error))), 6)
    return f"{number(value, digits, sign=True)} \N{PLUS-MINUS SIGN} {number(error, digits)}"


def span(low: float | None, high: float | None, *, sign: bool = True) -> str:
    """'[+0.01, +0.15]', or '' where there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def count(n: int | float) -> str:
    """1234567 -> '1,234,567'."""
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """'1 seed', '3 seeds'."""
    return f"{count(n)} {noun}" + ("" if n == 1 else "s")


def tally(outcomes: Iterable[str]) -> str:
    """'3 supported, 1 inconclusive', the most frequent first."""
    return ", ".join(f"{n} {outcome}" for outcome, n in Counter(outcomes).most_common())


def duration(seconds: float | None) -> str:
    """Seconds as '48 s', '12 min 5 s' or '3 h 20 min'."""
    if seconds is None:
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = math.floor(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listing(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


@dataclass(frozen=True)
class VerdictRow:
    """One row of the verdict table, in words."""

    figure: str
    quantity: str  # the name in the records
    claim: str  # the same in words, with the predicted relation
    unit: str
    predicted: str
    predicted_by: str
    measured: str
    interval: str
    seeds: str
    outcome: str
    reason: str
    needs: str
    paper_claim: str
    size: str  # of the model; "" where the measurement names none
    hypotheses: str  # "H6", or "" where the verdict names none


def verdict_row(verdict: Verdict) -> VerdictRow:
    """A verdict as the table shows it."""
    prediction, measured = verdict.prediction, verdict.measurement
    return VerdictRow(
        figure=figure_name(prediction.figure),
        quantity=prediction.quantity,
        claim=claim_words(prediction, margin_of(verdict)),
        unit=prediction.unit,
        predicted=plus_minus(prediction.value, prediction.error),
        predicted_by=predicted_by(prediction),
        measured=ABSENT if measured is None else number(measured.value, sign=True),
        interval="" if measured is None else span(measured.low, measured.high),
        seeds="" if measured is None else measured_by(measured),
        outcome=verdict.outcome,
        reason=verdict.reason,
        needs=verdict.needs or ABSENT,
        paper_claim=prediction.paper_claim,
        size="" if measured is None else measured.size or "",
        hypotheses=", ".join(verdict.hypotheses),
    )


def figure_name(name: str) -> str:
    """'fig3' -> 'Fig. 3'."""
    return f"Fig. {name[3:]}" if re.fullmatch(r"fig\d+", name) else name


def margin_of(verdict: Verdict) -> float:
    """What counts as no difference: the study's own margin, else the prediction's; 0 for none."""
    return verdict.margin or verdict.prediction.margin or 0.0


def claim_words(prediction: Prediction, margin: float | None = None) -> str:
    """The quantity and the relation that was predicted. margin: in place of the prediction's."""
    margin = margin or prediction.margin
    within = f" within {margin:g}" if prediction.relation == "equal" else ""
    return f"{quantity_words(prediction.quantity)} {RELATION_WORDS[prediction.relation]}{within}"


def predicted_by(prediction: Prediction) -> str:
    """Where the predicted value comes from: rung, family and number of replicates."""
    several = f", {plural(prediction.replicates, 'replicate')}" if prediction.replicates else ""
    return f"{prediction.rung} rung, {prediction.family}{several}"


def measured_by(measurement: Measurement) -> str:
    """Which interval over how many seeds, at which rung."""
    kind = measurement.interval if measurement.low is not None else "no interval"
    return f"{kind}; {plural(len(measurement.seeds), 'seed')}; {measurement.rung} rung"


def disagreements(verdicts: tuple[Verdict, ...]) -> list[str]:
    """One sentence for each verdict that is not 'supported', the contradicted ones first.

    What may not be judged at all, because the model is too small, shares one sentence.
    """
    out = [
        _disagreement(verdict)
        for outcome in ("contradicted", "inconclusive", "not measured")
        for verdict in verdicts
        if verdict.outcome == outcome
    ]
    too_small = [verdict for verdict in verdicts if verdict.outcome == TOO_SMALL]
    for reason in dict.fromkeys(verdict.reason for verdict in too_small):
        n = sum(verdict.reason == reason for verdict in too_small)
        out.append(f"{plural(n, 'prediction')}: {TOO_SMALL}. Reason: {reason}")
    return out


def _disagreement(verdict: Verdict) -> str:
    measured = verdict.measurement
    size = f" at {measured.size}" if measured is not None and measured.size else ""
    claim = claim_words(verdict.prediction, margin_of(verdict))
    what = f"{figure_name(verdict.prediction.figure)}{size}, {claim}"
    if measured is None:
        return f"{what}: not measured ({verdict.reason})."
    got = (
        f"measured {number(measured.value, sign=True)} {span(measured.low, measured.high)}".strip()
    )
    needs = f" What would decide: {verdict.needs}." if verdict.needs else ""
    return f"{what}: {verdict.outcome}; {got} {measured.unit}; {verdict.reason}.{needs}"


def doubts(predictions: Sequence[Prediction]) -> list[str]:
    """Where the predicting side itself disagrees with the relation that it is asked about."""
    return [
        f"{figure_name(p.figure)}, {claim_words(p)}: the {p.rung} rung itself gives "
        f"{plus_minus(p.value, p.error)} {p.unit}."
        for p in predictions
        if p.value is not None and not _agrees(p, p.value)
    ]


def _agrees(prediction: Prediction, value: float) -> bool:
    if prediction.relation == "equal":
        return abs(value) <= (prediction.margin or 0.0)
    return value > 0 if prediction.relation == "greater" else value < 0


def prediction_notes(predictions: Sequence[Prediction]) -> list[str]:
    """What the predicting side notes of its own numbers."""
    return [
        f"{figure_name(p.figure)}, {quantity_words(p.quantity)}: {p.note}"
        for p in predictions
        if p.note
    ]


@dataclass(frozen=True)
class MeasuredRow:
    """One measured quantity in words, whether or not anything was predicted of it."""

    figure: str
    size: str
    quantity: str
    value: str
    interval: str
    within: str
    prompts: str
    seeds: str
    unit: str
    note: str


def measured_row(measurement: Measurement) -> MeasuredRow:
    """A measurement as the table of everything measured shows it."""
    difference = " - " in measurement.quantity
    return MeasuredRow(
        figure=figure_name(measurement.figure),
        size=measurement.size or ABSENT,
        quantity=quantity_words(measurement.quantity),
        value=number(measurement.value, sign=difference),
        interval=span(measurement.low, measurement.high, sign=difference) or ABSENT,
        within="; ".join(span(*inside) if inside else ABSENT for inside in measurement.within or ())
        or ABSENT,
        prompts=span(*measurement.over_prompts) if measurement.over_prompts else ABSENT,
        seeds=str(len(measurement.seeds)),
        unit=measurement.unit,
        note=measurement.note or "",
    )
