"""What each kind of stage does: reads its inputs' folders, writes its own, returns its numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llm import tables
from llm.config import ModelConfig
from llm.data.config import DataConfig
from llm.data.example import Example
from llm.data.source import kind_of_source, load, open_tokenizer
from llm.models.build import (
    RewardModel,
    device,
    load_policy,
    load_reward_model,
    new_policy,
    save_policy,
    save_reward_model,
    weights_digest,
    whole_state,
)
from llm.models.forward import check_packing, completion_logps
from llm.records import write_json
from llm.stages import best_of_n, evaluate, judged, online, pairs
from llm.stages.reference import (
    check_reference_mark,
    check_reference_sample,
    read_reference,
    write_reference_mark,
)
from llm.stages.work import Work
from llm.training.objectives import (
    Objective,
    PolicyObjective,
    RewardObjective,
    Row,
    SupervisedObjective,
)
from llm.training.train import is_main, processes, train

PARTS = ("sft", "pairs", "validation_pairs", "test")
SHARDED_FROM = (
    2e9  # parameters: 16 bytes each (weights, gradients, two moments) leave little of 80 GB
)


@dataclass(frozen=True)
class Result:
    """What goes into the record beside the files."""

    metrics: Mapping[str, float | int | None]
    history: list[dict[str, float]] = field(default_factory=list)
    weights_sha256: str | None = None


# --- data ----------------------------------------------------------------------------------------


def make_data(work: Work) -> Result:
    """Read, split and tokenise the source once for all stages."""
    tokenizer = open_tokenizer(work.source, work.tokenizer)
    limits = DataConfig(**work.settings["limits"])
    seed = int(work.settings["data"]["split_seed"])
    dataset = load(work.source, tokenizer=tokenizer, limits=limits, seed=seed)
    for part in PARTS:
        tables.write_examples(work.folder / f"{part}.parquet", getattr(dataset, part))
    write_json(work.folder / "data_card.json", dataset.card)
    tokenizer.save_pretrained(work.folder / "tokenizer")
    special = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    write_json(work.folder / "vocabulary.json", {"size": len(tokenizer), **special})
    if kind_of_source(work.source) == "task":
        shutil.copyfile(work.source, work.folder / "task.json")
    return Result({name: len(getattr(dataset, name)) for name in PARTS})


# --- training ------------------------------------------------------------------------------------


def _precision(work: Work) -> str:
    """Of every forward pass of this stage."""
    settings = work.settings
    return settings["train"]["precision"] if "train" in settings else settings["precision"]


def _train(work: Work, objective: Objective, rows: list[Row]) -> tuple[list, dict[str, Any]]:
    """Run the loop on the stage's rows; the history and the metrics that every stage has."""
    config = work.train_config
    width = int(objective.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    parameters = sum(p.numel() for p in objective.model.parameters())
    # online arms may have dropped rows: every stage on preferences counts the data set's pairs
    examples = len(rows) if work.stage.kind == "sft" else len(work.examples("pairs"))
    rate = config.learning_rate(width=width, examples=examples)
    history = train(
        objective,
        rows,
        config,
        learning_rate=rate,
        pad=work.vocabulary["pad"],
        seed=work.seed,
        folder=work.folder / "checkpoints",
        report=work.report,
        micro_tokens=work.runtime.micro_tokens,
        shard=processes() > 1 and parameters >= SHARDED_FROM,
        tracker=work.runtime.tracker,
        tracker_folder=work.study / "tracker" / work.stage.id,
    )
    metrics = {
        "examples": len(rows),
        "steps": int(history[-1]["step"]),
        "epochs": config.epochs,
        "learning_rate": rate,
        "batch_size": config.batch_size,
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "parameters": parameters,
    }
    return history, metrics


def _finish(
    work: Work, objective: Objective, rows: list[Row], save: Callable[..., None] = save_policy
) -> Result:
    """Train, gather the weights where they are split, and write them once."""
    history, metrics = _train(work, objective, rows)
    state = whole_state(objective.model, keep=is_main())
    if not is_main():
        return Result(metrics, history)
    save(objective.model, work.folder, state)
    return Result(metrics, history, weights_digest(state))


def _pair_rows(work: Work, reference: list[tuple[float, ...]] | None = None) -> list[Row]:
    anchors = reference or [None] * len(work.examples("pairs"))
    return [
        Row(example.prompt_ids, example.completion_ids, anchor)
        for example, anchor in zip(work.examples("pairs"), anchors, strict=True)
    ]


def make_sft(work: Work) -> Result:
    """Supervised fine-tuning on reference completions."""
    config = ModelConfig(**work.settings["model"])
    words = work.vocabulary
    model = new_policy(
        config, vocabulary=words["size"], eos=words["eos"], pad=words["pad"], seed=work.seed
    )
    if config.pretrained is not None:
        check_packing(f"--model {config.pretrained}", model)
    rows = [sft_row(e, work.train_config.on_prompt) for e in work.examples("sft")]
    return _finish(work, SupervisedObjective(model, precision=_precision(work)), rows)


def sft_row(example: Example, on_prompt: bool) -> Row:
    """The completion is learned; on_prompt: the prompt's tokens too, but the first."""
    if not on_prompt:
        return Row(example.prompt_ids, example.completion_ids)
    first, *rest = example.prompt_ids
    return Row((first,), ((*rest, *example.completion_ids[0]),))


def make_reference(work: Work) -> Result:
    """The SFT policy's log-probs of all pairs, once for every stage that needs them."""
    model = load_policy(work.inputs["policy"])
    for part in ("pairs", "validation_pairs"):
        rows = [(e.prompt_ids, e.completion_ids) for e in work.examples(part)]
        values = evaluate.scored(work, partial(completion_logps, model), model, rows)
        columns = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in values]
        tables.write_rows(work.folder / f"{part}.parquet", columns)
    write_reference_mark(work.folder, model, _precision(work))
    return Result({})


def make_global_rm(work: Work) -> Result:
    """A linear head on the SFT model's trunk, all weights trained (Table 2)."""
    policy = load_policy(work.inputs["policy"])
    model = RewardModel(policy, seed=work.seed)
    objective = RewardObjective(model, precision=_precision(work))
    return _finish(work, objective, _pair_rows(work), save_reward_model)


def make_local_rm(work: Work) -> Result:
    """DPO without a reference, beta = 1/H (Table 4)."""
    model = load_policy(work.inputs["policy"])
    objective = PolicyObjective(
        model, beta=work.settings["beta"], with_reference=False, precision=_precision(work)
    )
    return _finish(work, objective, _pair_rows(work))


def make_dpo(work: Work) -> Result:
    """Offline DPO from SFT, reference SFT (Table 3)."""
    model = load_policy(work.inputs["policy"])
    folder, precision = work.inputs["reference"], _precision(work)
    rows = _pair_rows(work, read_reference(folder, "pairs"))
    check_reference_mark(folder, model, precision)
    check_reference_sample(model, rows, precision=precision, pad=work.vocabulary["pad"])
    objective = PolicyObjective(model, beta=work.settings["beta"], precision=precision)
    return _finish(work, objective, rows)


def make_made_pairs(work: Work) -> Result:
    """Pairs of Figs. 5, 6 and 8: written by the judge, ranked by ROUGE-L, or two SFT samples."""
    return Result(pairs.make(work))


def make_online_pairs(work: Work) -> Result:
    """Best and worst of K samples of the policy by the global reward model (App. C.1.1)."""
    return Result(online.make(work))


def make_online_dpo(work: Work) -> Result:
    """DPO on the policy's own pairs, reference = what generated them, logits over temperature.

    Where every prompt's samples were all the same there is no pair: the policy stays as it was.
    """
    model = load_policy(work.inputs["policy"])
    rows = online.read_pairs(work.inputs["pairs"])
    if not rows:
        if is_main():
            save_policy(model, work.folder)
        return Result({"examples": 0, "steps": 0}, [], weights_digest(model))
    temperature, precision = work.settings["temperature"], _precision(work)
    check_reference_sample(
        model,
        rows,
        precision=precision,
        pad=work.vocabulary["pad"],
        temperature=temperature,
    )
    objective = PolicyObjective(
        model, beta=work.settings["beta"], temperature=temperature, precision=precision
    )
    return _finish(work, objective, rows)


# --- evaluation ----------------------------------------------------------------------------------


def make_eval_policy(work: Work) -> Result:
    """A policy's samples and scores; on a task also its exact completion distribution."""
    return Result(evaluate.policy(work))


def make_eval_global_rm(work: Work) -> Result:
    """Validation loss and accuracy of the global reward model."""
    model = load_reward_model(work.inputs["policy"]).to(device()).eval()
    return Result(evaluate.global_rm(work, model))


def make_eval_local_rm(work: Work) -> Result:
    """Validation loss and accuracy of beta log pi."""
    model = load_policy(work.inputs["policy"]).to(device()).eval()
    return Result(evaluate.local_rm(work, model, reference=None))


def make_eval_dpo_rm(work: Work) -> Result:
    """Validation loss and accuracy of DPO's implicit reward beta (log pi - log pi_ref)."""
    model = load_policy(work.inputs["policy"]).to(device()).eval()
    reference = read_reference(work.inputs["reference"], "validation_pairs")
    return Result(evaluate.local_rm(work, model, reference=reference))


def make_pool(work: Work) -> Result:
    """Many samples of every test prompt, for best-of-N."""
    return Result(best_of_n.pool(work))


def make_best_of_n(work: Work) -> Result:
    """Best-of-N curves of one pool by one reward model."""
    return Result(best_of_n.curve(work))


def make_verdicts(work: Work) -> Result:
    """The judge's verdicts on a policy's samples against the references."""
    return Result(judged.make(work))


KINDS: dict[str, Callable[[Work], Result]] = {
    "data": make_data,
    "sft": make_sft,
    "reference": make_reference,
    "global_rm": make_global_rm,
    "local_rm": make_local_rm,
    "dpo": make_dpo,
    "made_pairs": make_made_pairs,
    "online_pairs": make_online_pairs,
    "online_dpo": make_online_dpo,
    "eval_policy": make_eval_policy,
    "verdicts": make_verdicts,
    "pool": make_pool,
    "best_of_n": make_best_of_n,
    "eval_global_rm": make_eval_global_rm,
    "eval_local_rm": make_eval_local_rm,
    "eval_dpo_rm": make_eval_dpo_rm,
}
