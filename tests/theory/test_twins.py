"""The figures' twins at tiny size: the same bytes twice, and what must change their verdicts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from theory.errors import InputError
from theory.families import Rouge
from theory.forecast import forecast, read_task
from theory.operators import best_of_n, temper, win_rate
from theory.predictions import Prediction
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tasks import WalshTask
from theory.toy import Toy, ToyConfig, make_world, walsh_worlds
from theory.twins import FIGURES, Quantity, fig4, fig5, fig6, fig7, fig8, fig10

pytestmark = pytest.mark.usefixtures("quick_compiler")
TINY = ToyConfig(n_pairs=48, steps=4, replicates=3)
SPEC = WalshTask(prompt_bits=1, completion_bits=2)
MIXED = WalshTask(prompt_bits=2, completion_bits=2)
ROUGE = Rouge(words=2, reference=2, prompts=2, horizon=2)
SIMULATE = {
    "fig4": lambda config: fig4.simulate(task(), config, silent, sizes=SIZES),
    "fig5": lambda config: fig5.simulate(
        task(), config, silent, spec=SPEC, setting=fig5.Short(completion_bits=2, token_bits=2)
    ),
    "fig6": lambda config: fig6.simulate(task(), config, silent, setting=fig6.Setting(ROUGE)),
    "fig7": lambda config: fig7.simulate(
        task(), config, silent, setting=fig7.Prompts(MIXED, paired=1, added=2)
    ),
    "fig8": lambda config: fig8.simulate(task(), config, silent),
    "fig10": lambda config: fig10.simulate(task(), config, silent),
}
SIZES = fig4.Sizes(MIXED, policies=(1, 2), reward_models=(1, 3), n_sft=512, sft_steps=64)


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory):
    """Programs are compiled once and without optimisation: at this size that is all the time."""
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    settings = {"jax_disable_most_optimizations": True, **cache}
    before = {name: getattr(jax.config, name) for name in cache}
    before["jax_disable_most_optimizations"] = False
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


def silent(done: int) -> None:
    pass


@lru_cache(maxsize=1)
def task():
    return read_task(None)


def quantities(name: str, config: ToyConfig) -> tuple[Quantity, ...]:
    return FIGURES[name].read(task(), config, SIMULATE[name](config)).quantities


@pytest.mark.parametrize("name", SIMULATE)
def test_a_twin_gives_the_same_bytes_twice_and_others_for_another_seed(name):
    first, again = quantities(name, TINY), quantities(name, TINY)
    for a, b in zip(first, again, strict=True):
        assert a.values.shape == (3,)
        assert np.isfinite(a.values).all()
        assert a.values.tobytes() == b.values.tobytes()
        assert (a.margin is not None) == (a.relation == "equal")
    if name in ("fig4", "fig10"):
        other = quantities(name, replace(TINY, seed=1))
        assert any((a.values != b.values).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("relation", "mean", "verdict"),
    [
        ("greater", 0.1, "yes"),
        ("greater", -0.1, "no"),
        ("greater", 0.005, "undecided"),
        ("less", 0.1, "no"),
        ("less", -0.1, "yes"),
        ("equal", 0.0, "yes"),
        ("equal", 0.045, "undecided"),
        ("equal", 0.055, "undecided"),
        ("equal", -0.1, "no"),
    ],
)
def test_verdicts_at_two_standard_errors(relation, mean, verdict):
    values = mean + np.array([-0.01, 0.01, 0.0, 0.0])  # standard error 0.0041
    margin = 0.05 if relation == "equal" else None
    quantity = Quantity("a - b", values, "points", {}, relation, margin)
    assert quantity.reproduced == verdict


def test_a_constant_difference_of_0_is_equal_and_greater_than_nothing():
    zeros = np.zeros(4)
    assert Quantity("a - b", zeros, "points", {}, "equal", 0.01).reproduced == "yes"
    assert Quantity("a - b", zeros, "points", {}).reproduced == "undecided"


def test_fig4_is_not_flat_where_the_smallest_reward_model_is_too_small():
    config = ToyConfig(n_pairs=1024, replicates=8)
    rm, _ = quantities("fig4", config)
    assert rm.value > fig4.MARGIN
    assert rm.reproduced == "no"
    graded = fig4.graded((2, 2), 2, 100.0)
    assert sorted(set(np.abs(graded).ravel())) == pytest.approx([0.1, 1.0])


def test_fig5_with_the_long_horizon_on_both_sides_differs_by_0():
    same = fig5.simulate(task(), TINY, silent, spec=SPEC, setting=fig5.Short(2, 1))
    first, _ = fig5.read(task(), TINY, same).quantities
    np.testing.assert_array_equal(first.values, 0.0)
    assert first.reproduced == "undecided"
    other, _ = quantities("fig5", TINY)
    assert np.abs(other.values).max() > 0


def test_fig6_with_a_simple_verifier_and_pairs_of_fig3_gains_online():
    config = ToyConfig(replicates=8)
    setting = fig6.Setting(walsh=WalshTask(), best_and_worst=False)
    broken = fig6.read(task(), config, fig6.simulate(task(), config, silent, setting=setting))
    assert broken.quantities[0].reproduced == "no"
    assert broken.quantities[0].value > fig6.MARGIN


def test_fig6_measures_rouge_l_itself():
    world = fig6.rouge_world(ROUGE)
    best = world.reward.argmax(axis=1)
    said = [world.tree.leaf_tokens(int(leaf)) for leaf in best]
    toy = Toy(world, TINY)
    cold = temper(world.tree, policy_from_leaves(world.tree, masked(world)), TINY.decode)
    p = np.exp(leaf_log_probs(world.tree, cold))
    expected = 0.0
    for x, leaf in np.ndindex(p.shape):
        if p[x, leaf] > 0:
            expected += 0.5 * p[x, leaf] * f1(world.tree.leaf_tokens(leaf), said[x])
    assert float(fig6.expected_score(toy, toy.sft)) == pytest.approx(expected, abs=1e-12)


def masked(world):
    return np.where(world.tree.leaf_mask, world.log_reference, -np.inf)


def f1(a, b):
    """ROUGE-L F1 of two completions, EOS not counted, by recursion."""

    def lcs(s, t):
        if not s or not t:
            return 0
        if s[0] == t[0]:
            return 1 + lcs(s[1:], t[1:])
        return max(lcs(s[1:], t), lcs(s, t[1:]))

    first, second = ([w for w in words if w != "."] for words in (a, b))
    return 2 * lcs(first, second) / (len(first) + len(second))


def test_fig7_without_added_prompts_is_no_change_at_all():
    setting = fig7.Prompts(MIXED, paired=2, added=0)
    result = fig7.simulate(task(), TINY, silent, setting=setting)
    (quantity,) = fig7.read(task(), TINY, result).quantities
    np.testing.assert_array_equal(quantity.values, 0.0)
    assert (result.win_rate["online_dpo_sft"] != result.win_rate["sft"]).any()


def test_fig7_needs_prompts_to_test_on():
    with pytest.raises(InputError, match="2 paired and 2 added of 4 prompts"):
        fig7.Prompts(MIXED, paired=2, added=2)


def test_fig8_learns_nothing_from_data_without_any_width():
    result = fig8.simulate(task(), TINY, silent, temperature=1e-4)
    np.testing.assert_array_equal(result.dropped["data"], 1.0)
    np.testing.assert_array_equal(result.win_rate["dpo"], result.win_rate["sft"])


def test_fig10_starts_at_the_samples_own_win_rate():
    curves = fig10.simulate(task(), TINY, silent).win_rate
    one = curves[..., fig10.COUNTS.index(1)]
    np.testing.assert_allclose(one, one[:, :, :1] + np.zeros((1, 1, 3)), atol=1e-12)
    tree = task().tree
    cold = temper(tree, policy_from_leaves(tree, task().log_reference), TINY.temperature)
    expected = win_rate(tree, leaf_log_probs(tree, cold), task().log_reference, task().reward)
    np.testing.assert_allclose(one[:, 0], expected, atol=1e-12)


def test_forecast_runs_other_settings_and_controls_where_they_belong(monkeypatch):
    """Others only where a claim is not reproduced; controls always; both in the note."""

    def run(value):
        def simulate(_, config, report):
            report(config.replicates)
            return value + 0.01 * np.arange(config.replicates)

        return simulate

    def read(_, config, values):
        return fig10.Twin((Quantity("a - b", values, "points", {"a": 1.0}),), "walsh", ("x",))

    for value, others in ((0.1, 0), (-0.2, 1)):
        figure = replace(
            FIGURES["fig4"], simulate=run(value), read=read,
            others={"more data": run(0.2)}, controls={"a twin's twin": run(0.3)},
        )  # fmt: skip
        monkeypatch.setitem(FIGURES, "fig4", figure)
        (row,) = forecast(task(), ("fig4",), ToyConfig(replicates=8))
        assert isinstance(row.prediction, Prediction)
        note = row.prediction.note or ""
        assert note.count("With more data: +0.2050 (0.0050), the claim holds.") == others
        assert "With a twin's twin: +0.3050 (0.0050), the claim holds." in note
        assert note.startswith("The twin contradicts this") == (value < 0)


def test_every_figure_from_3_to_10_has_a_twin():
    assert list(FIGURES) == [f"fig{n}" for n in range(3, 11)]
    for figure in FIGURES.values():
        assert figure.claim.endswith(".")
    assert all(m.MARGIN > 0 for m in (fig4, fig5, fig6, fig7, fig8))
    world = walsh_worlds(SPEC, 1)[0]
    again = make_world(world.tree, world.reward, world.log_reference, world.features)
    np.testing.assert_array_equal(again.sft, world.sft)
    exact = best_of_n(world.tree, world.log_reference, world.reward, 1)
    np.testing.assert_allclose(exact, world.log_reference, atol=1e-12)


def test_what_was_chosen_after_a_first_look_is_said():
    result = SIMULATE["fig7"](TINY)
    assert any(
        "after a first look" in words for words in fig7.read(task(), TINY, result).assumptions
    )
    graded = [words for words in FIGURES["fig4"].others if "for each further degree" in words]
    assert len(graded) == 1
    assert "after a first look" in graded[0]
