"""The stage graph of a study: what is trained, sampled and measured, and from what.

A stage belongs to a branch of data ("" is the main one), a model size ("" is the main one) and a
seed (None: all seeds share it). Its id names what differs: "dpo[0]", "dpo.narrow@2.8b[1]".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llm.config import StudyConfig
from llm.errors import InputError
from llm.protocol.figures import arms, crossed, sizes_of
from llm.protocol.road import Road
from llm.protocol.stage import Stage
from llm.records import SCHEMA, StageKey, digest

CODE = 4  # raised when a stage's code starts to compute something else


def build(
    figures: Sequence[str],
    seeds: Sequence[int],
    config: StudyConfig,
    data: Mapping[str, Mapping[str, Any]],
) -> list[Stage]:
    """All stages in an order in which every stage follows its inputs.

    data: for each branch that reads data of its own ("" always), what identifies source, tokenizer
    and split (it decides the content of the data stage).
    """
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds) or not seeds:
        raise InputError(f"seeds {list(seeds)} are not distinct non-negative integers")
    stages: list[Stage] = []
    for branch in _branches(figures, config):
        if branch in data:
            stages.append(_data(branch, config, data[branch]))
        for size in sizes_of(figures, config):
            stages += Road(config, branch, size, own_data=branch in data).stages(seeds)
    stages += _best_of_n_across(config, seeds)
    wanted = _needed(stages, figures, config)
    return [stage for stage in stages if stage.id in wanted]


def _branches(figures: Sequence[str], config: StudyConfig) -> list[str]:
    """The main branch first: others may rest on its data and SFT."""
    return list(dict.fromkeys(["", *(config.branch_of(figure) for figure in figures)]))


def _data(branch: str, config: StudyConfig, identity: Mapping[str, Any]) -> Stage:
    settings = {"data": dict(identity), "limits": asdict(config.limits(branch))}
    return Stage("data", "data", None, (), settings, 1, branch)


def _best_of_n_across(config: StudyConfig, seeds: Sequence[int]) -> Iterator[Stage]:
    """Fig. 4: every policy size with every size of global reward model."""
    sizes = sizes_of(("fig4",), config)
    for seed in seeds:
        for policy in sizes:
            road = Road(config, "", policy, own_data=True)
            for rm in sizes:
                yield road.best_of_n("sft", "global_rm", seed, rm, crossed(rm, config))


def _needed(stages: Sequence[Stage], figures: Sequence[str], config: StudyConfig) -> set[str]:
    """Ids of the figures' last stages and of everything that they rest on."""
    ends: set[tuple[str, str, str]] = set()
    for figure in figures:
        sizes = sizes_of((figure,), config)
        for name in arms(figure, config).values():
            for last in (name, f"eval_{name}", f"eval_{name}_policy", f"judge_{name}"):
                ends |= {(last, config.branch_of(figure), size) for size in sizes}
    kinds = ("best_of_n", "eval_policy", "eval_global_rm", "eval_local_rm", "eval_dpo_rm")
    todo = [
        stage.id
        for stage in stages
        if stage.kind in (*kinds, "verdicts") and (stage.name, stage.branch, stage.size) in ends
    ]
    return _with_inputs(todo, {stage.id: stage for stage in stages})


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
        found[stage.id] = StageKey(stage.label, stage.seed, digest(content))
    return found
