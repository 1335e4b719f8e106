"""The judge of text where no model is asked: ROUGE-L against the reference."""

from __future__ import annotations

from collections.abc import Sequence

from llm.data.example import Example
from llm.judge.scores import Score


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
