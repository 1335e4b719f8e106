"""Frozen settings of a study: the paper's Tables 2-4, changed by presets where they must be.

A derived value (a small model's learning rate, the number of steps) is computed, never stored.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from llm.data.config import DataConfig
from llm.errors import InputError

PAPER_WIDTH = 2048  # Pythia 1.4B
PAPER_PAIRS = 92_900  # Table 1, PFT train
FIGURES = ("fig3", "fig9")
DataKind = Literal["task", "text"]


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
    """One training stage. What no table states: no warm-up, no weight decay, clipping at 1.

    paper_rate: the rate at the paper's width and number of steps; `learning_rate` scales it.
    """

    batch_size: int  # examples (pairs) a step
    paper_rate: float
    paper_batch: int
    schedule: Literal["cosine", "linear"]
    epochs: int = 1
    adam_eps: float = 1e-5
    max_grad_norm: float = 1.0
    accumulation: int = 1
    save_steps: int = 200
    order: Literal["row", "prompt"] = "row"  # "prompt": rows of one prompt share a step's forward
    fixed_rate: float | None = None  # set: used as it stands, no rule (training from scratch)

    def __post_init__(self) -> None:
        for name in ("batch_size", "paper_rate", "paper_batch", "epochs", "adam_eps", "save_steps"):
            if not getattr(self, name) > 0:
                raise InputError(f"training setting {name} = {getattr(self, name)!r} must be > 0")
        if self.batch_size % self.accumulation:
            raise InputError(
                f"training setting batch_size = {self.batch_size} is not a multiple of "
                f"accumulation = {self.accumulation}"
            )

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
    score_batch: int = 64


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides the numbers of a study, apart from data, tokenizer and seeds."""

    preset: str
    model: ModelConfig
    data: DataConfig
    sft: TrainConfig
    global_rm: TrainConfig
    dpo: TrainConfig  # also local reward model and online DPO: one rule for every DPO arm
    dpo_beta: float = 0.05
    local_beta: float | None = None  # None: 1/H of the data (Table 4: 1/53)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    sft_seed: int = 0  # one SFT model, shared by the seeds of everything after it
    judges_text: bool = False  # whether a verdict on real text may stand at this size

    def __post_init__(self) -> None:
        for name in ("dpo_beta", "local_beta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"study setting {name} = {value} must be > 0 (beta, KL weight)")

    @property
    def beta_of_local(self) -> float:
        """The constant that scales the local reward model's log-probability: 1/H."""
        return self.local_beta or 1.0 / self.data.max_completion_tokens

    def to_json(self) -> dict[str, Any]:
        """The whole configuration as plain JSON values."""
        return asdict(self)


def _sft(batch_size: int, **changes: Any) -> TrainConfig:
    """SFT, on which the paper's tables are silent: its rate and schedule are the reward model's."""
    return TrainConfig(batch_size, 3e-6, 128, "cosine", **changes)


def _global_rm(batch_size: int, **changes: Any) -> TrainConfig:
    """Table 2."""
    return TrainConfig(batch_size, 3e-6, 64, "cosine", **changes)


def _dpo(batch_size: int, **changes: Any) -> TrainConfig:
    """Table 3, and with another beta Table 4."""
    return TrainConfig(batch_size, 3e-7, 128, "linear", **changes)


def _tiny(kind: DataKind) -> StudyConfig:
    """Minutes on two CPU cores. SFT starts from random weights, hence its own fixed rate."""
    if kind == "task":
        model = ModelConfig(hidden_size=64, layers=2, heads=2, max_positions=64)
        data = DataConfig(n_sft=4096, n_pairs=1024, n_validation_pairs=1024)
        sft_batch, rm_batch, dpo_batch = 32, 8, 16
    else:
        model = ModelConfig(hidden_size=32, layers=2, heads=1, max_positions=704)
        data = DataConfig(n_sft=1500, n_pairs=6000, n_validation_pairs=400, n_test=200)
        sft_batch, rm_batch, dpo_batch = 16, 16, 32
    pool: Literal["row", "prompt"] = "row" if kind == "task" else "prompt"
    online = OnlineConfig(samples=8, pool=pool, batch_prompts=8 if kind == "text" else 128)
    order: Literal["row", "prompt"] = pool  # text: what rows share is computed once a step
    sft = _sft(sft_batch, fixed_rate=3e-3)
    global_rm, dpo = _global_rm(rm_batch, order=order), _dpo(dpo_batch, order=order)
    return StudyConfig("tiny", model, data, sft, global_rm, dpo, online=online)


def _small(kind: DataKind) -> StudyConfig:
    """Hours on two CPU cores, minutes on a GPU; still from scratch."""
    tiny = _tiny(kind)
    positions = tiny.model.max_positions
    model = ModelConfig(hidden_size=256, layers=4, heads=4, max_positions=positions)
    sft = replace(tiny.sft, fixed_rate=1e-3, epochs=4)
    return replace(tiny, preset="small", model=model, sft=sft, online=OnlineConfig())


def _paper(kind: DataKind) -> StudyConfig:
    """The paper's own setting at 1.4B: needs a GPU, the hub's model and the hub's data."""
    model = ModelConfig(pretrained="EleutherAI/pythia-1.4b-deduped")
    data = DataConfig(n_test=600) if kind == "text" else _tiny("task").data
    sft = _sft(128, fixed_rate=3e-6)
    global_rm, dpo = _global_rm(64, fixed_rate=3e-6), _dpo(128, fixed_rate=3e-7)
    return StudyConfig("1.4b", model, data, sft, global_rm, dpo, judges_text=True)


PRESETS = {"tiny": _tiny, "small": _small, "1.4b": _paper}


def preset(name: str, kind: DataKind) -> StudyConfig:
    """The configuration of a preset for a theory task or for text. Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name](kind)


def check_figures(figures: tuple[str, ...]) -> tuple[str, ...]:
    """The figures in order, or InputError naming the unknown one."""
    for figure in figures:
        if figure not in FIGURES:
            raise InputError(f"unknown figure {figure!r}; known: {', '.join(FIGURES)}")
    return tuple(figure for figure in FIGURES if figure in figures) or FIGURES
