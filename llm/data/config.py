"""How much data is used and where texts are cut: the frozen settings of `llm.data.source.load`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llm.errors import InputError

PROMPT_END = "TL;DR:"  # what the sources' own reference summaries answer


@dataclass(frozen=True)
class DataConfig:
    """Limits in tokens and numbers of examples; None = all that the source holds.

    The token limits are the TL;DR conventions (Stiennon et al. 2020; the paper's App. C). For a
    task the four numbers are sample sizes and must be given, except n_test: None = every prompt
    once. For text, n_test=None and n_validation_pairs=None keep an official split where the source
    has one, and a tenth of the posts otherwise.
    """

    max_prompt_tokens: int = 512  # a longer post is cut at its last newline, and counted
    max_completion_tokens: int = 53  # H: reference summaries and generated text, EOS included
    max_pair_completion_tokens: int = 169  # a compared summary, EOS included; longer: cut, counted
    n_sft: int | None = None  # posts with their reference summary
    n_pairs: int | None = None  # training comparisons
    n_validation_pairs: int | None = None  # comparisons on posts that no training stage sees
    n_test: int | None = None  # evaluation posts with their reference summary
    prompt_end: str = PROMPT_END  # how a text prompt ends; another one has no SFT part
    paired_prompts: float = 1.0  # the share of a task's prompts that training pairs stand on

    def __post_init__(self) -> None:
        if not 0 < self.paired_prompts <= 1:
            raise InputError(
                f"data setting paired_prompts = {self.paired_prompts} is not in (0, 1]"
            )
        if not self.prompt_end.strip():
            raise InputError("data setting prompt_end is empty")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("prompt_end", "paired_prompts"):
                continue
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"data setting {field.name} = {value!r} is not a positive integer")
        for name in ("max_completion_tokens", "max_pair_completion_tokens"):
            if getattr(self, name) < 2:
                raise InputError(f"data setting {name} = 1 leaves room for EOS alone")

    @property
    def has_references(self) -> bool:
        """Whether the source's summaries answer the prompt: not where it asks for two words."""
        return self.prompt_end == PROMPT_END
