"""Judges: a task's gold reward, ROUGE-L, and a model behind an OpenAI-compatible endpoint."""

from llm.judge.ask import Bill, ModelJudge, judge_name
from llm.judge.cost import Cost, estimate, generation_tokens, prompt_tokens
from llm.judge.endpoint import EndpointError
from llm.judge.gold import GoldJudge
from llm.judge.open import check_judge, open_judge, reach_judge
from llm.judge.rouge import RougeLJudge
from llm.judge.scores import TIE, Judge, Score, invalid, outcomes, win_rate
from llm.judge.texts import Comparison, Preference, TextJudge, Verdict

__all__ = [
    "TIE",
    "Bill",
    "Comparison",
    "Cost",
    "EndpointError",
    "GoldJudge",
    "Judge",
    "ModelJudge",
    "Preference",
    "RougeLJudge",
    "Score",
    "TextJudge",
    "Verdict",
    "check_judge",
    "estimate",
    "generation_tokens",
    "invalid",
    "judge_name",
    "open_judge",
    "outcomes",
    "prompt_tokens",
    "reach_judge",
    "win_rate",
]
