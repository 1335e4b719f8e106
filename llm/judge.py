"""Judges: a score for every completion, and the win rate of one list of scores over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llm.data.example import Example
from llm.data.task import Task

Score = float | None  # None: the text cannot be scored (no completion of the task)
TIE = 1e-9  # gold rewards this close, as a share of the larger of 1 and themselves, tie


class Judge(Protocol):
    """Scores completions of examples, the higher the better; None where it cannot."""

    @property
    def name(self) -> str: ...

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Score]: ...


class GoldJudge:
    """The task's own reward r* of a completion, reward units; None for what is no completion.

    Unscored texts are invalid: `invalid` counts them, `win_rate` makes them lose.
    """

    name = "gold reward"

    def __init__(self, task: Task) -> None:
        self.task = task

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Score]:
        """One score a completion; raises ValueError for a prompt that the task does not have."""
        made: list[Score] = []
        for example, completion in zip(examples, completions, strict=True):
            prompt = self.task.prompt_of(example.prompt)
            if prompt is None:
                raise ValueError(
                    f"{example.example_id}: {example.prompt!r} is no prompt of the task"
                )
            leaf = self.task.leaf_of(completion)
            made.append(None if leaf is None else float(self.task.reward[prompt, leaf]))
        return made


class RougeLJudge:
    """ROUGE-L F1 (0-1) against the example's reference, with the Porter stemmer (rouge-score).

    An empty completion scores 0: it shares nothing with the reference.
    """

    name = "ROUGE-L F1 against the reference, stemmed"

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer  # slow to import

        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Score]:
        """One score a completion; the reference is the example's first completion."""
        return [
            float(self._scorer.score(example.completions[0], completion)["rougeL"].fmeasure)
            for example, completion in zip(examples, completions, strict=True)
        ]


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
