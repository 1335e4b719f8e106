"""Every preset parses; the paper's tables are what the paper's preset trains with."""

import json
from dataclasses import replace

import pytest

from llm.config import (
    FIGURES,
    EvalConfig,
    ModelConfig,
    OnlineConfig,
    TrainConfig,
    check_figures,
)
from llm.errors import InputError
from llm.protocol.figures import POLICIES
from llm.protocol.graph import ancestors, build, keys
from llm.protocol.presets import PRESETS, preset


@pytest.mark.parametrize("name", [name for name in PRESETS if name in ("tiny", "small", "1.4b")])
@pytest.mark.parametrize("kind", ["task", "text"])
def test_presets_parse_and_serialise(name, kind):
    config = preset(name, kind)
    assert config.preset == name
    assert json.loads(json.dumps(config.to_json(), allow_nan=False))["preset"] == name


def test_the_papers_tables():
    config = preset("1.4b", "text")
    rate = {"width": 2048, "examples": 92_900}
    table_2, table_3 = config.global_rm, config.dpo
    assert (table_2.batch_size, table_2.schedule, table_2.adam_eps) == (64, "cosine", 1e-5)
    assert table_2.learning_rate(**rate) == 3e-6
    assert (table_3.batch_size, table_3.schedule, table_3.adam_eps) == (128, "linear", 1e-5)
    assert table_3.learning_rate(**rate) == 3e-7
    assert config.dpo_beta == 0.05
    assert config.local_beta("") == 1 / 53
    assert (config.online.samples, config.online.temperature) == (25, 0.1)
    assert config.evaluation.temperature == 0.01
    assert (config.data.max_prompt_tokens, config.data.n_test) == (512, 600)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig(hidden_size=0),
        lambda: ModelConfig(hidden_size=30, heads=4),
        lambda: TrainConfig(0, 1e-6, 64, "linear"),
        lambda: TrainConfig(8, -1e-6, 64, "linear"),
        lambda: TrainConfig(8, 1e-6, 64, "linear", epochs=0),
        lambda: TrainConfig(8, 1e-6, 64, "linear", warmup_steps=-1),
        lambda: TrainConfig(8, 1e-6, 64, "linear", weight_decay=float("nan")),
        lambda: OnlineConfig(samples=1),
        lambda: OnlineConfig(temperature=0.0),
        lambda: replace(preset("tiny", "task"), dpo_beta=0.0),
        lambda: replace(preset("tiny", "task"), margins={"fig5": 0.0}),
        *(lambda n=n: EvalConfig(counts=n) for n in ((), (0, 1), (1, 26), (5, 5), (5, 1))),
        lambda: preset("70b", "text"),
        lambda: check_figures(("fig9", "fig11")),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_figures_share_stages_and_addresses_follow_content():
    config = preset("tiny", "task")
    one = {"kind": "task", "sha256": "0", "split_seed": 0}
    data = dict.fromkeys(("", "two_word", "ranked", "few_prompts"), one)
    both = build(FIGURES, (0, 1), config, data)
    names = {stage.name for stage in both}
    assert {*POLICIES, "sft", "global_rm", "local_rm"} <= names
    assert [stage.id for stage in both].count("dpo[0]") == 1
    position = {stage.id: i for i, stage in enumerate(both)}
    assert all(position[i] < position[s.id] for s in both for _, i in s.inputs)
    alone = build(("fig9",), (0,), config, data)
    assert keys(alone).items() <= keys(both).items()
    changed = replace(config, dpo_beta=0.1)
    before, after = keys(both), keys(build(FIGURES, (0, 1), changed, data))
    moved = {stage_id for stage_id in before if before[stage_id] != after[stage_id]}
    assert "dpo[0]" in moved
    assert "eval_online_dpo_dpo[1]" in moved
    assert not moved & {"data", "sft", "global_rm[0]", "local_rm[1]", "online_pairs_sft[0]"}
    assert [s.id for s in ancestors("local_rm[0]", both)] == ["data", "sft", "local_rm[0]"]
