"""What `study --preset paper` would run, stage by stage, against the paper's protocol.

The tables below are written from the paper (section 3, App. C, Tables 1 to 4), not from the
configuration; what the paper leaves open is marked "ours". Every setting that the protocol names is
compared in every stage, and every stage has to be expected: one too many fails as one too few does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm import __main__ as command
from llm.protocol.presets import PRESETS, preset

SIZES = ("1.4b", "2.8b", "6.9b")
SEEDS = (0, 1, 2)  # three training seeds; one SFT a size (ours)
HUB = "vwxyzjn/summarize_from_feedback_tldr_3_filtered,openai/summarize_from_feedback"

# --- Tables 1 to 4 and App. C ---------------------------------------------------------------------

ADAM = {"adam_eps": 1e-5, "max_grad_norm": 1.0, "precision": "bf16"}
ADAM |= {"warmup_steps": 0, "weight_decay": 0.0}  # ours, as is the clipping: no table states them
SFT = {"batch_size": 128, "rate": 3e-6, "schedule": "cosine", "epochs": 1}  # ours but the epoch
TABLE_2 = {"batch_size": 64, "rate": 3e-6, "schedule": "cosine", "epochs": 1}
TABLE_3 = {"batch_size": 128, "rate": 3e-7, "schedule": "linear", "epochs": 1}
BETA, HORIZON, SHORT = 0.05, 53, 5
SAMPLES, RANKING_TEMPERATURE, EVALUATION_TEMPERATURE = 25, 0.1, 0.01
ROWS = {"sft": 117_000, "pairs": 92_900, "validation_pairs": 83_800}
PROMPTS = {"": 600, "two_word": 6000, "narrow": 600, "ranked": 600}  # ranked: of PFT validation
ENDS = {"": "TL;DR:", "two_word": "Two-Word TL;DR:"}
JUDGE = {"model": "gpt-4o", "both_orders": True}  # both orders: ours

# --- the figures ----------------------------------------------------------------------------------

ONLINE = {  # policy: what generated its pairs
    "online_dpo_sft": "sft",
    "online_dpo_dpo": "dpo",
    "online_dpo_sft_more_prompts": "sft",
}
POLICIES = {
    "fig3": ("", SIZES, ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")),
    "fig5": ("two_word", ("1.4b",), ("sft", "dpo", "online_dpo_dpo")),
    "fig6": ("ranked", ("1.4b",), ("sft", "dpo", "dpo_2x", "online_dpo_dpo")),
    "fig7": ("", ("1.4b",), ("sft", "online_dpo_sft", "online_dpo_sft_more_prompts")),
    "fig8": ("narrow", ("1.4b",), ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo")),
}


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    """{figure: the plan's JSON}, as a person without hub, data, GPU and key gets it."""
    return {figure: _plan(figure) for figure in (f"fig{i}" for i in range(3, 11))}


def _plan(*figures: str) -> dict[str, Any]:
    import contextlib
    import io

    text = io.StringIO()
    line = ["study", *figures, "--preset", "paper", "--seeds", "3", "--dry-run", "--json"]
    with contextlib.redirect_stdout(text):
        assert command.main([*line, "--out", "/nowhere/study"]) == 0
    return json.loads(text.getvalue())


def at(name: str, branch: str = "", size: str = "1.4b", seed: int | None = None) -> str:
    """A stage's id; the smallest size is the main one."""
    found = name + (f".{branch}" if branch else "") + ("" if size == "1.4b" else f"@{size}")
    return found if seed is None else f"{found}[{seed}]"


# --- what is expected of one stage ----------------------------------------------------------------


def train(table: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**table, **ADAM, **changes}


def expected_training(name: str, branch: str) -> dict[str, Any]:
    """Training settings, beta, logit scaling, rows: of one stage that trains."""
    horizon = SHORT if branch == "two_word" else HORIZON
    if name == "sft":
        return {"train": train(SFT), "rows": ROWS["sft"]}
    if name == "global_rm":
        return {"train": train(TABLE_2), "rows": ROWS["pairs"]}
    if name == "global_rm_matched":  # ours: Fig. 9 at the hyperparameters of the others
        return {"train": train(TABLE_3), "rows": ROWS["pairs"]}
    if name == "local_rm":
        return {"train": train(TABLE_3), "rows": ROWS["pairs"], "beta": 1 / horizon}
    if name == "dpo":
        return {"train": train(TABLE_3), "rows": ROWS["pairs"], "beta": BETA}
    if name == "dpo_2x":
        return {"train": train(TABLE_3, epochs=2), "rows": ROWS["pairs"], "beta": BETA}
    more = ROWS["sft"] if name.endswith("more_prompts") else 0
    scaled = {"beta": BETA, "temperature": RANKING_TEMPERATURE}
    return {"train": train(TABLE_3), "rows": ROWS["pairs"] + more, **scaled}


def check_training(stage: dict[str, Any], branch: str) -> None:
    want = expected_training(stage["name"], branch)
    found = stage["settings"]["train"]
    for key in ("batch_size", "schedule", "epochs", *ADAM):
        assert found[key] == want["train"][key], (stage["id"], key)
    assert stage["learning_rate"] == want["train"]["rate"], stage["id"]
    assert stage["rows"] == want["rows"]
    whole = -(-want["rows"] // want["train"]["batch_size"]) * want["train"]["epochs"]
    assert stage["steps"] == whole
    for key in ("beta", "temperature"):
        assert stage["settings"].get(key) == want.get(key), (stage["id"], key)


def check_start(stage: dict[str, Any], branch: str, size: str, seed: int | None) -> None:
    """The checkpoint it starts from, its reference, the pairs it reads (Table 3's caption)."""
    name, inputs = stage["name"], dict(stage["inputs"])
    assert inputs.pop("data") == at("data", branch if branch == "two_word" else "")
    made = inputs.pop("made", None)
    assert made == {"": None, "two_word": "pairs.two_word"}.get(branch, at("pairs", branch, size))
    sft = at("sft", "", size)
    if name == "sft":
        assert inputs == {}
        assert made is None
    elif name in ("dpo", "dpo_2x"):
        assert inputs == {"policy": sft, "reference": at("reference", branch, size)}
    elif name in ONLINE:
        source = ONLINE[name]
        start = sft if source == "sft" else at("dpo", branch, size, seed)
        pairs = "online_pairs_" + name.removeprefix("online_dpo_")
        assert inputs == {"policy": start, "pairs": at(pairs, branch, size, seed)}
    else:  # reward models: from SFT; a local one has no reference
        assert inputs == {"policy": sft}


def check_online_pairs(
    stage: dict[str, Any], policy: str, branch: str, size: str, seed: int
) -> None:
    """25 samples at 0.1 of the policy for each row, ranked by the global reward model."""
    name = "online_pairs_" + policy.removeprefix("online_dpo_")
    settings, inputs = stage["settings"], stage["inputs"]
    assert stage["name"] == name
    source = ONLINE[policy]
    start = at("sft", "", size) if source == "sft" else at("dpo", branch, size, seed)
    assert inputs["policy"] == start
    assert inputs["global_rm"] == at("global_rm", branch, size, seed)
    online = settings["online"]
    assert (online["samples"], online["temperature"]) == (SAMPLES, RANKING_TEMPERATURE)
    assert online["pool"] == "row"
    assert online["more_prompts"] is None  # all
    assert settings["more_prompts"] == policy.endswith("more_prompts")
    assert settings["tokens"] == (SHORT if branch == "two_word" else HORIZON)
    rows = ROWS["pairs"] + (ROWS["sft"] if policy.endswith("more_prompts") else 0)
    assert stage["samples"] == SAMPLES * rows


def check_evaluation(stage: dict[str, Any], branch: str) -> None:
    settings = stage["settings"]
    assert settings["evaluation"]["temperature"] == EVALUATION_TEMPERATURE
    assert settings["tokens"] == (SHORT if branch == "two_word" else HORIZON)
    assert settings["part"] == ("validation_pairs" if branch == "ranked" else "test")
    assert settings["sampling"] == {"sampler": "vllm", "precision": "bf16"}
    assert stage["samples"] == PROMPTS[branch]


def check_judge(stage: dict[str, Any], branch: str, comparisons: int) -> None:
    settings = stage["settings"]
    assert {key: settings["judge"][key] for key in JUDGE} == JUDGE
    assert settings["two_word"] == (branch == "two_word")
    assert stage["questions"] == 2 * comparisons


# --- figures of policies --------------------------------------------------------------------------


def expected_policies(branch: str, sizes: tuple[str, ...], arms: tuple[str, ...]) -> set[str]:
    """Every stage of a figure of policies: data, pairs, references, models, samples, verdicts."""
    found = {"data"} | ({"data.two_word"} if branch == "two_word" else set())
    for size in sizes:
        found |= {at("sft", "", size)}
        if branch:
            found.add("pairs.two_word" if branch == "two_word" else at("pairs", branch, size))
        for seed in SEEDS:
            found |= models(branch, size, seed, arms)
        if {"dpo", "dpo_2x"} & set(arms):
            found.add(at("reference", branch, size))
        for arm in arms:
            for seed in (None,) if arm == "sft" else SEEDS:
                found.add(at(f"eval_{arm}", branch, size, seed))
                if branch != "ranked":
                    found.add(at(f"judge_{arm}", branch, size, seed))
    return found


def models(branch: str, size: str, seed: int, arms: tuple[str, ...]) -> set[str]:
    found = set()
    for arm in set(arms) - {"sft"}:
        found.add(at(arm, branch, size, seed))
        if arm in ONLINE:
            found.add(at("online_pairs_" + arm.removeprefix("online_dpo_"), branch, size, seed))
            found.add(at("global_rm", branch, size, seed))
        if ONLINE.get(arm) == "dpo":
            found.add(at("dpo", branch, size, seed))
    return found


@pytest.mark.parametrize("figure", POLICIES)
def test_figures_of_policies(plans, figure):
    branch, sizes, arms = POLICIES[figure]
    stages = {stage["id"]: stage for stage in plans[figure]["stages"]}
    assert set(stages) == expected_policies(branch, sizes, arms)
    for stage in stages.values():
        own = "" if stage["name"] == "sft" else branch
        check_stage(stage, own)


def check_stage(stage: dict[str, Any], branch: str) -> None:
    """Whatever kind of stage it is."""
    kind, name, size, seed = (stage[key] for key in ("kind", "name", "size", "seed"))
    if kind in ("sft", "global_rm", "local_rm", "dpo", "online_dpo"):
        check_training(stage, branch)
        check_start(stage, branch, size, seed)
        if kind == "sft":
            assert stage["settings"]["model"]["pretrained"] == f"EleutherAI/pythia-{size}-deduped"
    elif kind == "online_pairs":
        policy = name.replace("online_pairs", "online_dpo")
        check_online_pairs(stage, policy, branch, size, seed)
    elif kind == "eval_policy":
        check_evaluation(stage, branch)
        policy = name.removeprefix("eval_")
        own = "" if policy == "sft" else branch
        assert stage["inputs"]["policy"] == at(policy, own, size, seed)
    elif kind == "verdicts" and not name.startswith("judge_pool"):
        check_judge(stage, branch, PROMPTS[branch])
        evaluated = name.replace("judge_", "eval_")
        assert stage["inputs"]["samples"] == at(evaluated, branch, size, seed)
    elif kind == "reference":
        assert stage["inputs"]["policy"] == at("sft", "", size)
    elif kind == "data":
        check_data(stage)


def check_data(stage: dict[str, Any]) -> None:
    limits = stage["settings"]["limits"]
    short = stage["branch"] == "two_word"
    assert limits["max_prompt_tokens"] == 512
    assert limits["max_completion_tokens"] == (SHORT if short else HORIZON)
    assert limits["max_pair_completion_tokens"] == 169
    assert limits["prompt_end"] == ENDS[stage["branch"]]
    assert limits["n_test"] == PROMPTS[stage["branch"]]
    assert [limits[f"n_{part}"] for part in ("sft", "pairs", "validation_pairs")] == [None] * 3


# --- pairs that are made --------------------------------------------------------------------------


def test_pairs_that_are_made(plans):
    """Two words by the judge; best and worst by ROUGE-L of 25; two samples, judged (App. C.1)."""
    for figure, branch, samples in (
        ("fig5", "two_word", 0),
        ("fig6", "ranked", SAMPLES),
        ("fig8", "narrow", 2),
    ):
        (stage,) = [s for s in plans[figure]["stages"] if s["kind"] == "made_pairs"]
        settings = stage["settings"]
        assert (settings["how"], settings["samples"]) == (branch, samples)
        assert settings["online"]["temperature"] == RANKING_TEMPERATURE
        assert settings["tokens"] == (SHORT if branch == "two_word" else HORIZON)
        assert {key: settings["judge"][key] for key in JUDGE} == JUDGE
        assert stage["inputs"].get("policy") == (None if branch == "two_word" else "sft")
        assert stage["seed"] is None
        assert (stage["questions"] > 0) == (branch != "ranked")


# --- Fig. 4 ---------------------------------------------------------------------------------------


def test_fig4_crosses_policies_with_reward_models(plans):
    stages = {stage["id"]: stage for stage in plans["fig4"]["stages"]}
    want = {"data"}
    for size in SIZES:
        want |= {at(name, "", size) for name in ("sft", "pool_sft", "judge_pool_sft")}
        want |= {at("global_rm", "", size, seed) for seed in SEEDS}
        want |= {at(f"bon_sft_by_{rm}", "", size, seed) for rm in SIZES for seed in SEEDS}
    assert set(stages) == want
    for size in SIZES:
        for rm in SIZES:
            for seed in SEEDS:
                stage = stages[at(f"bon_sft_by_{rm}", "", size, seed)]
                check_best_of_n(stage, "sft", "global_rm", rm, size, seed)


def check_best_of_n(
    stage: dict[str, Any], source: str, rm: str, rm_size: str, size: str, seed: int
) -> None:
    """25 samples at 0.1 of the policy; scores without the logit scaling (ours)."""
    settings, inputs = stage["settings"], stage["inputs"]
    at_seed = None if source == "sft" else seed
    assert settings["evaluation"]["pool"] == SAMPLES
    assert max(settings["evaluation"]["counts"]) == SAMPLES
    assert settings["temperature"] == RANKING_TEMPERATURE
    assert settings["reward_model"] == rm
    assert settings["beta"] == {"global_rm": None, "local_rm": 1 / HORIZON, "dpo_rm": BETA}[rm]
    assert inputs["pool"] == at(f"pool_{source}", "", size, at_seed)
    assert inputs["verdicts"] == at(f"judge_pool_{source}", "", size, at_seed)
    assert inputs["policy"] == at(source, "", size, at_seed)
    scorer = "dpo" if rm == "dpo_rm" else rm
    assert inputs["reward_model"] == at(scorer, "", rm_size, seed)
    assert inputs.get("anchor") == (at("sft", "", size) if rm == "dpo_rm" else None)


# --- Figs. 9 and 10 -------------------------------------------------------------------------------


def test_fig9_evaluates_three_reward_models_and_a_matched_one(plans):
    stages = {stage["id"]: stage for stage in plans["fig9"]["stages"]}
    want = {"data"}
    for size in SIZES:
        want |= {at(name, "", size) for name in ("sft", "reference")}
        for seed in SEEDS:
            trained = ("global_rm", "global_rm_matched", "local_rm")
            want |= {at(name, "", size, seed) for name in (*trained, "dpo")}
            want |= {at(f"eval_{name}", "", size, seed) for name in (*trained, "dpo_rm")}
    assert set(stages) == want
    for stage in stages.values():
        check_stage(stage, "")
        if stage["name"].startswith("eval_"):
            assert stage["rows"] == ROWS["validation_pairs"]
            model = stage["name"].removeprefix("eval_").replace("dpo_rm", "dpo")
            assert stage["inputs"]["policy"] == at(model, "", stage["size"], stage["seed"])
            beta = {"local_rm": 1 / HORIZON, "dpo": BETA}.get(model)
            assert stage["settings"].get("beta") == beta


def test_fig10_takes_the_best_of_n_of_two_policies_by_three_reward_models(plans):
    stages = {stage["id"]: stage for stage in plans["fig10"]["stages"]}
    want = {"data"}
    for size in SIZES:
        want |= {at(n, "", size) for n in ("sft", "reference", "pool_sft", "judge_pool_sft")}
        for seed in SEEDS:
            names = ("global_rm", "local_rm", "dpo", "pool_dpo", "judge_pool_dpo")
            want |= {at(name, "", size, seed) for name in names}
            for source in ("sft", "dpo"):
                for rm in ("global_rm", "local_rm", "dpo_rm"):
                    want.add(at(f"bon_{source}_{rm}", "", size, seed))
                    stage = stages[at(f"bon_{source}_{rm}", "", size, seed)]
                    check_best_of_n(stage, source, rm, size, size, seed)
    assert set(stages) == want
    for stage in stages.values():
        check_stage(stage, "")
        if stage["kind"] == "pool":
            assert stage["samples"] == PROMPTS[""] * SAMPLES
            assert stage["settings"]["temperature"] == RANKING_TEMPERATURE
            assert stage["settings"]["tokens"] == HORIZON


def test_the_judge_of_fig10_is_asked_what_the_volume_says(plans):
    """3 sizes x 2 sources x 3 seeds x 600 prompts x 25 samples x 2 orders = 540,000, were SFT's
    samples drawn anew for each seed; one SFT a size, so its pool is judged once: 360,000."""
    pools = [s for s in plans["fig10"]["stages"] if s["name"].startswith("judge_pool")]
    each = PROMPTS[""] * SAMPLES * 2
    assert 3 * 2 * 3 * each == 540_000
    assert sum(stage["questions"] for stage in pools) == 3 * (1 + 3) * each == 360_000
    assert plans["fig10"]["totals"]["questions"] == 360_000


def _totals(*options: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict, dict]:
    """(configuration, totals) of Fig. 10's plan."""
    line = ["study", "fig10", "--preset", "1.4b", "--seeds", "1", "--out", "/nowhere/study"]
    assert command.main([*line, "--dry-run", "--json", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    return plan["config"], plan["totals"]


def test_the_judge_is_asked_less_by_fewer_n_and_in_one_order(capsys):
    """The largest N decides the pool; the paper's 25 and both orders stay the default."""
    config, whole = _totals(capsys=capsys)
    assert (config["judge"]["both_orders"], config["evaluation"]["pool"]) == (True, SAMPLES)
    assert whole["questions"] == 2 * PROMPTS[""] * SAMPLES * 2
    config, one = _totals("--one-order", capsys=capsys)
    assert config["judge"]["both_orders"] is False
    assert one["questions"] == whole["questions"] / 2
    config, fewer = _totals("--counts", "1", "5", "--one-order", capsys=capsys)
    assert (config["evaluation"]["counts"], config["evaluation"]["pool"]) == ([1, 5], 5)
    assert fewer["questions"] == one["questions"] / 5
    assert fewer["dollars"] == pytest.approx(whole["dollars"] / 10, abs=0.01)
    assert _totals("--counts", "1", "25", capsys=capsys)[1] == whole


def test_the_plan_says_that_one_order_is_asked(capsys):
    line = ["study", "fig10", "--preset", "1.4b", "--out", "/nowhere/study", "--dry-run"]
    assert command.main([*line, "--one-order"]) == 0
    assert "questions at most, in one order" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--counts", "1", "26"], "counts = [1, 26] must rise and lie in 1..25"),
        (["--counts", "5", "5"], "counts = [5, 5] must rise"),
        (["--judge", "none", "--one-order"], "--one-order: no model judges this study"),
        (["--preset", "tiny", "--one-order"], "--one-order: no model judges this study"),
    ],
)
def test_fewer_questions_that_make_no_sense_are_refused(capsys, tmp_path, options, says):
    line = ["study", "fig10", "--preset", "1.4b", "--out", str(tmp_path / "out")]
    assert command.main([*line, *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the plan itself ------------------------------------------------------------------------------


def test_a_plan_needs_nothing_and_says_what_it_does_not_know(plans):
    plan = plans["fig3"]
    assert plan["sources"][""] == HUB
    assert plan["tokenizer"] == "EleutherAI/pythia-1.4b-deduped"
    assert plan["unresolved"][0] == f"data {HUB}"
    assert [name for name in plan["unresolved"] if name.startswith("model")] == [
        f"model EleutherAI/pythia-{size}-deduped" for size in SIZES
    ]
    assert all(stage["directory"] is None for stage in plan["stages"])
    assert plan["counts"][""] == {**ROWS, "test": 600, "source": "Table 1, within the limits"}
    assert not Path("/nowhere").exists()


def test_settings_of_the_whole_study(plans):
    config = plans["fig3"]["config"]
    assert set(config["models"]) == set(SIZES)
    assert set(config["wide"]) == {"fig3", "fig4", "fig9", "fig10"}
    assert config["dpo_beta"] == BETA
    assert config["precision"] == "bf16"
    for model in config["models"].values():
        assert model["pretrained"].endswith("-deduped")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["task", "text"])
def test_every_shipped_preset_is_parsed_and_validated(name, kind):
    config = preset(name, kind)
    assert config.preset == name
    assert json.loads(json.dumps(config.to_json()))["kind"] == kind
    for branch in config.branches:
        assert config.limits(branch).max_completion_tokens >= 2
