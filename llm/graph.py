"""The stage graph of a study: what is trained, sampled and measured, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm.config import StudyConfig
from llm.errors import InputError
from llm.records import SCHEMA, StageKey, digest

CODE = 3  # raised when a stage's code starts to compute something else
POLICIES = ("dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")  # beside sft
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")


@dataclass(frozen=True)
class Stage:
    """One stage. `settings` and the hashes of `inputs` decide its content; cost is a weight."""

    name: str  # "online_pairs_sft"
    kind: str  # which function runs it (llm.stages)
    seed: int | None
    inputs: tuple[tuple[str, str], ...]  # (role, stage id): ("policy", "dpo[0]")
    settings: Mapping[str, Any]
    cost: float

    @property
    def id(self) -> str:
        """ "dpo[0]", or "sft" for a stage that all seeds share."""
        return self.name if self.seed is None else f"{self.name}[{self.seed}]"


def build(
    figures: Sequence[str], seeds: Sequence[int], config: StudyConfig, data: Mapping[str, Any]
) -> list[Stage]:
    """All stages in an order in which every stage follows its inputs.

    data: what identifies source, tokenizer and split (it decides the content of the data stage).
    """
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds) or not seeds:
        raise InputError(f"seeds {list(seeds)} are not distinct non-negative integers")
    stages = list(_shared(config, data))
    for seed in seeds:
        stages += _of_seed(figures, seed, config)
    wanted = _needed(stages, figures)
    return [stage for stage in stages if stage.id in wanted]


def _shared(config: StudyConfig, data: Mapping[str, Any]) -> list[Stage]:
    sft = {
        "model": asdict(config.model),
        "train": asdict(config.sft),
        "seed": config.sft_seed,
    }
    batch = {"batch": config.evaluation.score_batch}
    evaluation = _evaluation(config)
    return [
        Stage("data", "data", None, (), {"data": dict(data), "limits": asdict(config.data)}, 1),
        Stage("sft", "sft", None, (("data", "data"),), sft, 8),
        Stage("reference", "reference", None, (("data", "data"), ("policy", "sft")), batch, 8),
        Stage("eval_sft", "eval_policy", None, _policy("sft"), evaluation, 2),
    ]


def _evaluation(config: StudyConfig) -> dict[str, Any]:
    return {"evaluation": asdict(config.evaluation), "tokens": config.data.max_completion_tokens}


def _policy(stage: str) -> tuple[tuple[str, str], ...]:
    return (("data", "data"), ("policy", stage))


def _of_seed(figures: Sequence[str], seed: int, config: StudyConfig) -> list[Stage]:
    """Every stage of one seed; `_needed` drops what the figures do not ask for."""
    dpo, once = asdict(config.dpo), config.dpo.epochs
    trained = (("data", "data"), ("policy", "sft"))
    anchored = (*trained, ("reference", "reference"))
    beta = {"beta": config.dpo_beta}
    local = {"beta": config.beta_of_local}
    twice = {**dpo, "epochs": 2 * once}
    evaluation = _evaluation(config)

    def at(name: str) -> str:
        return f"{name}[{seed}]"

    stages = [
        Stage("global_rm", "global_rm", seed, trained, {"train": asdict(config.global_rm)}, 3),
        Stage("local_rm", "local_rm", seed, trained, {"train": dpo, **local}, 10),
        Stage("dpo", "dpo", seed, anchored, {"train": dpo, **beta}, 10),
        Stage("dpo_2x", "dpo", seed, anchored, {"train": twice, **beta}, 20),
    ]
    for source, policy in (("sft", "sft"), ("dpo", at("dpo"))):
        pairs = f"online_pairs_{source}"
        settings = {
            "online": asdict(config.online),
            "tokens": config.data.max_completion_tokens,
            "batch": config.evaluation.score_batch,
        }
        inputs = (*_policy(policy), ("global_rm", at("global_rm")))
        stages.append(Stage(pairs, "online_pairs", seed, inputs, settings, 10))
        train = {"train": dpo, **beta, "temperature": config.online.temperature}
        inputs = (*_policy(policy), ("pairs", at(pairs)))
        stages.append(Stage(f"online_dpo_{source}", "online_dpo", seed, inputs, train, 12))
    for name in POLICIES:
        stages.append(Stage(f"eval_{name}", "eval_policy", seed, _policy(at(name)), evaluation, 2))
    batch = {"batch": config.evaluation.score_batch}
    anchors = (("data", "data"), ("reference", "reference"))
    stages += [
        Stage("eval_global_rm", "eval_global_rm", seed, _policy(at("global_rm")), batch, 1),
        Stage("eval_local_rm", "eval_local_rm", seed, _policy(at("local_rm")), batch | local, 1),
        Stage(
            "eval_dpo_rm", "eval_dpo_rm", seed, (*anchors, ("policy", at("dpo"))), batch | beta, 1
        ),
    ]
    return stages


ENDS = {
    "fig3": ("eval_sft", *(f"eval_{name}" for name in POLICIES)),
    "fig9": tuple(f"eval_{name}" for name in REWARD_MODELS),
}


def _needed(stages: Sequence[Stage], figures: Sequence[str]) -> set[str]:
    """Ids of the figures' last stages and of everything that they rest on."""
    by_id = {stage.id: stage for stage in stages}
    ends = {name for figure in figures for name in ENDS[figure]}
    todo = [stage.id for stage in stages if stage.name in ends]
    return _with_inputs(todo, by_id)


def ancestors(stage_id: str, stages: Sequence[Stage]) -> list[Stage]:
    """A stage and everything that it rests on, in order. Raises InputError for an unknown one."""
    by_id = {stage.id: stage for stage in stages}
    if stage_id not in by_id:
        raise InputError(f"unknown stage {stage_id!r}; known: {', '.join(by_id)}")
    wanted = _with_inputs([stage_id], by_id)
    return [stage for stage in stages if stage.id in wanted]


def _with_inputs(todo: list[str], by_id: Mapping[str, Stage]) -> set[str]:
    found: set[str] = set()
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += [stage_id for _, stage_id in by_id[current].inputs]
    return found


def keys(stages: Sequence[Stage]) -> dict[str, StageKey]:
    """The content address of every stage: settings, seed and the addresses of its inputs."""
    found: dict[str, StageKey] = {}
    for stage in stages:
        content = {
            "schema": SCHEMA,
            "code": CODE,
            "kind": stage.kind,
            "seed": stage.seed,
            "settings": dict(stage.settings),
            "inputs": {role: found[stage_id].hash for role, stage_id in stage.inputs},
        }
        found[stage.id] = StageKey(stage.name, stage.seed, digest(content))
    return found
