"""A judge's verdicts on a policy's samples."""

from __future__ import annotations

from llm.work import Work

Metrics = dict[str, float | int | None]


def make(work: Work) -> Metrics:
    """Not written yet."""
    raise NotImplementedError("judged.make")
