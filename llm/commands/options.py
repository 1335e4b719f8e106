"""What `study` and `train` share on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from llm.runtime import Runtime

if TYPE_CHECKING:
    from llm.study.study import Request


@dataclass(frozen=True, kw_only=True)
class Options:
    """Data, models and where things run.

    Example: --preset tiny --data tldr/ --tokenizer 20B_tokenizer.json --judge none --jobs 2
    """

    out: Path = Path("out/study")
    """Folder of the study: new, empty, or one of the same configuration."""
    preset: str = "tiny"
    """tiny (CPU, minutes), small; 1.4b, 2.8b, 6.9b (the paper's, need GPUs); paper (all three)."""
    data: str | None = None
    """A task.json, a folder or file of TL;DR data, or hub names owner/name[,owner/name]. Default:
    the tasks that ship with the package; with a Pythia preset, the paper's data on the hub."""
    short_task: str | None = None
    """The task of Fig. 5, where --data is a task."""
    rouge_task: str | None = None
    """The task of Fig. 6, where --data is a task."""
    tokenizer: str | None = None
    """tokenizer.json, folder or hub name, for text. Default: the pretrained model's own."""
    model: str | None = None
    """A pretrained causal LM by hub name or folder, in place of the preset's models."""
    judge: str | None = None
    """The judge of text: a model of an OpenAI-compatible endpoint, local:FOLDER (served here by
    vLLM), or none (ROUGE-L alone). Default: the preset's."""
    one_order: bool = False
    """Ask the judge in one order, not in both: half the questions; that it prefers a place is then
    not noticed."""
    counts: tuple[int, ...] = ()
    """N of best-of-N (Figs. 4, 10), rising. The largest decides how many samples a prompt are drawn
    and judged; the shipped predictions are about 25. Default: the preset's."""
    jobs: int | None = None
    """Stages at a time. Default: one a CPU core, or what the GPUs take (--gpus, --tensor-parallel);
    stages that only ask a judge run beside them. Numbers do not depend on it."""
    runtime: Annotated[Runtime, tyro.conf.OmitArgPrefixes] = field(default_factory=Runtime)

    def request(self, **more: object) -> Request:
        """The study that is asked for."""
        from llm.study.study import Request

        names = ("out", "preset", "data", "short_task", "rouge_task", "tokenizer", "model")
        names += ("judge", "one_order", "counts", "jobs", "runtime")
        return Request(**{name: getattr(self, name) for name in names}, **more)  # pyright: ignore
