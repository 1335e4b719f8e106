"""The one interface to sampling; `llm.sampling.sample` opens what stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One completion. ids end with EOS exactly if `ended`.

    It carries no log-probability: a sampler's numbers are not the trainer's (other kernels, another
    precision, no temperature), so that what trains is always scored again by `llm.models.forward`.
    """

    ids: tuple[int, ...]
    ended: bool


class Sampler(Protocol):
    """Draws K completions a prompt; the same seed gives the same samples, whatever the batching."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        report: Callable[[float], None] = ...,
    ) -> list[list[Sample]]:
        """For each prompt its K samples, at most `max_tokens` tokens each, EOS included.

        temperature 0 takes the likeliest token. Raises ValueError for an empty prompt, or for k,
        temperature or max_tokens out of range.
        """
        ...


def check_request(
    prompts: Sequence[Sequence[int]], *, k: int, temperature: float, max_tokens: int
) -> None:
    """Raise ValueError for what no sampler can draw; NaN never passes."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number >= 0, got {temperature}")
    if k < 1 or max_tokens < 1:
        raise ValueError(f"k = {k} and max_tokens = {max_tokens} must both be at least 1")
    empty = next((i for i, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} has no tokens: nothing to continue")
