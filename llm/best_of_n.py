"""Best-of-N: pools of samples, and their curves by a reward model."""

from __future__ import annotations

from llm.work import Work

Metrics = dict[str, float | int | None]


def pool(work: Work) -> Metrics:
    """Not written yet."""
    raise NotImplementedError("best_of_n.pool")


def curve(work: Work) -> Metrics:
    """Not written yet."""
    raise NotImplementedError("best_of_n.curve")
