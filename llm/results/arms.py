"""What was measured of each arm of each figure, from the records of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm import tables
from llm.config import EvalConfig, JudgeConfig, ModelConfig, OnlineConfig, StudyConfig, TrainConfig
from llm.data.config import DataConfig
from llm.errors import InputError
from llm.protocol.figures import arms
from llm.records import RECORD, read_json
from llm.results.length_control import LengthControlled, length_controlled

Seed = int | None  # None: one model, shared by the seeds
Column = dict[str, float]  # prompt or pair -> value; what has none is left out
RETIRED = ("accumulation", "score_batch")
ONE_POLICY = "one SFT policy a size: over seeds the reward models differ, not the policies"
COLUMNS = {"tokens": "mean_tokens"}  # in scores.parquet -> the measure that it is a row of
CONTROLLED = "length_controlled_win_rate"


@dataclass(frozen=True)
class Arm:
    """One arm: its metrics by seed, and its values on each prompt (or pair) by seed and measure.

    controlled: the win rate at the references' length, where lengths and single wins are known.
    """

    metrics: Mapping[Seed, Mapping[str, Any]]
    columns: Mapping[Seed, Mapping[str, Column]] = field(default_factory=dict)
    controlled: Mapping[Seed, LengthControlled] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether all seeds share it."""
        return None in self.metrics

    def of(self, seed: int, measure: str) -> float | None:
        """The arm's value at a seed; a shared arm has the same one at all."""
        at = None if self.shared else seed
        if measure == CONTROLLED:
            return self.controlled[at].win_rate if at in self.controlled else None
        return self.metrics.get(at, {}).get(measure)

    def column(self, seed: int, measure: str) -> Column:
        """Values on prompts at a seed; empty where none were kept."""
        return self.columns.get(None if self.shared else seed, {}).get(measure, {})


@dataclass(frozen=True)
class Evidence:
    """All that measurements are made of, whether from a study or from tables.

    arms: by (figure, arm, size). order: sizes, the smallest first; empty where it is not known.
    sampled: whether the prompts are a sample of more, not all that there are. largest_n: of
    best-of-N. notes: for a figure, what stands beside its measurements.
    """

    figures: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: Mapping[tuple[str, str, str], Arm]
    margins: Mapping[str, float]
    rung: str
    order: tuple[str, ...] = ()
    sampled: bool = True
    largest_n: int = 25
    too_small: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def sizes(self, figure: str) -> tuple[str, ...]:
        """The sizes at which a figure was measured, as far as it was."""
        return tuple(dict.fromkeys(size for of, _, size in self.arms if of == figure))


# --- a study -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    metrics: Mapping[str, Any]
    folder: Path


Index = dict[tuple[str, str, str], dict[Seed, _Stage]]  # (name, branch, size) -> by seed


def of_study(root: Path) -> Evidence:
    """The evidence in a study's folder. Raises InputError where it holds none that can be read."""
    path = root / "study.json"
    study = read_json(path)
    try:
        config, seeds = study_config(study["config"]), tuple(study["seeds"])
        index = _index(root, study["stages"])
        found: dict[tuple[str, str, str], Arm] = {}
        for figure in study["figures"]:
            for size in config.sizes(figure):
                for arm, of in _arms(figure, size, config, index):
                    found[figure, arm, size] = of
        return Evidence(
            figures=tuple(study["figures"]),
            seeds=seeds,
            arms=found,
            margins=config.margins,
            rung=study["rung"],
            order=_order(config, index),
            sampled=config.kind == "text",
            largest_n=max(config.evaluation.counts),
            too_small=study["too_small"],
            notes={"fig4": ONE_POLICY, **_notes(config, index)},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no study of this version: {error!r}") from error


def study_config(body: Mapping[str, Any]) -> StudyConfig:
    """A configuration from its JSON. Raises KeyError, TypeError or InputError for another's."""
    inner: dict[str, Any] = {
        "models": {name: ModelConfig(**model) for name, model in body["models"].items()},
        "data": DataConfig(**body["data"]),
        "branches": {name: DataConfig(**limits) for name, limits in body["branches"].items()},
        "online": OnlineConfig(**body["online"]),
        "judge": JudgeConfig(**body["judge"]),
        "wide": tuple(body["wide"]),
    }
    inner |= {name: TrainConfig(**_kept(body[name])) for name in ("sft", "global_rm", "dpo")}
    evaluation = _kept(body["evaluation"])
    evaluation["counts"] = tuple(evaluation["counts"])
    return StudyConfig(**{**body, **inner, "evaluation": EvalConfig(**evaluation)})


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what earlier studies wrote down and no number depended on."""
    return {name: value for name, value in settings.items() if name not in RETIRED}


def _index(root: Path, stages: Mapping[str, str]) -> Index:
    index: Index = {}
    for place in stages.values():
        record = read_json(root / place / RECORD)
        key = (record["name"], record["branch"], record["size"])
        index.setdefault(key, {})[record["seed"]] = _Stage(record["metrics"], root / place)
    return index


def _order(config: StudyConfig, index: Index) -> tuple[str, ...]:
    """Sizes by the number of parameters that their SFT records; empty where one is missing."""
    known: dict[str, int] = {}
    for size in config.models:
        stage = index.get(("sft", "", _recorded(size, config)), {}).get(None)
        if stage is None:
            return ()
        known[size] = stage.metrics["parameters"]
    return tuple(sorted(known, key=lambda size: known[size]))


def _recorded(size: str, config: StudyConfig) -> str:
    """How records write a size: "" for the main one."""
    return "" if size == config.main else size


def _notes(config: StudyConfig, index: Index) -> dict[str, str]:
    """Fig. 7: how many more pairs the added prompts make."""
    where = (config.branch_of("fig7"), "")
    plain = index.get(("online_pairs_sft", *where), {})
    more = index.get(("online_pairs_sft_more_prompts", *where), {})
    counts = [(plain[s].metrics["pairs"], more[s].metrics["pairs"]) for s in plain if s in more]
    if not counts or not all(a for a, _ in counts):
        return {}
    a, b = (sum(column) / len(counts) for column in zip(*counts, strict=True))
    return {"fig7": f"{b:,.0f} online pairs against {a:,.0f}, {b / a:.2f} times as many"}


def _arms(figure: str, size: str, config: StudyConfig, index: Index) -> list[tuple[str, Arm]]:
    """(arm, what was measured of it) of one figure at one size."""
    where = (config.branch_of(figure), _recorded(size, config))
    found = []
    for arm, name in arms(figure, config).items():
        if name.startswith("bon_"):
            stages = index.get((name, *where), {})
            if stages:
                found += [(best_of(n, name), _best_of(n, stages)) for n in config.evaluation.counts]
        elif stages := index.get((f"eval_{name}", *where)):
            found.append((arm, _evaluated(stages, index.get((f"judge_{name}", *where), {}))))
    return found


def best_of(n: int, name: str) -> str:
    """The arm of a best-of-N in a figure's quantities: "best_of_25_sft_global_rm"."""
    return f"best_of_{n}_{name.removeprefix('bon_').replace('sft_by_', 'by_')}"


def _best_of(n: int, stages: Mapping[Seed, _Stage]) -> Arm:
    """Best of n alone; what a best-of-N records without an n is kept too."""
    metrics, columns = {}, {}
    for seed, stage in stages.items():
        at_n = {
            name.removesuffix(f"@{n}"): value
            for name, value in stage.metrics.items()
            if name.endswith(f"@{n}")
        }
        metrics[seed] = {**{k: v for k, v in stage.metrics.items() if "@" not in k}, **at_n}
        rows = tables.read_rows(stage.folder / "scores.parquet")
        columns[seed] = _columns([row for row in rows if row["n"] == n])
    return Arm(metrics, columns)


def _evaluated(stages: Mapping[Seed, _Stage], judges: Mapping[Seed, _Stage]) -> Arm:
    """A policy or a reward model; what the judge says of it comes before what it is itself."""
    metrics, columns, controlled = {}, {}, {}
    for seed, stage in stages.items():
        metrics[seed], columns[seed] = dict(stage.metrics), _scores(stage.folder)
        judge = judges.get(seed)
        if judge is None:
            continue
        metrics[seed] |= judge.metrics
        columns[seed] |= _scores(judge.folder)
        wins, lengths = columns[seed].get("win_rate", {}), _lengths(stage.folder)
        controlled[seed] = control(wins, lengths, seed=seed or 0)
    return Arm(metrics, columns, controlled)


def control(wins: Column, lengths: Column, *, seed: int) -> LengthControlled:
    """The win rate at the references' length, over the prompts that have both numbers."""
    ids = [name for name in wins if name in lengths]
    return length_controlled([wins[i] for i in ids], [lengths[i] for i in ids], seed=seed)


def _scores(folder: Path) -> dict[str, Column]:
    path = folder / "scores.parquet"
    return _columns(tables.read_rows(path)) if path.exists() else {}


def _columns(rows: list[dict[str, Any]]) -> dict[str, Column]:
    """{measure: {id: value}} of rows with an id."""
    names = [name for name in rows[0] if name not in ("id", "n", "sample_index")] if rows else []
    return {
        COLUMNS.get(name, name): {row["id"]: row[name] for row in rows if row[name] is not None}
        for name in names
    }


def _lengths(folder: Path) -> Column:
    """For each prompt, the tokens of the sample less those of its reference."""
    rows = tables.read_rows(folder / "samples.parquet")
    return {row["prompt_id"]: float(row["tokens"] - row["reference_tokens"]) for row in rows}
