"""The exported task: its numbers, its bytes, and what the reader refuses."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.__main__ import main
from theory.commands.task import Task as TaskCommand
from theory.errors import InputError
from theory.tasks import WalshTask, joint_features, joint_terms, load_task, make_task, save_task

SHIPPED = Path(__file__).parents[2] / "llm" / "data" / "shipped" / "task.json"
SMALL = WalshTask(prompt_bits=1, completion_bits=2)


def test_the_default_task_is_the_shipped_one_byte_for_byte(tmp_path: Path):
    assert TaskCommand(out=tmp_path / "task.json").run() == 0
    assert (tmp_path / "task.json").read_bytes() == SHIPPED.read_bytes()


def test_the_shipped_task_loads_with_the_stated_sharpness():
    task = load_task(SHIPPED)
    assert task.reward.shape == (16, 64)
    assert np.std(task.reward) == pytest.approx(2.0, abs=1e-9)
    np.testing.assert_allclose(np.exp(task.log_reference).sum(axis=1), 1.0, atol=1e-12)
    assert task.prompt_tokens[5] == ("a0", "b1", "c0", "d1")
    assert task.tree.prompts[5] == "0101"
    # Terms of prompt bits alone are left out, so that no prompt is better than another.
    np.testing.assert_allclose(task.reward.mean(axis=1), 0.0, atol=1e-9)


def test_the_reference_is_the_stated_mixture():
    spec = WalshTask(seed=3, reference_share=0.25, beta=2.0)
    body = make_task(spec)
    table = joint_features(4, 6, 2).reshape(-1, len(joint_terms(4, 6, 2)))
    reward = np.array([list(row.values()) for row in body["reward"].values()])
    reference = np.array([list(row.values()) for row in body["reference"].values()])
    own = spec.beta * np.log(reference) - 0.25 * reward
    own = own - own.mean(axis=1, keepdims=True)
    coefficients = table.T @ own.reshape(-1) / len(table)
    np.testing.assert_allclose(table @ coefficients, own.reshape(-1), atol=1e-8)
    assert np.std(own) == pytest.approx(1.0, abs=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_a_task_survives_the_file(seed: int):
    spec = WalshTask(prompt_bits=1, completion_bits=2, seed=seed)
    assert make_task(spec) == make_task(spec)
    body = json.loads(json.dumps(make_task(spec)))
    assert body == make_task(spec)
    names = [" ".join(bits) for bits in itertools.product("01", repeat=2)]
    assert all(list(row) == names for row in body["reward"].values())


def change(body: dict, path: tuple, value: object) -> dict:
    """A deep copy with one entry set, or removed if value is None."""
    body = copy.deepcopy(body)
    place = body
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return body


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("beta",), -1.0, r"beta must be > 0, got -1\.0"),
        (("beta",), "one", "beta must be a finite number, got 'one'"),
        (("reward", "0", "1 0"), float("nan"), r"reward\['0'\]\['1 0'\] must be a finite number"),
        (("reward", "0", "1 0"), float("inf"), r"reward\['0'\]\['1 0'\] must be a finite number"),
        (("reward", "0", "1 0"), None, r"reward\['0'\] lacks '1 0'"),
        (("reward", "1"), None, "reward lacks '1'"),
        (("reward", "0", "1 2"), 0.0, r"reward\['0'\] has unknown '1 2'"),
        (("reference", "0", "1 0"), 0.9, r"reference\['0'\] is no distribution"),
        (("extra",), 1, "unknown key 'extra'"),
        (("horizon",), None, "key 'horizon' is missing"),
        (("horizon",), 40, "leaves"),
        (("horizon",), 2.5, r"got 2\.5"),
        (("prompts", "0"), 0.0, "'0'"),
        (("schema",), 2, "schema must be 1"),
        (("prompt_tokens", "0"), "a0", "must be a list of strings"),
    ],
)
def test_bad_tasks_are_refused_by_name(tmp_path: Path, path: tuple, value: object, words: str):
    file = tmp_path / "task.json"
    file.write_text(json.dumps(change(make_task(SMALL), path, value)))
    with pytest.raises(InputError, match=words) as caught:
        load_task(file)
    assert str(file) in str(caught.value)


def test_a_task_with_eos_has_a_number_for_every_completion(tmp_path: Path):
    names = ["a a", "a .", "."]
    body = {
        "schema": 1, "family": "planted", "parameters": {}, "tokens": ["a", "."], "horizon": 2,
        "eos": ".", "beta": 1.0, "prompts": {"x": 1.0}, "prompt_tokens": {"x": ["x"]},
        "reward": {"x": dict(zip(names, (1.0, 2.0, 3.0), strict=True))},
        "reference": {"x": dict(zip(names, (0.5, 0.5, 0.0), strict=True))},
    }  # fmt: skip
    save_task(tmp_path / "task.json", body)
    task = load_task(tmp_path / "task.json")
    for name, reward in body["reward"]["x"].items():
        assert task.reward[0, task.tree.leaf_index(name.split())] == reward
    assert np.isneginf(task.log_reference[0, task.tree.leaf_index(["."])])


def test_unreadable_files_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        load_task(tmp_path / "none.json")
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_task(tmp_path / "task.json")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"degree": 11}, "got 11"),
        ({"beta": 0.0}, r"beta must be > 0, got 0\.0"),
        ({"sharpness": float("nan")}, "sharpness"),
        ({"seed": -1}, "seed"),
        ({"completion_bits": 30}, "17,179,869,184 leaves over all prompts, 137,438,953,472 bytes"),
        ({"completion_bits": 996}, r"about 10\^301 leaves over all prompts, about 10\^302 bytes"),
    ],
)
def test_bad_settings_are_refused(setting: dict, words: str):
    with pytest.raises(InputError, match=words):
        WalshTask(**setting)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--beta", "0", "beta must be > 0"),
        ("--sharpness", "nan", "sharpness must be > 0, got nan"),
        ("--completion-bits", "100000", "100000 completion bits"),
    ],
)
def test_bad_options_exit_with_2(tmp_path: Path, capsys, option: str, value: str, words: str):
    assert main(["task", "--out", str(tmp_path / "task.json"), option, value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "task.json").exists()
