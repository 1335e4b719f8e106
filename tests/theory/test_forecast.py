"""The toy forecast: its parts against plain computations, its file against the shipped one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory.__main__ import main
from theory.errors import InputError
from theory.forecast import forecast, read_task, summary
from theory.operators import temper, win_rate
from theory.predictions import load_predictions
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tasks import Task, WalshTask, joint_features, load_task, make_task, save_task
from theory.toy import REWARD_MODELS, Pairs, Toy, ToyConfig, ToyResult, simulate, task_world
from theory.twins import FIGURES

SHIPPED = Path(__file__).parents[2] / "llm" / "data" / "shipped"


def toy_of(task: Task, config: ToyConfig | None = None) -> Toy:
    return Toy(task_world(task), ToyConfig() if config is None else config)


@pytest.fixture
def small(tmp_path: Path) -> Task:
    save_task(tmp_path / "small.json", make_task(WalshTask(prompt_bits=1, completion_bits=2)))
    return load_task(tmp_path / "small.json")


def test_the_shipped_predictions_come_from_the_default_command(tmp_path: Path):
    out = tmp_path / "predictions.json"
    assert main(["forecast", "fig3", "fig9", "--out", str(out)]) == 0
    shipped = load_predictions(SHIPPED / "predictions.json")
    again = [row for row in shipped if row.figure in ("fig3", "fig9")]
    for new, old in zip(load_predictions(out), again, strict=True):
        assert new.value == pytest.approx(old.value, abs=1e-6)
        assert new.error == pytest.approx(old.error, abs=1e-6)
        assert replace(new, value=0.0, error=0.0) == replace(old, value=0.0, error=0.0)
    assert len(again) == 7
    header = {**json.loads(out.read_text()), "predictions": None}
    assert header["task"] == load_task(SHIPPED / "task.json").sha256
    body = json.loads((SHIPPED / "predictions.json").read_text())
    assert {**body, "predictions": None} == header  # one task, one set of settings for all figures
    assert list(dict.fromkeys(row.figure for row in shipped)) == list(FIGURES)


@pytest.mark.parametrize("name", ["fig8", "fig10"])
def test_other_shipped_values_are_the_twins(name: str):
    """Figs. 4 to 7 take minutes: `make bridge` makes them again."""
    task, config, figure = read_task(None), ToyConfig(), FIGURES[name]
    twin = figure.read(task, config, figure.simulate(task, config, lambda done: None))
    shipped = [row for row in load_predictions(SHIPPED / "predictions.json") if row.figure == name]
    for new, old in zip(twin.quantities, shipped, strict=True):
        assert (new.name, new.relation, new.margin) == (old.quantity, old.relation, old.margin)
        assert new.value == pytest.approx(old.value, abs=1e-6)


def test_a_lookup_table_has_one_class_in_two_coordinates(tmp_path: Path):
    """Weights of each prompt, or joint ones of every degree: the same fitted rewards."""
    spec = WalshTask(prompt_bits=2, completion_bits=2, degree=4)
    save_task(tmp_path / "task.json", make_task(spec))
    task = load_task(tmp_path / "task.json")
    assert task.family == "lookup"
    toy = toy_of(task, ToyConfig(n_pairs=50))
    assert toy.features.shape == (4, 3)
    pairs = toy.preferences(jax.random.key(1))
    joint = toy.global_reward(pairs, jnp.asarray(joint_features(2, 2, 4)))
    np.testing.assert_allclose(toy.global_reward(pairs), joint, atol=1e-9)


def test_the_sft_policy_is_the_reference(small: Task):
    toy = toy_of(small)
    np.testing.assert_allclose(toy.log_probs(toy.sft), small.log_reference, atol=1e-12)
    cold = temper(small.tree, policy_from_leaves(small.tree, small.log_reference), 0.01)
    expected = win_rate(
        small.tree, leaf_log_probs(small.tree, cold), small.log_reference, small.reward
    )
    assert float(toy.judge(toy.sft)) == pytest.approx(expected, abs=1e-12)


def test_losses_at_the_start(small: Task):
    toy = toy_of(small)
    pairs = Pairs(jnp.array([0, 1]), jnp.array([1, 2]), jnp.array([0, 3]), jnp.ones(2))
    for tau in (1.0, 0.1):
        assert float(toy.dpo_loss(pairs, toy.sft, tau)(toy.sft)) == pytest.approx(np.log(2.0))
    margin = small.log_reference[[0, 1], [1, 2]] - small.log_reference[[0, 1], [0, 3]]
    expected = np.mean(np.log1p(np.exp(-margin / 2)))
    assert float(toy.local_loss(pairs)(toy.sft)) == pytest.approx(expected)


def test_validation_is_least_at_the_gold_reward_and_blind_to_prompt_shifts(small: Task):
    toy = toy_of(small)
    loss, accuracy = toy.validate(toy.reward)
    shifted = toy.validate(toy.reward + jnp.array([[3.0], [-2.0]]))
    assert float(shifted[0]) == pytest.approx(float(loss), abs=1e-12)
    draw = np.random.default_rng(0)
    for _ in range(20):
        other = toy.validate(toy.reward + jnp.asarray(draw.normal(size=toy.reward.shape)))
        assert float(other[0]) >= float(loss)
        assert float(other[1]) <= float(accuracy) + 1e-12
    doubled = jax.jit(lambda r: toy.validate(r / 6.0))(toy.reward)  # fused: s - s may not be 0
    assert float(doubled[1]) == pytest.approx(float(accuracy), abs=1e-12)
    flat = toy.validate(jnp.zeros_like(toy.reward))
    assert [float(v) for v in flat] == pytest.approx([np.log(2.0), 0.5])


def test_online_pairs_are_dropped_when_all_samples_agree(small: Task):
    toy = toy_of(small, ToyConfig(n_pairs=16, steps=2))
    pairs = toy.preferences(jax.random.key(0))
    certain = jnp.zeros_like(toy.sft).at[:, :, 0].set(1e4)
    logits, lost = toy.online(jax.random.key(1), pairs.prompt, toy.reward, certain)
    assert float(lost) == 1.0
    np.testing.assert_array_equal(logits, certain)
    moved, lost = toy.online(jax.random.key(1), pairs.prompt, toy.reward, jnp.zeros_like(toy.sft))
    assert float(lost) < 0.5
    assert float(jnp.abs(moved).max()) > 0


def test_results_do_not_depend_on_how_replicates_are_batched(small: Task):
    few = simulate(small, ToyConfig(n_pairs=32, steps=3, replicates=3))
    again = simulate(small, ToyConfig(n_pairs=32, steps=3, replicates=3))
    for name, values in few.win_rate.items():
        assert values.shape == (3,)
        np.testing.assert_array_equal(values, again.win_rate[name])
    assert np.std(few.win_rate["dpo"]) > 0


def result_of(fig3: float) -> ToyResult:
    """Made-up runs in which online DPO lies `fig3` above DPO."""
    noise = np.array([-0.01, 0.01, 0.0, 0.0])
    wins = {"sft": 0.5 + noise * 0, "dpo": 0.6 + noise * 0, "dpo_2x": 0.6 + noise * 0}
    online = 0.6 + fig3 + noise
    models: dict[str, np.ndarray] = dict.fromkeys(REWARD_MODELS, 0.5 + noise)
    lost = {"online_dpo_sft": noise * 0}
    return ToyResult(
        wins | {"online_dpo_sft": online, "online_dpo_dpo": online}, models, models, lost
    )


@pytest.mark.parametrize(
    ("gap", "words", "verdict"),
    [
        (-0.2, "The twin contradicts this", "no"),
        (0.001, "The twin cannot tell", "undecided"),
        (-0.001, "The twin cannot tell", "undecided"),
        (0.2, "Toy means", "yes"),
    ],
)
def test_the_note_says_where_the_twin_disagrees(
    small: Task, gap: float, words: str, verdict: str, monkeypatch
):
    monkeypatch.setattr("theory.toy.simulate", lambda *_: result_of(gap))
    found = forecast(small, ("fig3",), ToyConfig())
    assert summary(found) == {"fig3": verdict}
    assert [row.prediction.relation for row in found] == ["greater"] * 3
    for row in found:
        prediction = row.prediction
        assert row.reproduced == verdict
        assert prediction.value == pytest.approx(gap)
        assert prediction.error == pytest.approx(np.std([-0.01, 0.01, 0, 0], ddof=1) / 2)
        assert prediction.note is not None
        assert prediction.note.startswith(words)


def test_figures_of_one_run_share_it(small: Task, monkeypatch):
    calls = []
    monkeypatch.setattr("theory.toy.simulate", lambda *_: calls.append(1) or result_of(0.1))
    seen = []
    found = forecast(
        small, ("fig9", "fig3", "fig9"), ToyConfig(), lambda what, done: seen.append((what, done))
    )
    assert [row.prediction.figure for row in found] == ["fig9"] * 4 + ["fig3"] * 3
    assert len(calls) == 1
    assert dict(seen) == {"fig9": 64, "fig3": 64}
    assert summary(found) == {"fig9": "undecided", "fig3": "yes"}


def test_without_a_task_the_shipped_one_is_meant():
    shipped = load_task(SHIPPED / "task.json")
    assert read_task(None).sha256 == shipped.sha256
    assert read_task(SHIPPED / "task.json").sha256 == shipped.sha256


def test_bad_input_exits_with_2(tmp_path: Path, capsys):
    out = ["--out", str(tmp_path / "p.json")]
    task = ["--task", str(SHIPPED / "task.json")]
    for arguments, words in (
        (["forecast", "fig2", *task, *out], "fig2"),
        (["forecast", "fig3", *task, *out, "--replicates", "1"], "replicates"),
        (["forecast", "fig3", "--task", str(tmp_path / "none.json"), *out], "none.json"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_a_task_without_walsh_parameters_is_refused(small: Task):
    with pytest.raises(InputError, match="planted"):
        simulate(replace(small, family="planted"), ToyConfig())
    with pytest.raises(InputError, match="parameters"):
        simulate(replace(small, parameters={}), ToyConfig())


def test_tokens_must_be_bits(tmp_path: Path):
    """Four tokens at horizon 2 make as many completions as four bits, but they are not bits."""
    body = make_task(WalshTask(prompt_bits=1, completion_bits=4))
    body |= {"tokens": ["p", "q", "r", "s"], "horizon": 2}
    names = [f"{a} {b}" for a in "pqrs" for b in "pqrs"]
    for key in ("reward", "reference"):
        body[key] = {
            prompt: dict(zip(names, row.values(), strict=True)) for prompt, row in body[key].items()
        }
    save_task(tmp_path / "task.json", body)
    with pytest.raises(InputError, match="4 tokens at horizon 2"):
        simulate(load_task(tmp_path / "task.json"), ToyConfig())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_bits": 60}, r"2\^60 prompts; the task has 2"),
        ({"prompt_bits": 2}, r"2\^2 prompts; the task has 2"),
        ({"completion_bits": 3}, "completion_bits 3"),
        ({"degree": 10**9}, "degree 1000000000 of 3 bits"),
        ({"degree": "2"}, "need degree, a whole number >= 1, got '2'"),
    ],
)
def test_parameters_that_are_not_the_tasks_are_refused(small: Task, change: dict, words: str):
    with pytest.raises(InputError, match=words):
        simulate(replace(small, parameters=small.parameters | change), ToyConfig())


def test_the_assumption_on_the_gold_reward_is_checked(small: Task, monkeypatch):
    monkeypatch.setattr("theory.toy.simulate", lambda *_: result_of(0.2))
    shifted = replace(small, reward=small.reward + np.array([[3.0], [-1.0]]))
    for task, words in (
        (small, "its class contains the gold"),
        (shifted, "its class contains the gold"),
        (replace(small, reward=small.reward**3), "its class does not contain the gold"),
    ):
        found = forecast(task, ("fig3",), ToyConfig())
        assert any(words in text for text in found[0].prediction.assumptions)
