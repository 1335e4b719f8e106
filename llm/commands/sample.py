"""`python -m llm sample`: completions of a trained policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llm.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw completions of a policy for the prompts of a study's data, as a study does.

    Reads the folder of a finished stage that trained a policy, and that of its data stage; writes
    samples.parquet: prompt, sample, tokens, whether it ended, its score (gold reward on a task,
    ROUGE-L F1 on text) and its reference.

    Example: python -m llm sample out/study/stages/dpo-0-1a2b3c4d5e6f
      --data out/study/stages/data-7ed403cee9a6 --k 25 --temperature 0.1 --out out/samples
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of the policy: config.json and safetensors."""
    data: Path
    """Folder of the data stage: prompts, vocabulary, tokenizer."""
    out: Path
    """Folder that samples.parquet is written to; new, or without one."""
    part: Literal["test", "validation_pairs", "pairs", "sft"] = "test"
    """Whose prompts."""
    prompts: int | None = None
    """At most so many of them, from the first. Default: all."""
    k: int = 1
    """Completions a prompt."""
    temperature: float = 0.01
    """0.01 for evaluation, 0.1 for pools (App. C.4); 0 takes the likeliest token."""
    max_tokens: int = 53
    """Of a completion, its EOS included."""
    seed: int = 0
    """Of the draws."""
    sampler: Literal["transformers", "vllm"] = "transformers"
    """What generates."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of every forward."""
    runtime: Annotated[Runtime, tyro.conf.OmitArgPrefixes] = field(default_factory=Runtime)

    def run(self) -> int:
        """Exit code: 0 when they are written, 1 if vLLM fails, 2 for bad input."""
        from llm import tables
        from llm.config import EvalConfig
        from llm.errors import InputError
        from llm.protocol.stage import Stage
        from llm.records import check_writable
        from llm.stages.evaluate import SAMPLES, draw, sample_rows, task_of
        from llm.stages.work import Work

        _needs(self.data, f"{self.part}.parquet", "vocabulary.json", "tokenizer")
        _needs(self.model, "config.json", "model.safetensors")
        if (self.out / "samples.parquet").exists():
            raise InputError(f"{self.out} holds samples.parquet: choose another --out")
        check_writable(self.out)
        if self.seed < 0 or (self.prompts is not None and self.prompts < 1):
            raise InputError("--seed must be 0 or more, --prompts a positive number")
        if self.k < 1 or self.max_tokens < 1 or not 0 <= self.temperature < float("inf"):
            raise InputError("--k, --max-tokens and --temperature must be positive numbers")
        examples = tables.read_examples(self.data / f"{self.part}.parquet")[: self.prompts]
        longest = max((len(example.prompt_ids) for example in examples), default=0)
        _fits(self.model, self.data, longest + self.max_tokens)
        settings = {
            "evaluation": asdict(EvalConfig()),
            "sampling": {"sampler": self.sampler, "precision": self.precision},
            "tokens": self.max_tokens,
        }
        stage = Stage("sample", "eval_policy", None, (), settings, 1)
        inputs = {"policy": self.model, "data": self.data}
        work = Work(stage, inputs, self.out, "", None, self.runtime)
        drawn = draw(work, examples, k=self.k, temperature=self.temperature, seed=self.seed)
        rows = sample_rows(work, examples, drawn, task_of(work))
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.out / "samples.parquet.partial"
        tables.write_rows(partial, rows, SAMPLES)
        partial.replace(self.out / "samples.parquet")
        print(f"{len(rows)} samples of {len(examples)} prompts in {self.out / 'samples.parquet'}")
        return 0


def _fits(model: Path, data: Path, longest: int) -> None:
    """Raise InputError where the model has too few words or positions for the data."""
    from llm.errors import InputError
    from llm.records import read_json

    shape, words = read_json(model / "config.json"), read_json(data / "vocabulary.json")["size"]
    if words > shape.get("vocab_size", words):
        raise InputError(f"{data} has {words} words, {model} only {shape['vocab_size']}")
    if longest > shape.get("max_position_embeddings", longest):
        raise InputError(
            f"prompt and completion take up to {longest} tokens (--max-tokens), {model} has "
            f"{shape['max_position_embeddings']} positions"
        )


def _needs(folder: Path, *names: str) -> None:
    """Raise InputError unless the folder holds them."""
    from llm.errors import InputError

    for name in names:
        if not (folder / name).exists():
            raise InputError(f"{folder}: holds no {name}")
