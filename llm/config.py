"""Frozen settings of a study; the presets that fill them are in `llm.protocol.presets`.

A derived value (a small model's learning rate, the number of steps) is computed, never stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llm.data.config import DataConfig
from llm.errors import InputError

PAPER_WIDTH = 2048  # Pythia 1.4B
PAPER_PAIRS = 92_900  # Table 1, PFT train
FIGURES = ("fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "fig10")
DataKind = Literal["task", "text"]
Precision = Literal["fp32", "bf16"]


# Branches of data: pairs of two-word summaries (Fig. 5), pairs ranked by ROUGE-L (Fig. 6), pairs of
# two SFT samples (Fig. 8); on a task, pairs on some of the prompts (Fig. 7).
BRANCHES = ("two_word", "ranked", "narrow", "few_prompts")
# What counts as "no gap", fixed before any run: win-rate points; Fig. 6: ROUGE-L F1. 600 prompts
# resolve about 1.8 points (one standard error), so that no smaller margin could be decided.
MARGINS = {"fig4": 0.02, "fig5": 0.01, "fig6": 0.01, "fig7": 0.02, "fig8": 0.02}


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-NeoX from scratch, or a pretrained causal LM by name or folder (`pretrained`)."""

    pretrained: str | None = None
    revision: str | None = None
    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    max_positions: int = 1024
    sha256: str | None = None  # of a pretrained model in a local folder

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "max_positions"):
            if getattr(self, name) < 1:
                raise InputError(f"model setting {name} = {getattr(self, name)} is not positive")
        if self.hidden_size % self.heads:
            raise InputError(
                f"model setting hidden_size = {self.hidden_size} is not a multiple of "
                f"heads = {self.heads}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training stage. The tables state neither warm-up nor weight decay nor clipping.

    paper_rate: the rate at the paper's width and number of steps; `learning_rate` scales it.
    """

    batch_size: int  # examples (pairs) a step
    paper_rate: float
    paper_batch: int
    schedule: Literal["cosine", "linear"]
    epochs: int = 1
    adam_eps: float = 1e-5
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    save_steps: int = 200
    order: Literal["row", "prompt"] = "row"  # "prompt": rows of one prompt share a step's forward
    fixed_rate: float | None = None  # set: used as it stands, no rule (training from scratch)
    on_prompt: bool = False  # SFT alone: the loss counts the prompt's tokens too

    def __post_init__(self) -> None:
        for name in ("batch_size", "paper_rate", "paper_batch", "epochs", "adam_eps", "save_steps"):
            if not getattr(self, name) > 0:
                raise InputError(f"training setting {name} = {getattr(self, name)!r} must be > 0")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"training setting {name} = {getattr(self, name)!r} must be >= 0")

    def learning_rate(self, *, width: int, examples: int) -> float:
        """The paper's rate, scaled so that width x steps x rate stays as in the paper's 1.4B run.

        Under Adam a pre-activation moves by about rate x width a step: the one rule for every stage
        that starts from a trained model. examples: preference pairs of the data set, once; so DPO,
        DPO (2x) and online DPO (which may drop pairs) all train at one rate. At the paper's own
        width and data the rate is the table's.
        """
        if self.fixed_rate is not None:
            return self.fixed_rate
        steps = math.ceil(examples / self.batch_size)
        paper_steps = PAPER_PAIRS / self.paper_batch
        return self.paper_rate * (PAPER_WIDTH / width) * (paper_steps / steps)


@dataclass(frozen=True)
class OnlineConfig:
    """Best and worst of K by the global reward model, once for the whole data set (App. C.1.1)."""

    samples: int = 25  # K, for each preference row
    temperature: float = 0.1  # of sampling, and 1/scale of the logits in the loss (Table 3)
    pool: Literal["row", "prompt"] = "row"  # K draws a preference row, or shared by a prompt's rows
    more_prompts: int | None = None  # SFT prompts added in Fig. 7; None = all
    batch_prompts: int = 32

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"online setting samples = {self.samples}: best and worst need 2")
        if not self.temperature > 0:
            raise InputError(f"online setting temperature = {self.temperature} must be > 0")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of policies and reward models (App. C.4)."""

    temperature: float = 0.01
    batch_prompts: int = 50
    pool: int = 25  # samples a prompt for best-of-N (Figs. 4 and 10), at the online temperature
    counts: tuple[int, ...] = (1, 2, 5, 10, 25)  # N, at most `pool`

    def __post_init__(self) -> None:
        rising = list(self.counts) == sorted(set(self.counts))
        if not self.counts or not rising or min(self.counts) < 1 or max(self.counts) > self.pool:
            raise InputError(
                f"evaluation setting counts = {list(self.counts)} must rise and lie in "
                f"1..{self.pool} (pool)"
            )


@dataclass(frozen=True)
class JudgeConfig:
    """Who compares two summaries of text (App. C.4). A task is judged by its own gold reward.

    What decides a verdict and nothing else: the address, key, rate and price of an endpoint are
    `llm.runtime.Runtime`'s, and change no stage's address. generation_temperature: of the two-word
    summaries that the judge writes (App. C.1 is silent; at 0 both of a pair would be one text).
    """

    model: str | None = None  # of an OpenAI-compatible endpoint; None: ROUGE-L scores alone
    content: str | None = None  # of a local judge's files (local:FOLDER)
    both_orders: bool = True
    max_tokens: int = 200
    temperature: float = 0.0
    generation_temperature: float = 1.0


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides the numbers of a study, apart from data, tokenizer and seeds.

    models: by size name; the first is the main size, at which every figure is measured. wide: the
    figures that are measured at all sizes. data: the main data's limits. branches: limits of the
    branches that read data of their own (`BRANCHES`). margins: figure -> what counts as "no gap".
    """

    preset: str
    kind: DataKind
    models: Mapping[str, ModelConfig]
    data: DataConfig
    sft: TrainConfig
    global_rm: TrainConfig
    dpo: TrainConfig  # also local reward model and online DPO: one rule for every DPO arm
    branches: Mapping[str, DataConfig] = field(default_factory=dict)
    wide: tuple[str, ...] = ("fig4",)
    dpo_beta: float = 0.05
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sampler: Literal["transformers", "vllm"] = "transformers"
    precision: Precision = "fp32"
    sft_seed: int = 0  # one SFT model a size, shared by the seeds of everything after it
    judges_text: bool = False  # whether a verdict on real text may stand at this size
    margins: Mapping[str, float] = field(default_factory=lambda: dict(MARGINS))

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("a study needs at least one model size")
        if not self.dpo_beta > 0:
            raise InputError(f"study setting dpo_beta = {self.dpo_beta} must be > 0 (KL weight)")
        for figure, margin in self.margins.items():
            if figure not in FIGURES or not margin > 0:
                raise InputError(f"study setting margins[{figure!r}] = {margin!r} must be > 0")
        unknown = set(self.branches) - set(BRANCHES)
        if unknown:
            raise InputError(f"unknown branch {min(unknown)!r}; known: {', '.join(BRANCHES)}")

    @property
    def main(self) -> str:
        """The main size."""
        return next(iter(self.models))

    def sizes(self, figure: str) -> tuple[str, ...]:
        """The sizes at which a figure is measured."""
        return tuple(self.models) if figure in self.wide else (self.main,)

    def branch_of(self, figure: str) -> str:
        """The branch of data that a figure trains on; "" is the main one."""
        if figure == "fig7":  # a task's pairs stand on some prompts only; text has enough others
            return "few_prompts" if self.kind == "task" else ""
        return {"fig5": "two_word", "fig6": "ranked", "fig8": "narrow"}.get(figure, "")

    def limits(self, branch: str) -> DataConfig:
        """The data limits of a branch: its own, or the main data's."""
        return self.branches.get(branch, self.data)

    def local_beta(self, branch: str) -> float:
        """The constant that scales the local reward model's log-probability: 1/H (Table 4)."""
        eos = self.kind == "task"  # a task's horizon does not count the EOS that ends it
        return 1.0 / (self.limits(branch).max_completion_tokens - eos)

    def to_json(self) -> dict[str, Any]:
        """The whole configuration as plain JSON values."""
        return asdict(self)


def check_figures(figures: tuple[str, ...]) -> tuple[str, ...]:
    """The figures in order, each once, or InputError naming the unknown one."""
    for figure in figures:
        if figure not in FIGURES:
            raise InputError(f"unknown figure {figure!r}; known: {', '.join(FIGURES)}")
    return tuple(figure for figure in FIGURES if figure in figures)
