"""The stage graph of a study: what is trained, sampled and measured, and from what.

A stage belongs to a branch of data ("" is the main one), a model size ("" is the main one) and a
seed (None: all seeds share it). Its id names what differs: "dpo[0]", "dpo.narrow@2.8b[1]".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm.config import StudyConfig, TrainConfig
from llm.errors import InputError
from llm.records import SCHEMA, StageKey, digest

CODE = 4  # raised when a stage's code starts to compute something else
POLICIES = ("dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")  # beside sft
MORE_PROMPTS = "online_dpo_sft_more_prompts"
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")
SOURCES = ("sft", "dpo")  # whose samples online pairs and best-of-N are made of
Inputs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Stage:
    """One stage. `settings` and the hashes of `inputs` decide its content; cost is a weight."""

    name: str  # "online_pairs_sft"
    kind: str  # which function runs it (llm.stages)
    seed: int | None
    inputs: Inputs  # (role, stage id): ("policy", "dpo[0]")
    settings: Mapping[str, Any]
    cost: float
    branch: str = ""
    size: str = ""  # "" for the main size

    @property
    def label(self) -> str:
        """Name, branch and size: "dpo", "dpo.narrow@2.8b"."""
        return label(self.name, self.branch, self.size)

    @property
    def id(self) -> str:
        """ "dpo[0]", or "sft" for a stage that all seeds share."""
        return self.label if self.seed is None else f"{self.label}[{self.seed}]"


def label(name: str, branch: str = "", size: str = "") -> str:
    """Name, branch and size in one word; the main branch and size are not written."""
    return name + (f".{branch}" if branch else "") + (f"@{size}" if size else "")


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
        for size in _sizes(figures, config):
            stages += _Road(config, branch, size, own_data=branch in data).stages(seeds)
    stages += _best_of_n_across(config, seeds)
    wanted = _needed(stages, figures, config)
    return [stage for stage in stages if stage.id in wanted]


def _branches(figures: Sequence[str], config: StudyConfig) -> list[str]:
    """The main branch first: others may rest on its data and SFT."""
    return list(dict.fromkeys(["", *(config.branch_of(figure) for figure in figures)]))


def _sizes(figures: Sequence[str], config: StudyConfig) -> list[str]:
    """ "" (the main size) first."""
    named = dict.fromkeys(size for figure in figures for size in config.sizes(figure))
    return ["", *(size for size in named if size != config.main)]


def _data(branch: str, config: StudyConfig, identity: Mapping[str, Any]) -> Stage:
    settings = {"data": dict(identity), "limits": asdict(config.limits(branch))}
    return Stage("data", "data", None, (), settings, 1, branch)


@dataclass(frozen=True)
class _Road:
    """Every stage of one branch at one size; `_needed` drops what no figure asks for."""

    config: StudyConfig
    branch: str
    size: str
    own_data: bool

    def stages(self, seeds: Sequence[int]) -> Iterator[Stage]:
        yield from self._shared()
        for seed in seeds:
            yield from self._models(seed)
            yield from self._online(seed)
            yield from self._evaluations(seed)

    # --- names ------------------------------------------------------------------------------------

    def _id(self, name: str, seed: int | None = None) -> str:
        return Stage(name, "", seed, (), {}, 0, self.branch, self.size).id

    @property
    def _data_id(self) -> str:
        return label("data", self.branch if self.own_data else "")

    @property
    def _sft_id(self) -> str:
        """A task of its own needs its own SFT; text branches share the main one."""
        own = self.own_data and self.config.kind == "task"
        return label("sft", self.branch if own else "", self.size)

    @property
    def _made_id(self) -> str | None:
        """The stage that makes this branch's pairs; None where the data hold them."""
        if self.branch == "two_word" and self.config.kind == "text":
            return label("pairs", self.branch)  # two texts of the judge: no model's size matters
        return self._id("pairs") if self.branch in ("ranked", "narrow") else None

    @property
    def _read(self) -> Inputs:
        """What a stage on this branch's examples reads."""
        made = self._made_id
        return (("data", self._data_id), *(() if made is None else (("made", made),)))

    def _stage(
        self,
        name: str,
        kind: str,
        seed: int | None,
        inputs: Inputs,
        settings: Mapping[str, Any],
        cost: float,
    ) -> Stage:
        return Stage(name, kind, seed, inputs, settings, cost, self.branch, self.size)

    # --- shared by the seeds ----------------------------------------------------------------------

    def _shared(self) -> Iterator[Stage]:
        if self._sft_id == self._id("sft"):
            model = self.config.models[self.size or self.config.main]
            settings = {
                "model": asdict(model),
                "train": self._train(self.config.sft),
                "seed": self.config.sft_seed,
            }
            yield self._stage("sft", "sft", None, (("data", self._data_id),), settings, 8)
        if self._made_id is not None and (self.branch != "two_word" or not self.size):
            yield self._pairs()
        read = (*self._read, ("policy", self._sft_id))
        yield self._stage("reference", "reference", None, read, self._scoring(), 8)
        yield from self._evaluation("sft", None, self._sft_id)
        yield from self._pool("sft", None, self._sft_id)

    def _pairs(self) -> Stage:
        """Pairs that are made, not read: of two-word summaries, by ROUGE-L, of two SFT samples."""
        sampled = {"two_word": 0, "ranked": self.config.online.samples, "narrow": 2}[self.branch]
        settings = {
            "how": self.branch,
            "samples": sampled,
            "online": asdict(self.config.online),
            "judge": asdict(self.config.judge),
            "sampling": self._sampling(),
            "tokens": self.config.limits(self.branch).max_completion_tokens,
            "batch": self.config.evaluation.score_batch,
        }
        data = (("data", self._data_id),)
        if not sampled:
            return Stage("pairs", "made_pairs", None, data, settings, 4, self.branch)
        inputs = (*data, ("policy", self._sft_id))
        return self._stage("pairs", "made_pairs", None, inputs, settings, 8)

    # --- models of one seed -----------------------------------------------------------------------

    def _models(self, seed: int) -> Iterator[Stage]:
        config = self.config
        trained = (*self._read, ("policy", self._sft_id))
        anchored = (*trained, ("reference", self._id("reference")))
        dpo, beta = self._train(config.dpo), {"beta": config.dpo_beta}
        local = {"beta": config.local_beta(self.branch)}
        twice = {**dpo, "epochs": 2 * config.dpo.epochs}
        for name, train, cost in (
            ("global_rm", self._train(config.global_rm), 3),
            ("global_rm_matched", dpo, 2),  # Fig. 9 with the hyperparameters of the others
        ):
            yield self._stage(name, "global_rm", seed, trained, {"train": train}, cost)
        yield self._stage("local_rm", "local_rm", seed, trained, {"train": dpo, **local}, 10)
        yield self._stage("dpo", "dpo", seed, anchored, {"train": dpo, **beta}, 10)
        yield self._stage("dpo_2x", "dpo", seed, anchored, {"train": twice, **beta}, 20)

    def _online(self, seed: int) -> Iterator[Stage]:
        config = self.config
        train = {
            "train": self._train(config.dpo),
            "beta": config.dpo_beta,
            "temperature": config.online.temperature,
        }
        for source, suffix in (("sft", ""), ("dpo", ""), ("sft", "_more_prompts")):
            policy = self._sft_id if source == "sft" else self._id(source, seed)
            settings = {
                "online": asdict(config.online),
                "more_prompts": bool(suffix),
                "sampling": self._sampling(),
                "tokens": config.limits(self.branch).max_completion_tokens,
                "batch": config.evaluation.score_batch,
            }
            pairs = f"online_pairs_{source}{suffix}"
            inputs = (*self._read, ("policy", policy), ("global_rm", self._id("global_rm", seed)))
            yield self._stage(pairs, "online_pairs", seed, inputs, settings, 10)
            inputs = (*self._read, ("policy", policy), ("pairs", self._id(pairs, seed)))
            name = f"online_dpo_{source}{suffix}"
            yield self._stage(name, "online_dpo", seed, inputs, train, 12)

    # --- what is measured -------------------------------------------------------------------------

    def _evaluations(self, seed: int) -> Iterator[Stage]:
        for name in (*POLICIES, MORE_PROMPTS):
            yield from self._evaluation(name, seed, self._id(name, seed))
        if self.config.kind == "task":  # its soft optimum is its own policy (Theorem 2.2): exact
            yield from self._evaluation("local_rm_policy", seed, self._id("local_rm", seed))
        yield from self._pool("dpo", seed, self._id("dpo", seed))
        batch, config = self._scoring(), self.config
        for name in ("global_rm", "global_rm_matched"):
            inputs = (*self._read, ("policy", self._id(name, seed)))
            yield self._stage(f"eval_{name}", "eval_global_rm", seed, inputs, batch, 1)
        inputs = (*self._read, ("policy", self._id("local_rm", seed)))
        local = {**batch, "beta": config.local_beta(self.branch)}
        yield self._stage("eval_local_rm", "eval_local_rm", seed, inputs, local, 1)
        inputs = (
            *self._read,
            ("reference", self._id("reference")),
            ("policy", self._id("dpo", seed)),
        )
        dpo = {**batch, "beta": config.dpo_beta}
        yield self._stage("eval_dpo_rm", "eval_dpo_rm", seed, inputs, dpo, 1)
        for source in SOURCES:
            for rm in REWARD_MODELS:
                yield self._best_of_n(source, rm, seed, self.size)

    def _evaluation(self, name: str, seed: int | None, policy: str) -> Iterator[Stage]:
        """Samples and scores of a policy, and the judge's verdicts on them where there is one."""
        settings = {
            "evaluation": asdict(self.config.evaluation),
            "sampling": self._sampling(),
            "tokens": self.config.limits(self.branch).max_completion_tokens,
            "part": self._part,
        }
        inputs = (*self._read, ("policy", policy))
        yield self._stage(f"eval_{name}", "eval_policy", seed, inputs, settings, 2)
        yield from self._verdicts(f"judge_{name}", seed, self._id(f"eval_{name}", seed))

    @property
    def _part(self) -> str:
        """Fig. 6 on text: against the preferred completions of the validation pairs (App. C.4)."""
        ranked = self.branch == "ranked" and self.config.kind == "text"
        return "validation_pairs" if ranked else "test"

    def _verdicts(self, name: str, seed: int | None, samples: str) -> Iterator[Stage]:
        if self.config.kind == "text" and self.config.judge.model is not None:
            settings = {"judge": asdict(self.config.judge), "two_word": self.branch == "two_word"}
            inputs = (*self._read, ("samples", samples))
            yield self._stage(name, "verdicts", seed, inputs, settings, 1)

    def _pool(self, source: str, seed: int | None, policy: str) -> Iterator[Stage]:
        """Many samples a test prompt, for best-of-N, and the judge's verdict on each."""
        settings = {
            "evaluation": asdict(self.config.evaluation),
            "temperature": self.config.online.temperature,
            "sampling": self._sampling(),
            "tokens": self.config.limits(self.branch).max_completion_tokens,
        }
        inputs = (*self._read, ("policy", policy))
        yield self._stage(f"pool_{source}", "pool", seed, inputs, settings, 3)
        yield from self._verdicts(f"judge_pool_{source}", seed, self._id(f"pool_{source}", seed))

    def _best_of_n(self, source: str, rm: str, seed: int, rm_size: str, name: str = "") -> Stage:
        """Best of N of one policy's samples by one reward model; their sizes may differ."""
        config = self.config
        at = None if source == "sft" else seed
        policy = self._sft_id if source == "sft" else self._id("dpo", seed)
        scorer = "dpo" if rm == "dpo_rm" else rm
        inputs = [
            *self._read,
            ("policy", policy),
            ("pool", self._id(f"pool_{source}", at)),
            ("reward_model", Stage(scorer, "", seed, (), {}, 0, self.branch, rm_size).id),
        ]
        if rm == "dpo_rm":
            inputs.append(("anchor", self._sft_id))
        if any(self._verdicts("", None, "")):
            inputs.append(("verdicts", self._id(f"judge_pool_{source}", at)))
        beta = {"local_rm": config.local_beta(self.branch), "dpo_rm": config.dpo_beta}
        settings = {
            **self._scoring(),
            "reward_model": rm,
            "beta": beta.get(rm),
            "evaluation": asdict(config.evaluation),
            "temperature": config.online.temperature,
        }
        name = name or f"bon_{source}_{rm}"
        return self._stage(name, "best_of_n", seed, tuple(inputs), settings, 2)

    # --- settings that several stages share -------------------------------------------------------

    def _train(self, train: TrainConfig) -> dict[str, Any]:
        return {**asdict(train), "precision": self.config.precision}

    def _scoring(self) -> dict[str, Any]:
        return {
            "batch": self.config.evaluation.score_batch,
            "precision": self.config.precision,
        }

    def _sampling(self) -> dict[str, Any]:
        return {"sampler": self.config.sampler, "precision": self.config.precision}


def crossed(rm_size: str, config: StudyConfig) -> str:
    """The name of Fig. 4's best-of-N by a global reward model of a size: "bon_sft_by_2.8b"."""
    return f"bon_sft_by_{rm_size or config.main}"


def _best_of_n_across(config: StudyConfig, seeds: Sequence[int]) -> Iterator[Stage]:
    """Fig. 4: every policy size with every size of global reward model."""
    sizes = _sizes(("fig4",), config)
    for seed in seeds:
        for policy in sizes:
            road = _Road(config, "", policy, own_data=True)
            for rm in sizes:
                yield road._best_of_n("sft", "global_rm", seed, rm, crossed(rm, config))


# --- which stages a figure ends in ----------------------------------------------------------------


def arms(figure: str, config: StudyConfig) -> dict[str, str]:
    """{arm in the figure's quantities: name of what is measured}, without branch and size.

    What is measured is a policy ("dpo"), a reward model ("global_rm") or a best-of-N ("bon_...").
    """
    policies = {
        "fig3": ("sft", *POLICIES),
        "fig5": ("sft", "dpo", "online_dpo_dpo"),
        "fig6": ("sft", "dpo", "dpo_2x", "online_dpo_dpo"),
        "fig7": ("sft", "online_dpo_sft", MORE_PROMPTS),
        "fig8": ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo"),
        "fig9": (*REWARD_MODELS, "global_rm_matched"),
    }
    if figure == "fig4":
        names = [crossed(size, config) for size in _sizes(("fig4",), config)]
        return {name: name for name in names}
    if figure == "fig10":
        names = [f"bon_{source}_{rm}" for source in SOURCES for rm in REWARD_MODELS]
        return {name: name for name in names}
    return {name: name for name in policies[figure]}


def _needed(stages: Sequence[Stage], figures: Sequence[str], config: StudyConfig) -> set[str]:
    """Ids of the figures' last stages and of everything that they rest on."""
    ends: set[tuple[str, str, str]] = set()
    for figure in figures:
        sizes = _sizes((figure,), config)
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
