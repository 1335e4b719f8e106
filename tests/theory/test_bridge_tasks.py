"""The tasks that a study needs: what ships is what the commands make, and it is what twins run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from theory.__main__ import main
from theory.errors import InputError
from theory.rouge_task import RougeTask, make_rouge_task
from theory.tasks import WalshTask, load_task, make_task, save_task
from theory.twins import fig6

SHIPPED = Path(__file__).parents[2] / "llm" / "data" / "shipped"
SMALL = RougeTask(words=2, reference=2, prompts=3, horizon=3)
COMMANDS = {
    "task.json": (),
    "short_task.json": ("--completion-bits", "2"),
    "rouge_task.json": ("--family", "rouge"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_ships_is_what_the_command_makes_byte_for_byte(name: str, tmp_path: Path):
    assert main(["task", "--out", str(tmp_path / name), *COMMANDS[name]]) == 0
    assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()
    assert (SHIPPED / name).stat().st_size < 300_000


@pytest.mark.parametrize("seed", [0, 7])
def test_a_rouge_task_is_the_world_of_the_twin(seed: int, tmp_path: Path):
    spec = replace(SMALL, seed=seed)
    save_task(tmp_path / "task.json", make_rouge_task(spec))
    task, world = load_task(tmp_path / "task.json"), fig6.rouge_world(spec.family())
    live = task.tree.leaf_mask
    assert task.tree.tokens == world.tree.tokens
    np.testing.assert_allclose(task.reward[:, live], world.reward[:, live], atol=1e-9)
    np.testing.assert_allclose(task.log_reference[:, live], world.log_reference[:, live], atol=1e-9)


def test_rouge_scale_maps_the_reward_back_to_f1():
    body = make_rouge_task(SMALL)
    scale, hidden = body["parameters"]["rouge_scale"], body["parameters"]["references"]
    for prompt, row in body["reward"].items():
        for completion, reward in row.items():
            words = [word for word in completion.split() if word != body["eos"]]
            assert reward / scale == pytest.approx(f1(words, hidden[prompt].split()), abs=1e-9)


def f1(a: list[str], b: list[str]) -> float:
    """ROUGE-L F1 by trying every subsequence of a."""
    best = 0
    for mask in range(2 ** len(a)):
        part = [word for i, word in enumerate(a) if mask >> i & 1]
        rest = iter(b)
        if all(word in rest for word in part):
            best = max(best, len(part))
    return 2.0 * best / (len(a) + len(b))


def test_every_degree_makes_a_lookup_table():
    assert make_task(WalshTask(prompt_bits=2, completion_bits=2, degree=4))["family"] == "lookup"
    assert make_task(WalshTask(prompt_bits=2, completion_bits=2, degree=3))["family"] == "walsh"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reference": 4}, "reference must lie in 1..3, got 4"),
        ({"prompts": 1, "horizon": 14}, "a task file holds at most 1,048,576"),
        ({"words": 2.5}, "words must be a whole number, got 2.5"),
    ],
)
def test_bad_rouge_settings_are_refused(settings: dict, words: str):
    with pytest.raises(InputError, match=words):
        make_rouge_task(replace(SMALL, **settings))


def test_options_of_another_family_are_refused(tmp_path: Path, capsys):
    out = ["task", "--out", str(tmp_path / "t.json")]
    assert main([*out, "--family", "rouge", "--seed", "3"]) == 2
    assert main([*out, "--rouge.words", "2"]) == 2
    assert "--family walsh does not read the --rouge.* options" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
    assert main([*out, "--family", "rouge", "--rouge.words", "2", "--rouge.seed", "3"]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["parameters"]["seed"] == 3


def test_a_table_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="bytes, at most"):
        WalshTask(prompt_bits=9, completion_bits=9, degree=10)
