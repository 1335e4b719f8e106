"""Every stage of one branch of data at one model size: from SFT to what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm.config import StudyConfig, TrainConfig
from llm.protocol.figures import MORE_PROMPTS, POLICIES, REWARD_MODELS, SOURCES
from llm.protocol.stage import Inputs, Stage, label


@dataclass(frozen=True)
class Road:
    """Every stage of one branch at one size; the graph drops what no figure asks for."""

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
                yield self.best_of_n(source, rm, seed, self.size)

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
        judged = self.config.kind == "text" and self.config.judge.model is not None
        if judged and self._part == "test":  # Fig. 6 is measured by ROUGE-L alone
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

    def best_of_n(self, source: str, rm: str, seed: int, rm_size: str, name: str = "") -> Stage:
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
        return {"precision": self.config.precision}

    def _sampling(self) -> dict[str, Any]:
        return {"sampler": self.config.sampler, "precision": self.config.precision}
