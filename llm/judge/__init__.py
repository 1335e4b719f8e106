"""Judges: a task's gold reward, ROUGE-L, and a model behind an OpenAI-compatible endpoint."""

from llm.judge.gold import GoldJudge
from llm.judge.rouge import RougeLJudge
from llm.judge.scores import TIE, Judge, Score, invalid, outcomes, win_rate

__all__ = [
    "TIE",
    "GoldJudge",
    "Judge",
    "RougeLJudge",
    "Score",
    "invalid",
    "outcomes",
    "win_rate",
]
