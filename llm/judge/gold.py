"""The judge of a task: its own gold reward."""

from __future__ import annotations

from collections.abc import Sequence

from llm.data.example import Example
from llm.data.task import Task
from llm.judge.scores import Score


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
