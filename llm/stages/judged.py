"""A judge's verdicts on a policy's samples against the references (App. C.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from llm import tables
from llm.errors import InputError
from llm.judge import Comparison, ModelJudge, Preference, open_judge
from llm.judge.texts import escaped, same
from llm.stages.work import Work

Metrics = dict[str, float | int | None]

VERDICT = pa.schema(
    [
        ("id", pa.string()),
        ("sample_index", pa.int32()),
        ("order", pa.string()),  # "ab": the policy's summary is A; "ba": the reference is
        ("preferred", pa.string()),  # "A", "B"; null: the answer could not be read
        ("answer", pa.string()),
        ("question_sha256", pa.string()),  # the key in the study's store of answers
        ("model", pa.string()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("date", pa.string()),
        ("asked_here", pa.bool_()),
    ]
)
SCORE = pa.schema(
    [
        ("id", pa.string()),
        ("sample_index", pa.int32()),
        ("win_rate", pa.float64()),  # 1, 0.5 (the orders disagree), 0; null: unreadable
        ("win_rate_one_order", pa.float64()),
    ]
)


def make(work: Work) -> Metrics:
    """Ask the judge about every sample; writes verdicts.parquet and scores.parquet.

    verdicts: one row a comparison and order. scores: one row a sample, in the samples' order.
    """
    rows = [_checked(row) for row in tables.read_rows(work.inputs["samples"] / "samples.parquet")]
    compared = [Comparison(row["prompt"], row["sample"], row["reference"]) for row in rows]
    with open_judge(work) as judge:
        preferences = judge.prefer(compared, work.report)
        metrics = {**summary(preferences), **costs(judge)}
    ids = [{"id": row["prompt_id"], "sample_index": row.get("sample_index") or 0} for row in rows]
    verdicts = list(_verdict_rows(ids, preferences))
    tables.write_rows(work.folder / "verdicts.parquet", verdicts, VERDICT)
    scores = [
        {**own, "win_rate": each.score, "win_rate_one_order": each.one_order}
        for own, each in zip(ids, preferences, strict=True)
    ]
    tables.write_rows(work.folder / "scores.parquet", scores, SCORE)
    identical = sum(same(comparison) for comparison in compared)
    touched = sum(escaped(comparison) for comparison in compared)
    return {**metrics, "identical": identical, "escaped": touched}


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("prompt", "sample", "reference"):
        if not isinstance(row.get(name), str):
            raise InputError(f"prompt {row.get('prompt_id')}: its {name} is {row.get(name)!r}")
    return row


def _verdict_rows(
    ids: Sequence[Mapping[str, Any]], preferences: Sequence[Preference]
) -> Iterator[dict[str, Any]]:
    for own, preference in zip(ids, preferences, strict=True):
        for verdict in preference.verdicts:
            yield {
                **own,
                "order": verdict.order,
                "preferred": verdict.letter,
                "answer": verdict.answer,
                "question_sha256": verdict.key,
                "model": verdict.model,
                "tokens_in": verdict.tokens_in,
                "tokens_out": verdict.tokens_out,
                "date": verdict.date,
                "asked_here": verdict.asked,
            }


def summary(preferences: Sequence[Preference]) -> Metrics:
    """Win rates over what could be read, and the counts of what could not.

    invalid: comparisons left out of the win rate, as an order's answer could not be read.
    position_bias: the share of A among readable answers; in both orders 0.5 is even-handed.
    agreement: the share of comparisons asked in both orders whose verdicts agree.
    """
    verdicts = [verdict for each in preferences for verdict in each.verdicts]
    letters = [verdict.letter for verdict in verdicts if verdict.letter is not None]
    both = [each.score for each in preferences if len(each.verdicts) == 2]
    return {
        "win_rate": _mean([each.score for each in preferences]),
        "win_rate_one_order": _mean([each.one_order for each in preferences]),
        "comparisons": len(preferences),
        "invalid": sum(each.score is None for each in preferences),
        "invalid_answers": len(verdicts) - len(letters),
        "position_bias": _mean([float(letter == "A") for letter in letters]),
        "agreement": _mean([None if score is None else float(score != 0.5) for score in both]),
    }


def costs(judge: ModelJudge) -> Metrics:
    """What was asked, and what it cost; see `llm.judge.Bill`."""
    bill = judge.bill()
    return {
        "asked": bill.asked,
        "reused": bill.reused,
        "refused": bill.refused,
        "tokens_in": bill.tokens_in,
        "tokens_out": bill.tokens_out,
        "dollars": bill.dollars,
        "judge_models": bill.models,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what is there; None of nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
