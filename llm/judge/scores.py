"""A score for every completion, and the win rate of one list of scores over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llm.data.example import Example

Score = float | None  # None: the text cannot be scored (no completion of the task)
TIE = 1e-9  # gold rewards this close, as a share of the larger of 1 and themselves, tie


class Judge(Protocol):
    """Scores completions of examples, the higher the better; None where it cannot."""

    @property
    def name(self) -> str: ...

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Score]: ...


def outcomes(a: Sequence[Score], b: Sequence[Score]) -> np.ndarray:
    """1 where a beats b, 0.5 for a tie, 0 where it loses; unscored loses, two unscored tie."""
    made = np.empty(len(a))
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if x is None or y is None:
            made[i] = 0.5 * (1 + (x is not None) - (y is not None))
        elif abs(x - y) <= TIE * max(1.0, abs(x), abs(y)):
            made[i] = 0.5
        else:
            made[i] = float(x > y)
    return made


def win_rate(a: Sequence[Score], b: Sequence[Score]) -> float | None:
    """The share (0-1) of prompts where a beats b, ties half; None of no prompts."""
    return float(outcomes(a, b).mean()) if len(a) or len(b) else None


def invalid(scores: Sequence[Score]) -> int:
    """How many texts could not be scored."""
    return sum(score is None for score in scores)
