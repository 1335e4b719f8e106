"""What a user asks for, and the settings, sources and figures that it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm.config import FIGURES, EvalConfig, JudgeConfig, ModelConfig, StudyConfig, check_figures
from llm.data.hub import hub_names, revision_of
from llm.data.source import kind_of_source
from llm.data.task_file import read_task
from llm.errors import InputError
from llm.judge.serve import folder_name, folder_of
from llm.protocol.presets import PYTHIA, preset
from llm.records import IDENTITY, digest, file_digest, read_object
from llm.runtime import Runtime

SHIPPED = Path(__file__).parents[1] / "data" / "shipped"
TASK_BRANCHES = {"two_word": "short_task.json", "ranked": "rouge_task.json"}
# What the paper's presets read where no data are named (Table 1).
HUB_DATA = "vwxyzjn/summarize_from_feedback_tldr_3_filtered,openai/summarize_from_feedback"


@dataclass(frozen=True)
class Request:
    """What a user asks for on the command line."""

    out: Path
    figures: tuple[str, ...] = ()
    preset: str = "tiny"
    seeds: int = 2
    data: str | None = None
    short_task: str | None = None  # Fig. 5, where the data are a task
    rouge_task: str | None = None  # Fig. 6, where the data are a task
    tokenizer: str | None = None
    model: str | None = None
    judge: str | None = None  # model of an endpoint, or "none"; None: the preset's
    one_order: bool = False  # ask the judge in one order, not in both
    counts: tuple[int, ...] = ()  # N of best-of-N; (): the preset's
    predictions: Path | None = None
    jobs: int | None = None
    cluster: str | None = None  # address of a Ray cluster
    only: str | None = None  # one stage and what it rests on ("dpo[0]")
    runtime: Runtime = field(default_factory=Runtime)


def default_seeds(name: str) -> int:
    """The paper's three with its own presets, two with small models."""
    return 3 if is_pythia(name) else 2


def is_pythia(name: str) -> bool:
    """Whether a preset is one of the paper's own settings."""
    return name == "paper" or name in PYTHIA


def sources_of(request: Request) -> dict[str, str]:
    """{branch: source}: the data asked for, the hub's (Pythia presets), or the shipped tasks."""
    main = request.data or (HUB_DATA if is_pythia(request.preset) else str(SHIPPED / "task.json"))
    sources = {"": main}
    if kind_of_source(main) != "task":
        return {**sources, "two_word": main}
    sources["few_prompts"] = main
    given = {"two_word": request.short_task, "ranked": request.rouge_task}
    for branch, name in TASK_BRANCHES.items():
        shipped = str(SHIPPED / name) if request.data is None else None
        source = given[branch] or shipped
        if source is not None:
            sources[branch] = source
    return sources


def tokenizer_of(request: Request, config: StudyConfig) -> str | None:
    """The tokenizer named, else the pretrained model's; a task brings its own. InputError."""
    if config.kind == "task":
        if request.tokenizer is not None:
            raise InputError(
                f"--tokenizer {request.tokenizer}: a task brings its own; leave it out"
            )
        return None
    found = request.tokenizer or config.models[config.main].pretrained
    if found is None:
        raise InputError("--data with text needs --tokenizer (tokenizer.json, folder or hub name)")
    return found


def configure(request: Request, *, ask_hub: bool = True) -> StudyConfig:
    """The preset for this kind of data, with the user's model, judge and N. Raises InputError.

    A hub model is pinned to the revision that a study begun in this folder has, else to the newest
    one. ask_hub: whether the hub may be asked for it; a dry run asks nobody.
    """
    sources = sources_of(request)
    kind = "task" if kind_of_source(sources[""]) == "task" else "text"
    config = preset(request.preset, kind)
    if request.model is not None:
        before = config.models[config.main]
        if before.pretrained is None:  # a rate for training from scratch is none to go on with
            config = replace(config, sft=replace(config.sft, fixed_rate=None))
        model = replace(before, pretrained=request.model, revision=None)
        config = replace(config, models={config.main: model})
    pinned = _pinned(request.out)
    models = {name: _resolved(model, pinned, ask_hub) for name, model in config.models.items()}
    config = replace(config, models=models)
    if request.judge is not None:
        config = replace(config, judge=_judge(config.judge, request.judge))
    config = replace(config, evaluation=_evaluation(config.evaluation, request.counts))
    if request.one_order:
        if kind == "task" or config.judge.model is None:
            raise InputError("--one-order: no model judges this study (--judge, text)")
        config = replace(config, judge=replace(config.judge, both_orders=False))
    if kind == "text":
        return config
    horizons = {name: read_task(Path(source)).horizon for name, source in sources.items()}
    limits = {
        name: replace(config.limits(name), max_completion_tokens=horizon + 1)
        for name, horizon in horizons.items()
    }
    branches = {name: limit for name, limit in limits.items() if name}
    return replace(config, data=limits[""], branches=branches, judge=JudgeConfig())


def _pinned(root: Path) -> dict[str, str]:
    """{hub name: revision} of the study begun in a folder; the hub may have moved since."""
    if not (root / IDENTITY).is_file():
        return {}
    found = read_object(root / IDENTITY).get("config", {}).get("models", {}).values()
    return {m["pretrained"]: m["revision"] for m in found if m["pretrained"] and m["revision"]}


def _judge(config: JudgeConfig, name: str) -> JudgeConfig:
    """The judge named; a local one is told by its files."""
    folder = folder_of(name)
    if folder is None:
        return replace(config, model=None if name == "none" else name)
    content = folder_name(folder) if folder.is_dir() else None  # no folder: an error later
    return replace(config, model=name, content=content)


def _evaluation(config: EvalConfig, counts: tuple[int, ...]) -> EvalConfig:
    """With the N asked for; no more samples are drawn, and judged, than the largest N needs."""
    if not counts:
        return config
    return replace(replace(config, counts=counts), pool=max(counts))


def _resolved(model: ModelConfig, pinned: Mapping[str, str], ask_hub: bool) -> ModelConfig:
    """A pretrained model with what pins its content: a folder's sha256, a hub name's revision."""
    if model.pretrained is None:
        return model
    folder = Path(model.pretrained)
    if folder.is_dir():
        return replace(model, sha256=digest([file_digest(f) for f in model_files(folder)]))
    if model.revision is not None or not hub_names(model.pretrained):
        return model
    found = pinned.get(model.pretrained)
    if found is None and ask_hub:
        found = revision_of(model.pretrained, "model")
    return replace(model, revision=found)


def model_files(folder: Path) -> list[Path]:
    """What decides a local model: its weights and configuration."""
    return [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("config.json"))]


def lacking(figure: str, config: StudyConfig, sources: Mapping[str, str]) -> str | None:
    """What a figure needs and this study has not, in words; None if it can be run."""
    if figure == "fig4" and len(config.models) < 2:
        return "fig4 crosses model sizes and needs two at least: --preset tiny, small or paper"
    branch = config.branch_of(figure)
    if config.kind == "task" and branch in TASK_BRANCHES and branch not in sources:
        return f"{figure} needs a task of its own: --{TASK_BRANCHES[branch][:-5].replace('_', '-')}"
    if config.kind == "text" and figure in ("fig5", "fig8") and config.judge.model is None:
        return f"{figure} needs a judge on text: --judge MODEL"
    return None


def figures_of(request: Request, config: StudyConfig) -> tuple[str, ...]:
    """The figures asked for, or all that this study can run. Raises InputError."""
    sources = sources_of(request)
    asked = check_figures(request.figures)
    for figure in asked:
        reason = lacking(figure, config, sources)
        if reason is not None:
            raise InputError(reason)
    return asked or tuple(f for f in FIGURES if lacking(f, config, sources) is None)


def predictions_of(request: Request) -> Path | None:
    """The predictions to judge by: those named; else the shipped ones for shipped task and text."""
    if request.predictions is not None:
        return request.predictions
    if request.only is not None:
        return None
    if request.data is not None and kind_of_source(request.data) == "task":
        return None
    return SHIPPED / "predictions.json"
