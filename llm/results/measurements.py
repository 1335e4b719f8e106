"""Measurements of every figure: each arm alone, and the differences that its claims are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llm.protocol.figures import MORE_PROMPTS, REWARD_MODELS, SOURCES
from llm.results.arms import CONTROLLED, Arm, Column, Evidence
from llm.results.stats import (
    over_prompts,
    paired_bootstrap,
    prompts_to_decide,
    seeds_to_decide,
    t_interval,
)
from theory.predictions import Measurement

NO_INTERVAL = "none: fewer than two seeds"
WINS, SHARE = "win-rate points (0-1)", "share (0-1)"
UNITS = {
    "win_rate": WINS,
    CONTROLLED: WINS,
    "win_rate_one_order": WINS,
    "sampled_win_rate": WINS,
    "rouge_l": "ROUGE-L F1 (0-1)",
    "mean_tokens": "tokens",
    "mean_words": "words",
    "ended_rate": "share of samples (0-1)",
    "invalid": "comparisons",
    "expected_reward": "reward",
    "kl_to_optimum": "nats",
    "mass_on_task": "probability (0-1)",
    "val_loss": "nats per pair",
    "val_accuracy": "accuracy (0-1)",
    "val_accuracy_on_dpo_pairs": "accuracy (0-1)",
}
POLICY = tuple(name for name in UNITS if not name.startswith("val_"))
COMPARED = ("win_rate", CONTROLLED, "rouge_l", "mean_tokens", "mean_words")
BEST = ("win_rate", "sampled_win_rate", "rouge_l", "mean_tokens", "mass_on_task")
PAIRS = {  # of policies, as the figures' claims have them
    "fig3": (
        ("online_dpo_sft", "dpo"),
        ("online_dpo_dpo", "dpo_2x"),
        ("online_dpo_dpo", "dpo"),
    ),
    "fig5": (("online_dpo_dpo", "dpo"),),
    "fig6": (("online_dpo_dpo", "dpo"), ("dpo_2x", "dpo")),
    "fig7": ((MORE_PROMPTS, "online_dpo_sft"),),
    "fig8": (("online_dpo_dpo", "dpo"), ("online_dpo_sft", "dpo")),
}
GAP = ("online_dpo_dpo", "dpo")  # what Fig. 5 is about
ORDER = (("global_rm", "local_rm"), ("local_rm", "dpo_rm"))  # Figs. 9 and 10: better, worse
SIDES = {"rm": "reward model", "policy": "policy"}
SHARED = 0.95  # of the prompts of two arms
MATCHED = "global_rm_matched"
Term = tuple[float, Arm]
Table = tuple[tuple[float, ...], ...]  # for each seed its value on every prompt


@dataclass(frozen=True)
class Measured:
    """A measurement and what it was made of.

    table: for each seed its value on every prompt that all seeds have; empty where prompts are not
    paired, or are all that there are.
    """

    measurement: Measurement
    table: Table = ()

    def deciding(self, margin: float | None) -> Measurement:
        """The measurement with what would decide whether it lies within +-margin (None: off 0)."""
        found = self.measurement
        return replace(
            found,
            seeds_to_decide=seeds_to_decide(found.per_seed, margin=margin),
            prompts_to_decide=prompts_to_decide(self.table, margin=margin),
        )


def measurements(evidence: Evidence) -> list[Measured]:
    """Every measurement of every figure, at every size."""
    return [found for figure in evidence.figures for found in _of_figure(figure, evidence)]


def _of_figure(figure: str, evidence: Evidence) -> Iterator[Measured]:
    for size in evidence.sizes(figure):
        at = _At(figure, size, evidence)
        if figure == "fig9":
            yield from _fig9(at)
        elif figure in ("fig4", "fig10"):
            yield from _best_of_n(at)
        else:
            yield from _policies(at)
    if figure == "fig4":
        yield from _across_sizes(evidence)
    if figure == "fig5":
        yield from _gap_of_gaps(evidence)


@dataclass(frozen=True)
class _At:
    """One figure at one size."""

    figure: str
    size: str
    evidence: Evidence

    @property
    def arms(self) -> dict[str, Arm]:
        """By name, in the order of the evidence."""
        here = (self.figure, self.size)
        return {a: of for (f, a, s), of in self.evidence.arms.items() if (f, s) == here}

    def alone(self, measures: Sequence[str]) -> Iterator[Measured]:
        """Each arm, each measure."""
        for measure in measures:
            for name, arm in self.arms.items():
                found = _alone(self, measure, name, arm)
                if found is not None:
                    yield found

    def difference(
        self, measure: str, first: str, second: str, note: str | None = None
    ) -> Measured | None:
        """`measure[first] - measure[second]`, or None where an arm is missing."""
        arms = self.arms
        if first not in arms or second not in arms:
            return None
        quantity = f"{measure}[{first}] - {measure}[{second}]"
        terms = ((1.0, arms[first]), (-1.0, arms[second]))
        return contrast(self.figure, quantity, measure, terms, self.evidence, self.size, note=note)


def _policies(at: _At) -> Iterator[Measured]:
    yield from at.alone(POLICY)
    note = at.evidence.notes.get(at.figure)
    for measure in COMPARED:
        for first, second in PAIRS[at.figure]:
            found = at.difference(measure, first, second, note)
            if found is not None:
                yield found


def _fig9(at: _At) -> Iterator[Measured]:
    """Losses: worse less better. Accuracies: better less worse."""
    yield from at.alone(("val_loss", "val_accuracy"))
    for better, worse in (*ORDER, (MATCHED, "local_rm")):
        for measure in ("val_loss", "val_accuracy"):
            names = (worse, better) if measure == "val_loss" else (better, worse)
            found = at.difference(measure, *names)
            if found is None:
                continue
            if better == MATCHED:
                found = replace(found, measurement=_with_sentence(found.measurement))
            yield found


def _with_sentence(measurement: Measurement) -> Measurement:
    """What the arm with matched hyperparameters does to the claim of Fig. 9."""
    low, high = measurement.low, measurement.high
    if low is None or high is None:
        says = "too few seeds to say whether the claim rests on its ten times higher rate"
    elif low > 0:
        says = "it is ahead with theirs too: the claim does not rest on its ten times higher rate"
    elif high < 0:
        says = "it is behind with theirs: the claim rests on the hyperparameters of Table 2"
    else:
        says = "with theirs the interval holds 0: the claim may rest on its ten times higher rate"
    note = f"global reward model with the others' rate, batch and schedule (Table 3): {says}"
    return replace(measurement, note=note)


def _best_of_n(at: _At) -> Iterator[Measured]:
    yield from at.alone(BEST)
    if at.figure != "fig10":
        return
    counts = dict.fromkeys(int(n) for name in at.arms for n in re.findall(r"best_of_(\d+)_", name))
    for n in counts:
        for source in SOURCES:
            for better, worse in ORDER:
                for measure in ("win_rate", "rouge_l"):
                    names = [f"best_of_{n}_{source}_{rm}" for rm in (better, worse)]
                    found = at.difference(measure, *names)
                    if found is not None:
                        yield found
    yield from _on_dpo_pairs(at)


def _on_dpo_pairs(at: _At) -> Iterator[Measured]:
    """Accuracy on pairs of the DPO policy: of a reward model, whatever the N."""
    n = at.evidence.largest_n
    arms = {rm: at.arms.get(f"best_of_{n}_dpo_{rm}") for rm in REWARD_MODELS}
    measure = "val_accuracy_on_dpo_pairs"
    for rm, arm in arms.items():
        found = None if arm is None else _alone(at, measure, rm, arm)
        if found is not None:
            yield found
    for better, worse in ORDER:
        first, second = arms[better], arms[worse]
        if first is None or second is None:
            continue
        quantity = f"{measure}[{better}] - {measure}[{worse}]"
        terms = ((1.0, first), (-1.0, second))
        found = contrast(at.figure, quantity, measure, terms, at.evidence, at.size)
        if found is not None:
            yield found


def _across_sizes(evidence: Evidence) -> Iterator[Measured]:
    """Fig. 4: the largest reward model less the smallest, mean over policies; and the other way."""
    order, n = evidence.order, evidence.largest_n
    cells = {
        (policy, rm): evidence.arms.get(("fig4", f"best_of_{n}_by_{rm}", policy))
        for policy in order
        for rm in order
    }
    found = {key: arm for key, arm in cells.items() if arm is not None}
    if len(order) < 2 or len(found) < len(cells):
        return
    share, large, small = 1 / len(order), order[-1], order[0]
    sides = {
        "rm": [(s * share, found[p, rm]) for p in order for s, rm in ((1, large), (-1, small))],
        "policy": [(s * share, found[p, rm]) for rm in order for s, p in ((1, large), (-1, small))],
    }
    for side, terms in sides.items():
        for measure in ("win_rate", "rouge_l"):
            names = [f"{measure}[best_of_{n}_{which}_{side}]" for which in ("largest", "smallest")]
            says = f"{SIDES[side]} of {large} against {small}, mean over the other side's sizes"
            known = evidence.notes.get("fig4") if side == "policy" else None
            note = "; ".join(filter(None, [says, known]))
            made = contrast("fig4", " - ".join(names), measure, terms, evidence, None, note=note)
            if made is not None:
                yield made


def _gap_of_gaps(evidence: Evidence) -> Iterator[Measured]:
    """How much smaller the gap is with two words to write; prompts differ, seeds are paired."""
    for size in evidence.sizes("fig5"):
        arms = [evidence.arms.get((f, name, size)) for f in ("fig3", "fig5") for name in GAP]
        terms = [(s, a) for s, a in zip((1.0, -1.0, -1.0, 1.0), arms, strict=True) if a is not None]
        if len(terms) == len(arms):
            quantity = "gap[fig3] - gap[fig5]"
            made = contrast("fig5", quantity, "win_rate", terms, evidence, size, paired=False)
            if made is not None:
                yield made


# --- one measurement -----------------------------------------------------------------------------


def _alone(at: _At, measure: str, name: str, arm: Arm) -> Measured | None:
    seeds = at.evidence.seeds[:1] if arm.shared else at.evidence.seeds
    note = "one model, shared by all seeds" if arm.shared else None
    points = {s: v for s in seeds if (v := arm.of(s, measure)) is not None}
    within = None
    if measure == CONTROLLED:
        fits = [arm.controlled.get(None if arm.shared else seed) for seed in seeds]
        reasons = sorted({fit.reason for fit in fits if fit is not None and fit.reason})
        note = "; ".join([*([note] if note else []), *reasons]) or None
        kept = [fit.interval for fit in fits if fit is not None and fit.win_rate is not None]
        within = [None if i is None else (i.low, i.high) for i in kept]
    quantity = f"{measure}[{name}]"
    if not points and measure == CONTROLLED and note is not None and arm.controlled:
        return Measured(_nothing(at, quantity, measure, note))
    return _measured(at.figure, quantity, measure, points, at.evidence, at.size, within, note)


def _nothing(at: _At, quantity: str, measure: str, note: str) -> Measurement:
    """A measurement that was tried and gave no number, with the reason."""
    none = {"value": None, "low": None, "high": None, "interval": NO_INTERVAL}
    empty = {"seeds": (), "per_seed": (), "rung": at.evidence.rung}
    return Measurement(
        at.figure, quantity, UNITS[measure], **none, **empty, note=note, size=at.size
    )


def contrast(
    figure: str,
    quantity: str,
    measure: str,
    terms: Sequence[Term],
    evidence: Evidence,
    size: str | None,
    *,
    paired: bool = True,
    note: str | None = None,
) -> Measured | None:
    """A sum of arms with signs, seed by seed; None where no seed has all of them.

    paired: the arms answer the same prompts, so that prompts give an interval inside each seed;
    else two groups of arms (the first half of the terms, the second) each answer their own. The
    value itself is of each arm's own mean.
    """
    points: dict[int, float] = {}
    for seed in evidence.seeds:
        values = [arm.of(seed, measure) for _, arm in terms]
        known = [value for value in values if value is not None]
        if len(known) == len(terms):
            points[seed] = sum(w * v for (w, _), v in zip(terms, known, strict=True))
    half = len(terms) // 2
    groups = [terms] if paired else [terms[:half], terms[half:]]
    tables = [_table(group, points, measure) for group in groups]
    columns = {seed: _difference(terms, seed, measure) for seed in points} if paired else {}
    within = [_within(column, seed) for seed, column in columns.items()]
    note = "; ".join(filter(None, [note, _unshared(terms, measure, columns)])) or None
    made = _measured(
        figure, quantity, measure, points, evidence, size, within if paired else None, note
    )
    if made is None or made.measurement.value is None or not evidence.sampled:
        return made
    others = over_prompts(made.measurement.value, tables)
    measurement = replace(made.measurement, over_prompts=others)
    return Measured(measurement, tables[0] if paired else ())


def _table(terms: Sequence[Term], seeds: Iterable[int], measure: str) -> Table:
    """For each seed the same sum with signs, on every prompt that all arms and seeds have."""
    columns = [_difference(terms, seed, measure) for seed in seeds]
    ids = [i for i in (columns[0] if columns else ()) if all(i in c for c in columns)]
    return tuple(tuple(column[i] for i in ids) for column in columns)


def _difference(terms: Sequence[Term], seed: int, measure: str) -> Column:
    """For each prompt that all arms have a value on, the same sum with signs."""
    columns = [(weight, arm.column(seed, measure)) for weight, arm in terms]
    common = [i for i in columns[0][1] if all(i in column for _, column in columns)]
    return {i: sum(weight * column[i] for weight, column in columns) for i in common}


def _unshared(terms: Sequence[Term], measure: str, columns: dict[int, Column]) -> str | None:
    """Says so where arms were measured on prompts that differ by more than a twentieth."""
    for seed, common in columns.items():
        most = max(len(arm.column(seed, measure)) for _, arm in terms)
        if common and len(common) < SHARED * most:
            return f"intervals over prompts on {len(common):,} of {most:,}: the others differ"
    return None


def _within(column: Column, seed: int) -> tuple[float, float] | None:
    values = list(column.values())
    interval = paired_bootstrap(values, [0.0] * len(values), seed=seed)
    return None if interval is None else (interval.low, interval.high)


def _measured(
    figure: str,
    quantity: str,
    measure: str,
    points: dict[int, float],
    evidence: Evidence,
    size: str | None,
    within: Sequence[tuple[float, float] | None] | None,
    note: str | None,
) -> Measured | None:
    """Mean and t interval over the seeds that have a value; None if none has."""
    if not points:
        return None
    values = tuple(points.values())
    interval = t_interval(values)
    measurement = Measurement(
        figure=figure,
        quantity=quantity,
        unit=UNITS[measure],
        value=sum(values) / len(values),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        interval=NO_INTERVAL if interval is None else interval.kind,
        seeds=tuple(points),
        per_seed=values,
        rung=evidence.rung,
        within=None if within is None else tuple(within),
        seeds_to_decide=seeds_to_decide(values),
        note=note,
        size=size,
    )
    return Measured(measurement)
