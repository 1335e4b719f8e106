"""How stages run and what they may reach: nothing here decides a number, nothing here is hashed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llm.errors import InputError

MICRO_TOKENS = 2**13
MOST_TOKENS = 2**20


@dataclass(frozen=True)
class Runtime:
    """Where the judge is, how fast it may be asked, what it costs; how many GPUs a stage takes.

    key_name: the environment variable that holds the API key; the key itself is never stored.
    prices: dollars a million tokens.
    """

    base_url: str | None = None  # None: OPENAI_BASE_URL of the environment, else OpenAI's own
    key_name: str = "OPENAI_API_KEY"
    concurrency: int = 16
    requests_per_minute: int | None = None
    retries: int = 6
    timeout: float = 60.0  # seconds a request
    price_in: float = 2.5
    price_out: float = 10.0
    gpus: int = 1  # a training stage; more than one runs it under torchrun
    micro_tokens: int = (
        MICRO_TOKENS  # of a pass of a model at most (or one prompt with its completions)
    )
    tensor_parallel: int = 1  # vLLM
    data_parallel: int = 1  # vLLM
    vllm_python: str | None = None  # another environment's python that has vLLM; None: this one
    tracker: str = "tensorboard"  # any that transformers.Trainer knows; "none"

    def __post_init__(self) -> None:
        counts = ("concurrency", "retries", "gpus", "tensor_parallel", "data_parallel")
        for name in (*counts, "micro_tokens", "timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"runtime setting {name} = {getattr(self, name)!r} must be > 0")
        if self.micro_tokens > MOST_TOKENS:
            raise InputError(f"--micro-tokens {self.micro_tokens}: at most {MOST_TOKENS}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise InputError(
                f"runtime setting requests_per_minute = {self.requests_per_minute!r} must be > 0"
            )
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key_name):  # a key, it may be
            raise InputError(
                "--key-name is the name of an environment variable, in capitals, digits and _ "
                "(such as OPENAI_API_KEY), not the key itself; what was given is no such name and "
                "is not repeated here"
            )
        for name in ("price_in", "price_out"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"runtime setting {name} = {getattr(self, name)!r} must be finite, >= 0"
                )
