"""What can be known to fail, before the first second of work: one InputError that says what."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.config import ModelConfig, StudyConfig
from llm.data.tokenize import check_vocabulary, load_tokenizer
from llm.errors import InputError
from llm.judge import reach_judge
from llm.protocol.stage import Stage
from llm.records import Store, read_json
from llm.running.execute import Plan, gpus_of, served_judge, started_by_torchrun
from llm.running.places import visible_gpus
from llm.runtime import Runtime
from llm.sampling.vllm_process import require_vllm
from llm.study.request import Request

GIB = 2**30
MOST_SEEDS = 1000


def check_request(request: Request) -> None:
    """Numbers that make no sense, and empty words: an unset variable of the shell, mostly."""
    for name in ("data", "short_task", "rouge_task", "tokenizer", "model", "judge", "cluster"):
        if getattr(request, name) == "":
            raise InputError(f"--{name.replace('_', '-')} is empty: name one, or leave it out")
    if request.seeds > MOST_SEEDS:
        raise InputError(f"{request.seeds} seeds: at most {MOST_SEEDS}")
    if request.seeds < 1:
        raise InputError(f"--seeds {request.seeds}: must be at least 1")
    if request.jobs is not None and request.jobs < 1:
        raise InputError(f"--jobs {request.jobs}: must be at least 1")


def data_stages(plan: Plan) -> list[Stage]:
    """The stages that read data."""
    return [stage for stage in plan.stages if stage.kind == "data"]


def check_resources(plan: Plan, config: StudyConfig, *, cluster: str | None) -> None:
    """What the stages that are not done need: models, GPUs, vLLM, a judge that answers."""
    from llm.training.train import check_tracker

    check_tracker(plan.runtime.tracker)
    todo = plan.todo()
    for model in config.models.values():
        if model.pretrained is not None:
            _check_pretrained(model, plan.tokenizer)
    if cluster is not None:
        from llm.running.cluster import check_cluster

        check_cluster(cluster)
    _check_judge(todo, config, plan.runtime)
    if cluster is None:
        _check_gpus(todo, plan.runtime)
        _check_vllm(todo, plan.runtime)
        if not started_by_torchrun():  # each of its processes would hold a copy in fp32
            _check_weights(todo)


def _check_pretrained(model: ModelConfig, tokenizer: str | None) -> None:
    """The model can be read, and means the same words as the tokenizer of the data."""
    from llm.models.build import pretrained_shape

    pretrained_shape(model)
    if tokenizer is not None and model.pretrained is not None:
        check_vocabulary(load_tokenizer(tokenizer), model.pretrained, model.revision)


def _check_weights(todo: list[Stage]) -> None:
    """Open each pretrained folder that is still to be trained: its weights are whole, it packs.

    A name on the hub may be a download of many GB: that is left to its SFT stage, as all folders
    are under torchrun and on a cluster.
    """
    from transformers import logging

    from llm.models import build
    from llm.models.forward import check_packing

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for model in {ModelConfig(**s.settings["model"]): None for s in todo if s.kind == "sft"}:
        if model.pretrained is not None and Path(model.pretrained).is_dir():
            check_packing(f"--model {model.pretrained}", build.load_pretrained(model))


def _check_gpus(todo: list[Stage], runtime: Runtime) -> None:
    most = max((gpus_of(stage, runtime) for stage in todo), default=0)
    if most < 2:  # none at all is a CPU's run
        return
    there = len(visible_gpus())
    if most > there:
        name = next(stage.id for stage in todo if gpus_of(stage, runtime) == most)
        raise InputError(f"{name} takes {most} GPUs (--gpus, --tensor-parallel), here are {there}")


def _check_vllm(todo: list[Stage], runtime: Runtime) -> None:
    """vLLM is there where it samples, and where it serves the judge."""
    samples = any(s.settings.get("sampling", {}).get("sampler") == "vllm" for s in todo)
    if samples or any(asks_judge(s) and served_judge(s) is not None for s in todo):
        require_vllm(runtime)


# --- the judge -----------------------------------------------------------------------------------


def asks_judge(stage: Stage) -> bool:
    """Whether a stage asks the judge of text anything."""
    if stage.kind == "verdicts":
        return True
    judged = stage.settings.get("how") in ("two_word", "narrow")
    return judged and stage.settings["judge"]["model"] is not None


def _check_judge(todo: list[Stage], config: StudyConfig, runtime: Runtime) -> None:
    """Its key, address and folder; and that the endpoint answers and has the model."""
    if config.judge.model is not None and any(asks_judge(stage) for stage in todo):
        reach_judge(config.judge, runtime)


# --- the disk and the models ---------------------------------------------------------------------


def check_disk(root: Path, needed: float) -> None:
    """needed: bytes still to be written, at the peak."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{there} has {free / GIB:.1f} GiB free, the study needs about {needed / GIB:.1f}: "
            "choose another --out"
        )


def check_models(plan: Plan, config: StudyConfig) -> None:
    """The longest prompt and completion must fit each model's positions, the ids its vocabulary."""
    for stage in data_stages(plan):
        folder = Store(plan.root).path(plan.keys[stage.id])
        longest = _longest(folder, config.limits(stage.branch).max_completion_tokens)
        words = read_json(folder / "vocabulary.json")["size"]
        for model in config.models.values():
            _check_fits(model, longest, words)


def _longest(folder: Path, generated: int) -> int:
    """The longest prompt and completion of a data stage, in tokens; no row becomes an object."""
    longest = 0
    for part in ("sft", "pairs", "validation_pairs", "test"):
        table = pq.read_table(folder / f"{part}.parquet", columns=["prompt_ids", "completion_ids"])
        for batch in table.combine_chunks().to_batches():
            prompts, texts = batch.column("prompt_ids"), batch.column("completion_ids")
            rooms = np.full(len(prompts), generated)
            np.maximum.at(
                rooms, pc.call_function("list_parent_indices", [texts]), _lengths(texts.flatten())
            )
            longest = max(longest, int((_lengths(prompts) + rooms).max(initial=0)))
    return longest


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.call_function("list_value_length", [lists]).to_numpy(zero_copy_only=False)


def _check_fits(model: ModelConfig, longest: int, words: int) -> None:
    positions: int | None = model.max_positions
    if model.pretrained is not None:
        from llm.models.build import pretrained_shape

        shape = pretrained_shape(model)
        positions = getattr(shape, "max_position_embeddings", None)
        if words > shape.vocab_size:
            raise InputError(f"the tokenizer has {words} entries, the model {shape.vocab_size}")
    if positions is not None and longest > positions:
        raise InputError(f"prompt and completion take {longest} tokens, the model has {positions}")
