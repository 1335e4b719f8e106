"""What judging costs: an estimate before, from counts; a bill after, from the tokens counted."""

from __future__ import annotations

from dataclasses import dataclass

from llm.judge.texts import GENERATE_TWO_WORDS, SUMMARIES
from llm.runtime import Runtime

LETTERS_PER_TOKEN = 4.5  # of English prose; for the templates alone
ANSWER_TOKENS = 60  # a sentence of comparison and the verdict
MILLION = 1_000_000


@dataclass(frozen=True)
class Cost:
    """Questions, tokens and dollars."""

    questions: int
    tokens_in: int
    tokens_out: int
    dollars: float


def dollars(tokens_in: float, tokens_out: float, runtime: Runtime) -> float:
    """At the runtime's prices, dollars a million tokens."""
    return (tokens_in * runtime.price_in + tokens_out * runtime.price_out) / MILLION


def prompt_tokens(post: float, summary: float) -> float:
    """Mean tokens of one comparison's prompt, from those of its post and of one summary."""
    return len(SUMMARIES) / LETTERS_PER_TOKEN + post + 2 * summary


def generation_tokens(post: float) -> float:
    """Mean tokens of the prompt that asks for a two-word summary."""
    return len(GENERATE_TWO_WORDS) / LETTERS_PER_TOKEN + post


def estimate(
    n_comparisons: int,
    tokens_per_prompt: float,
    both_orders: bool,
    runtime: Runtime,
    tokens_per_answer: float = ANSWER_TOKENS,
) -> Cost:
    """Before anything is asked; an upper bound where texts repeat, as no question is asked twice.

    tokens_per_prompt: of the whole question (`prompt_tokens`).
    """
    questions = n_comparisons * (2 if both_orders else 1)
    tokens_in, tokens_out = questions * tokens_per_prompt, questions * tokens_per_answer
    money = dollars(tokens_in, tokens_out, runtime)
    return Cost(questions, round(tokens_in), round(tokens_out), money)
