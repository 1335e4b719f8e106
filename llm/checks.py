"""What can be known to fail, before the first second of work: one InputError that says what."""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from llm import tables
from llm.config import ModelConfig, StudyConfig
from llm.errors import InputError
from llm.execute import Plan, gpus_of
from llm.places import visible_gpus
from llm.records import Store, read_json
from llm.request import Request
from llm.runtime import Runtime
from llm.stage import Stage

GIB = 2**30
PATIENCE = 10  # seconds for an endpoint to answer
OPENAI = "https://api.openai.com/v1"


def check_request(request: Request) -> None:
    """Numbers that make no sense."""
    if request.seeds < 1:
        raise InputError(f"--seeds {request.seeds}: must be at least 1")
    if request.jobs is not None and request.jobs < 1:
        raise InputError(f"--jobs {request.jobs}: must be at least 1")


def data_stages(plan: Plan) -> list[Stage]:
    """The stages that read data."""
    return [stage for stage in plan.stages if stage.kind == "data"]


def check_resources(plan: Plan, config: StudyConfig, *, cluster: str | None) -> None:
    """What the stages that are not done need: models, GPUs, vLLM, a judge that answers."""
    todo = [stage for stage in plan.stages if not Store(plan.root).done(plan.keys[stage.id])]
    for model in config.models.values():
        if model.pretrained is not None:
            from llm.models import pretrained_shape

            pretrained_shape(model)
    if cluster is not None:
        from llm.cluster import check_cluster

        check_cluster(cluster)
    else:
        _check_gpus(todo, plan.runtime)
        _check_vllm(todo, plan.runtime)
    _check_judge(todo, config, plan.runtime)


def _check_gpus(todo: list[Stage], runtime: Runtime) -> None:
    most = max((gpus_of(stage, runtime) for stage in todo), default=0)
    if most < 2:  # none at all is a CPU's run
        return
    there = len(visible_gpus())
    if most > there:
        name = next(stage.id for stage in todo if gpus_of(stage, runtime) == most)
        raise InputError(f"{name} takes {most} GPUs (--gpus, --tensor-parallel), here are {there}")


def _check_vllm(todo: list[Stage], runtime: Runtime) -> None:
    wanted = [s for s in todo if s.settings.get("sampling", {}).get("sampler") == "vllm"]
    if not wanted:
        return
    if runtime.vllm_python is not None:
        if shutil.which(runtime.vllm_python) is None:
            raise InputError(f"--vllm-python {runtime.vllm_python}: no such program")
    elif importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"{wanted[0].id} samples by vLLM, which is not installed: pip install 'all-roads[vllm]'"
            ", or --vllm-python of an environment that has it"
        )


# --- the judge -----------------------------------------------------------------------------------


def asks_judge(stage: Stage) -> bool:
    """Whether a stage asks the judge of text anything."""
    if stage.kind == "verdicts":
        return True
    judged = stage.settings.get("how") in ("two_word", "narrow")
    return judged and stage.settings["judge"]["model"] is not None


def _check_judge(todo: list[Stage], config: StudyConfig, runtime: Runtime) -> None:
    model = config.judge.model
    asking = next((stage for stage in todo if asks_judge(stage)), None)
    if model is None or asking is None:
        return
    if model.startswith("local:"):
        folder = Path(model.removeprefix("local:"))
        if not (folder / "config.json").is_file():
            raise InputError(f"--judge {model}: {folder} holds no model (no config.json)")
        return
    key = os.environ.get(runtime.key_name)
    if not key and runtime.base_url is None:
        raise InputError(
            f"{asking.id} asks {model}: its key is expected in the environment variable "
            f"{runtime.key_name}, which is not set"
        )
    _check_endpoint(runtime.base_url or OPENAI, key or "none", runtime.key_name)


def _check_endpoint(base_url: str, key: str, key_name: str) -> None:
    """One cheap question, answered by any OpenAI-compatible server: which models it has."""
    address = base_url.rstrip("/") + "/models"
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--base-url {base_url}: no http address")
    asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"})
    try:
        urllib.request.urlopen(asked, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise InputError(f"{base_url} refuses the key in {key_name}: {error.code}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"the judge's endpoint {base_url} does not answer: {reason}") from error


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
    """The longest prompt and completion of a data stage, in tokens."""
    longest = 0
    for part in ("sft", "pairs", "validation_pairs", "test"):
        for example in tables.read_examples(folder / f"{part}.parquet"):
            room = max(generated, *map(len, example.completion_ids))
            longest = max(longest, len(example.prompt_ids) + room)
    return longest


def _check_fits(model: ModelConfig, longest: int, words: int) -> None:
    positions: int | None = model.max_positions
    if model.pretrained is not None:
        from llm.models import pretrained_shape

        shape = pretrained_shape(model)
        positions = getattr(shape, "max_position_embeddings", None)
        if words > shape.vocab_size:
            raise InputError(f"the tokenizer has {words} entries, the model {shape.vocab_size}")
    if positions is not None and longest > positions:
        raise InputError(f"prompt and completion take {longest} tokens, the model has {positions}")
