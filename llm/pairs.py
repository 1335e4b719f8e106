"""Pairs that a study makes itself: of two-word summaries, ranked by ROUGE-L, of two SFT samples."""

from __future__ import annotations

from llm.work import Work

Metrics = dict[str, float | int | None]


def make(work: Work) -> Metrics:
    """Not written yet."""
    raise NotImplementedError("pairs.make")
