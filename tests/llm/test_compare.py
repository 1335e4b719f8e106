"""From records to verdicts: every figure, every size, and what would decide. Records by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llm import tables
from llm.__main__ import main
from llm.config import FIGURES, StudyConfig
from llm.errors import InputError
from llm.protocol.figures import MORE_PROMPTS
from llm.protocol.graph import build
from llm.protocol.presets import PRESETS, preset
from llm.records import write_json
from llm.results import arms, hypotheses
from llm.results.arms import of_study, study_config
from llm.results.compare import Report, compare_study, report
from llm.results.compare_text import lines, verdict_lines
from theory.predictions import (
    Measurement,
    Prediction,
    judge,
    load_measurements,
    load_verdicts,
    save,
)

SEEDS = (0, 1, 2)
PROMPTS = [f"test/{i}" for i in range(40)]
PARAMETERS = {"1.4b": 1.4e9, "6.9b": 6.9e9}
RATES = {
    "sft": 0.3,
    "dpo": 0.4,
    "dpo_2x": 0.42,
    "online_dpo_sft": 0.5,
    "online_dpo_dpo": 0.55,
    "online_dpo_sft_more_prompts": 0.5,
}
LOSSES = {"global_rm": 0.6, "local_rm": 0.66, "dpo_rm": 0.68, "global_rm_matched": 0.65}


def _noise(*key: object) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in repr(key)])


class Fake:
    """A study folder written by hand: the real stage graph, made-up numbers."""

    def __init__(self, root: Path, config: StudyConfig, figures: tuple[str, ...]) -> None:
        self.root, self.config, self.figures = root, config, figures
        data = {branch: {} for branch in ("", "two_word")}
        self.stages: dict[str, str] = {}
        for stage in build(figures, SEEDS, config, data):
            place = f"stages/{len(self.stages)}"
            self.stages[stage.id] = place
            folder = root / place
            folder.mkdir(parents=True)
            metrics = self._metrics(stage, folder)
            record = {
                "stage": stage.label,
                "name": stage.name,
                "branch": stage.branch,
                "size": stage.size,
                "seed": stage.seed,
                "metrics": metrics,
                "history": [],
                "wall_seconds": 1.0,
            }
            write_json(folder / "record.json", record)
        self.write()

    def write(self, **changes: Any) -> Path:
        body = {
            "schema": 1,
            "figures": list(self.figures),
            "preset": self.config.preset,
            "rung": "full",
            "config": json.loads(json.dumps(self.config.to_json())),
            "data": {"kind": self.config.kind, "task_sha256": None},
            "seeds": list(SEEDS),
            "stages": self.stages,
            "too_small": None,
        }
        write_json(self.root / "study.json", {**body, **changes})
        return self.root

    def _metrics(self, stage: Any, folder: Path) -> dict[str, Any]:
        name = re.sub("^(eval|judge)_", "", stage.name)
        rng = _noise(stage.id)
        lift = 0.02 * list(self.config.models).index(stage.size or self.config.main)
        if stage.kind == "sft":
            return {"parameters": PARAMETERS[stage.size or self.config.main]}
        if stage.kind == "online_pairs":
            return {"pairs": 230 if name.endswith("more_prompts") else 100}
        if stage.kind == "eval_policy":
            rouge = [{"id": i, "rouge_l": 0.2, "tokens": 20.0} for i in PROMPTS]
            tables.write_rows(folder / "scores.parquet", rouge)
            rows = [
                {"prompt_id": i, "tokens": 20 + int(rng.integers(9)), "reference_tokens": 24}
                for i in PROMPTS
            ]
            tables.write_rows(folder / "samples.parquet", rows)
            return {"rouge_l": 0.2, "mean_tokens": 24.0, "ended_rate": 0.9}
        if stage.kind == "verdicts" and name in RATES:
            rate = RATES[name] if stage.branch != "two_word" else 0.5
            wins = [float(rng.random() < rate + lift) for _ in PROMPTS]
            rows = [
                {"id": i, "sample_index": 0, "win_rate": w}
                for i, w in zip(PROMPTS, wins, strict=True)
            ]
            rows[0]["win_rate"] = None  # an unreadable answer
            tables.write_rows(folder / "scores.parquet", rows)
            return {"win_rate": float(np.mean(wins[1:])), "invalid": 1}
        if stage.kind.startswith("eval_"):
            loss = LOSSES[name] + 0.001 * rng.normal()
            rows = [{"id": i, "val_loss": loss, "val_accuracy": 1 - loss} for i in PROMPTS]
            tables.write_rows(folder / "scores.parquet", rows)
            return {"val_loss": loss, "val_accuracy": 1 - loss}
        if stage.kind == "best_of_n":
            return self._best_of_n(name, lift, folder, rng)
        return {}

    def _best_of_n(
        self, name: str, lift: float, folder: Path, rng: np.random.Generator
    ) -> dict[str, Any]:
        base = 0.3 + lift + 0.1 * ("global" in name) + 0.05 * ("local" in name)
        counts = self.config.evaluation.counts
        value = {n: base + 0.001 * n + 0.001 * rng.normal() for n in counts}
        rows = [{"id": i, "n": n, "win_rate": value[n]} for i in PROMPTS for n in counts]
        tables.write_rows(folder / "scores.parquet", rows)
        return {
            **{f"win_rate@{n}": value[n] for n in counts},
            "win_rate": value[max(counts)],
            "val_accuracy_on_dpo_pairs": base,
        }


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    config = preset("paper", "text")
    models = {size: config.models[size] for size in PARAMETERS}
    evaluation = replace(config.evaluation, counts=(1, 25))
    config = replace(config, models=models, evaluation=evaluation)
    return Fake(tmp_path_factory.mktemp("paper"), config, FIGURES)


def _predicted(figure: str, quantity: str, **changes: Any) -> Prediction:
    made = Prediction(figure, quantity, "greater", 0.1, 0.01, "u", "toy", "walsh", (), "claim")
    return replace(made, **changes)


EQUAL = {"relation": "equal", "margin": 0.5}
N = "best_of_25"
PREDICTED = (
    _predicted("fig3", "win_rate[online_dpo_sft] - win_rate[dpo]"),
    _predicted("fig4", f"win_rate[{N}_largest_rm] - win_rate[{N}_smallest_rm]", **EQUAL),
    _predicted("fig4", f"win_rate[{N}_largest_policy] - win_rate[{N}_smallest_policy]"),
    _predicted("fig5", "gap[fig3] - gap[fig5]"),
    _predicted("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", **EQUAL),
    _predicted("fig6", "rouge_l[online_dpo_dpo] - rouge_l[dpo]", **EQUAL),
    _predicted("fig6", "rouge_l[dpo_2x] - rouge_l[dpo]"),
    _predicted("fig7", "win_rate[online_dpo_sft_more_prompts] - win_rate[online_dpo_sft]", **EQUAL),
    _predicted("fig8", "win_rate[online_dpo_dpo] - win_rate[dpo]"),
    _predicted("fig8", "win_rate[online_dpo_sft] - win_rate[dpo]", **EQUAL),
    _predicted("fig9", "val_loss[local_rm] - val_loss[global_rm]"),
    _predicted("fig9", "val_accuracy[local_rm] - val_accuracy[dpo_rm]"),
    _predicted("fig10", f"win_rate[{N}_sft_global_rm] - win_rate[{N}_sft_local_rm]"),
    _predicted("fig10", f"win_rate[{N}_dpo_local_rm] - win_rate[{N}_dpo_dpo_rm]"),
    _predicted(
        "fig10", "val_accuracy_on_dpo_pairs[global_rm] - val_accuracy_on_dpo_pairs[local_rm]"
    ),
)


@pytest.fixture(scope="module")
def compared(paper: Fake) -> Report:
    path = paper.root / "predictions.json"
    save(path, "predictions", PREDICTED, task=None)
    return compare_study(paper.root, path)


def test_every_prediction_gets_a_verdict_at_every_size(paper: Fake, compared: Report) -> None:
    for prediction in PREDICTED:
        mine = [v for v in compared.verdicts if v.prediction == prediction]
        found = [v.measurement.size for v in mine if v.measurement is not None]
        assert len(found) == len(mine), prediction.quantity
        across = "largest" in prediction.quantity
        assert found == ([None] if across else list(paper.config.sizes(prediction.figure)))
    assert load_verdicts(paper.root / "verdicts.json") == compared.verdicts
    assert load_measurements(paper.root / "measurements.json") == compared.measurements


def _measured(compared: Report, figure: str, quantity: str, size: str | None) -> Any:
    (found,) = (
        m
        for m in compared.measurements
        if (m.figure, m.quantity, m.size) == (figure, quantity, size)
    )
    return found


def _win_rates(paper: Fake, name: str, seed: int) -> float:
    place = paper.stages[f"judge_{name}[{seed}]"]
    return json.loads((paper.root / place / "record.json").read_text())["metrics"]["win_rate"]


def test_a_difference_is_the_judges_seed_by_seed(paper: Fake, compared: Report) -> None:
    found = _measured(compared, "fig3", PREDICTED[0].quantity, "1.4b")
    for seed in SEEDS:
        gap = _win_rates(paper, "online_dpo_sft", seed) - _win_rates(paper, "dpo", seed)
        assert found.per_seed[seed] == pytest.approx(gap)
    assert found.within is not None
    assert all(low < high for low, high in found.within)


def test_the_gap_of_gaps_pairs_seeds_across_branches(paper: Fake, compared: Report) -> None:
    found = _measured(compared, "fig5", "gap[fig3] - gap[fig5]", "1.4b")
    for seed in SEEDS:
        long, short = (
            _win_rates(paper, f"online_dpo_dpo{branch}", seed)
            - _win_rates(paper, f"dpo{branch}", seed)
            for branch in ("", ".two_word")
        )
        assert found.per_seed[seed] == pytest.approx(long - short)
    assert found.within is None  # the prompts are others


def test_fig4_is_the_mean_over_the_other_side(paper: Fake, compared: Report) -> None:
    def cell(rm: str, policy: str, seed: int) -> float:
        at = "" if policy == "1.4b" else f"@{policy}"
        place = paper.stages[f"bon_sft_by_{rm}{at}[{seed}]"]
        record = json.loads((paper.root / place / "record.json").read_text())
        return record["metrics"]["win_rate"]

    sizes = list(PARAMETERS)
    for side in ("rm", "policy"):
        quantity = f"win_rate[{N}_largest_{side}] - win_rate[{N}_smallest_{side}]"
        found = _measured(compared, "fig4", quantity, None)
        for seed in SEEDS:
            gaps = [
                cell("6.9b", s, seed) - cell("1.4b", s, seed)
                if side == "rm"
                else cell(s, "6.9b", seed) - cell(s, "1.4b", seed)
                for s in sizes
            ]
            assert found.per_seed[seed] == pytest.approx(np.mean(gaps))
        assert ("the reward models differ, not the policies" in found.note) == (side == "policy")
    policy = next(v for v in compared.verdicts if "largest_policy" in v.prediction.quantity)
    assert policy.outcome == "supported"


def test_no_gap_is_judged_by_the_studys_margin(paper: Fake, compared: Report) -> None:
    flat = next(v for v in compared.verdicts if "largest_rm" in v.prediction.quantity)
    assert (flat.outcome, flat.margin) == ("supported", paper.config.margins["fig4"])
    two_words = next(
        v
        for v in compared.verdicts
        if v.prediction.figure == "fig5" and v.prediction.relation == "equal"
    )
    assert two_words.margin == 0.01
    assert two_words.outcome == "inconclusive"  # 0.5 would have let it pass
    assert "+-0.01" in two_words.reason
    assert two_words.needs is not None
    greater = next(v for v in compared.verdicts if v.prediction.relation == "greater")
    assert greater.margin is None


def test_no_gap_shows_the_p_of_the_tests_that_its_interval_stands_for(compared: Report) -> None:
    """A 95% interval inside the margin is both one-sided tests at 2.5%: stricter than 5%."""
    equal = [v for v in compared.verdicts if v.prediction.relation == "equal"]
    for verdict in equal:
        row, margin = verdict.measurement, verdict.margin
        assert row is not None
        assert margin is not None
        (line,) = (line for line in verdict_lines([verdict]) if "one-sided t tests" in line)
        p = float(re.findall(r"p = ([\d.e+-]+);", line)[0])
        tests = [
            stats.ttest_1samp(row.per_seed, end, alternative=side)[1]
            for end, side in ((-margin, "greater"), (margin, "less"))
        ]
        if np.std(row.per_seed) > 0:
            assert p == pytest.approx(max(tests), rel=0.05, abs=1e-4)
        assert row.low is not None
        assert row.high is not None
        assert (p < 0.025) == (-margin < row.low and row.high < margin)
    assert {v.outcome for v in equal} >= {"supported", "inconclusive"}
    other = [v for v in compared.verdicts if v.prediction.relation == "greater"]
    assert not any("one-sided t tests" in line for line in verdict_lines(other))


def test_what_would_decide_is_about_the_prediction(compared: Report) -> None:
    opened = [v for v in compared.verdicts if v.outcome == "inconclusive" and v.needs]
    assert opened
    assert any("prompts a seed" in str(v.needs) for v in opened)
    for verdict in opened:
        measured = verdict.measurement
        assert measured is not None
        if measured.seeds_to_decide is not None:
            assert measured.seeds_to_decide > len(SEEDS)
            assert f"about {measured.seeds_to_decide} seeds" in str(verdict.needs)


def test_lengths_stand_beside_every_win_rate(compared: Report) -> None:
    rates = [m for m in compared.measurements if re.fullmatch(r"win_rate\[\w+\]", m.quantity)]
    policies = [m for m in rates if "best_of" not in m.quantity]
    known = {(m.figure, m.quantity, m.size) for m in compared.measurements}
    assert len(policies) == 20
    for row in policies:
        for measure in ("mean_tokens", "length_controlled_win_rate", "rouge_l"):
            assert (row.figure, row.quantity.replace("win_rate", measure), row.size) in known


def test_the_matched_arm_says_what_it_does_to_the_claim(compared: Report) -> None:
    quantity = "val_loss[local_rm] - val_loss[global_rm_matched]"
    found = _measured(compared, "fig9", quantity, "1.4b")
    assert found.value == pytest.approx(0.01, abs=0.005)
    assert "does not rest on" in found.note if found.low > 0 else "may rest" in found.note
    assert not [v for v in compared.verdicts if v.prediction.quantity == quantity]


def test_fig7_reports_how_many_more_pairs(compared: Report) -> None:
    quantity = "win_rate[online_dpo_sft_more_prompts] - win_rate[online_dpo_sft]"
    found = _measured(compared, "fig7", quantity, "1.4b")
    assert found.note == "230 online pairs against 100, 2.30 times as many"


def test_fig7_on_a_task_counts_the_pairs_of_its_own_branch(tmp_path: Path) -> None:
    index = {
        (f"online_pairs_sft{more}", branch, ""): {0: arms._Stage({"pairs": pairs}, tmp_path)}
        for more, branch, pairs in (
            ("", "", 7),
            ("_more_prompts", "", 70),
            ("", "few_prompts", 48),
            ("_more_prompts", "few_prompts", 80),
        )
    }
    notes = arms._notes(preset("tiny", "task"), index)
    assert notes == {"fig7": "80 online pairs against 48, 1.67 times as many"}


def test_hypotheses_are_held_against_the_verdicts(paper: Fake, compared: Report) -> None:
    written = json.loads((paper.root / "hypotheses.json").read_text())
    assert [h["name"] for h in written["hypotheses"]] == ["H1", "H2", "H3", "H4", "H5", "H6"]
    assert written["carry_over"] == hypotheses.CARRY_OVER
    by_name = {h["name"]: h["evidence"] for h in written["hypotheses"]}
    fig10 = [e for e in by_name["H5"] if e["figure"] == "fig10" and e["outcome"] == "supported"]
    assert fig10
    assert {e["says"] for e in fig10} == {"for"}
    for hypothesis in written["hypotheses"]:
        assert hypothesis["contradictable"], hypothesis["name"]
        for each in hypothesis["evidence"]:
            assert (each["says"] is None) or each["outcome"] in ("supported", "contradicted")
    everything = "\n".join(lines(compared))
    for words in ("Fig. 10", "the paper: claim", "would decide", "H6", "never in size"):
        assert words in everything


def test_every_hypothesis_could_be_contradicted_by_what_is_said_of_it() -> None:
    for hypothesis in hypotheses.HYPOTHESES:
        bearing = [b for b in hypotheses.BEARINGS if b.hypothesis == hypothesis.name]
        against = {b.figure for b in bearing if "against" in (b.supported, b.contradicted)}
        assert {figure for figure, _ in hypothesis.contradictable} == against | (
            {"fig3"} if hypothesis.name in ("H1", "H2") else set()
        )
    assert hypotheses.names("fig8", "win_rate[online_dpo_sft] - win_rate[dpo]") == ()


def test_no_gap_is_contradicted_from_above_alone() -> None:
    """That online does worse than offline on two words does not speak against H6."""
    prediction = _predicted("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", **EQUAL)
    for low, high, says in ((0.6, 0.8, "against"), (-0.8, -0.6, None), (-0.1, 0.1, "for")):
        measured = Measurement(
            "fig5", prediction.quantity, "u", (low + high) / 2, low, high, "t", (0, 1), (), "tiny"
        )
        found = hypotheses.evidence([judge(prediction, measured)])
        assert {e.says for e in found if e.hypothesis == "H6"} == {says}


@pytest.mark.parametrize(
    ("figure", "quantity", "value", "said"),
    [
        ("fig4", f"win_rate[{N}_largest_rm] - win_rate[{N}_smallest_rm]", -0.7, True),
        ("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", -0.7, True),
        ("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", 0.7, False),
        ("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", -0.2, False),
        ("fig6", "rouge_l[online_dpo_dpo] - rouge_l[dpo]", -0.7, True),
        ("fig7", f"win_rate[{MORE_PROMPTS}] - win_rate[online_dpo_sft]", -0.7, False),  # "barely"
        ("fig8", "win_rate[online_dpo_sft] - win_rate[dpo]", -0.7, False),  # "roughly matches"
    ],
)
def test_the_papers_one_sided_claim_is_said_to_hold(
    figure: str, quantity: str, value: float, said: bool
) -> None:
    prediction = _predicted(figure, quantity, **EQUAL)
    ends = (value - 0.1, value + 0.1)
    measured = Measurement(figure, quantity, "u", value, *ends, "t", (0, 1), (), "tiny")
    verdict = judge(prediction, measured)
    assert verdict.outcome == ("contradicted" if abs(value) > 0.5 else "supported")
    says = hypotheses.about(verdict)
    assert (says.reason == verdict.reason + hypotheses.NOT_ABOVE) == said
    assert any("one-sided (not above), and holds" in s for s in verdict_lines([says])) == said


def test_the_interval_over_prompts_stands_beside_that_over_seeds(compared: Report) -> None:
    """Named apart: one is decided over seeds, the other over prompts; both lines are short."""
    words = list(lines(compared))
    for verdict in compared.verdicts:
        row = verdict.measurement
        assert row is not None
        if row.over_prompts is None:
            assert "on_dpo_pairs" in row.quantity  # no values of single pairs are kept
            continue
        low, high = row.over_prompts
        want = f"    over prompts [{low:+.4f}, {high:+.4f}], 95% t interval: "
        want += "these models, other prompts"
        assert len(want) <= 80
        if min(abs(low), abs(high)) >= 5e-4:  # else in powers of ten
            at = words.index(want)
            assert words[at - 1].endswith("95% t interval over 3 seeds")


def test_a_model_too_small_is_not_judged(paper: Fake, compared: Report, tmp_path: Path) -> None:
    root = paper.write(too_small="3 parameters", figures=["fig6", "fig9"])
    try:
        found = compare_study(root, root / "predictions.json")
    finally:
        paper.write()
    assert {v.outcome for v in found.verdicts} == {"model too small to judge"}
    assert {e.says for e in found.evidence} == {None}
    assert any("No verdict stands at this scale" in line for line in lines(found))


def test_stages_that_failed_leave_their_arms_unmeasured(paper: Fake) -> None:
    kept = {k: v for k, v in paper.stages.items() if "dpo_2x" not in k and "@6.9b" not in k}
    root = paper.write(stages=kept, figures=["fig4", "fig6"])
    try:
        evidence = of_study(root)
        found = compare_study(root, root / "predictions.json")
    finally:
        paper.write()
    assert ("fig6", "dpo_2x", "1.4b") not in evidence.arms
    assert evidence.order == ()
    outcomes = {v.prediction.quantity: v.outcome for v in found.verdicts}
    assert outcomes["rouge_l[dpo_2x] - rouge_l[dpo]"] == "not measured"
    assert outcomes[f"win_rate[{N}_largest_rm] - win_rate[{N}_smallest_rm]"] == "not measured"


@pytest.mark.parametrize(
    "change", [{"config": {"preset": "x"}}, {"stages": None}, {"figures": 3}, {"seeds": None}]
)
def test_a_study_of_another_version_is_one_error(paper: Fake, change: dict[str, Any]) -> None:
    root = paper.write(**change)
    try:
        with pytest.raises(InputError, match="no study of this version"):
            of_study(root)
    finally:
        paper.write()


def test_every_shipped_configuration_is_read_back() -> None:
    for name in PRESETS:
        for kind in ("task", "text"):
            config = preset(name, kind)
            assert study_config(json.loads(json.dumps(config.to_json()))) == config


def test_the_command_on_a_study(paper: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    root = paper.write(figures=["fig9"])
    line = ["compare", str(root), "--predictions", str(root / "predictions.json")]
    try:
        assert main(line) == 0
        assert "Fig. 9" in capsys.readouterr().out
        assert main([*line, "--json"]) == 0
    finally:
        paper.write()
    body = json.loads(capsys.readouterr().out)
    assert len(body["verdicts"]) == 2 * len(PARAMETERS)
    assert main(["compare", str(paper.root / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("sampled", [True, False])
def test_seeds_that_agree_on_few_prompts_decide_nothing_about_others(sampled: bool) -> None:
    """Every seed gains 3 points, all of it on two prompts of 40: others could turn it."""
    gains = {f"test/{i}": 0.6 if i < 2 else 0.0 for i in range(40)}
    better = {s: {"win_rate": {k: 0.4 + v + 0.001 * s for k, v in gains.items()}} for s in SEEDS}
    worse = {s: {"win_rate": dict.fromkeys(gains, 0.4)} for s in SEEDS}

    def arm(columns: Any) -> arms.Arm:
        means = {
            s: {"win_rate": float(np.mean(list(c["win_rate"].values())))}
            for s, c in columns.items()
        }
        return arms.Arm(means, columns)

    found = {
        (figure, name, ""): arm(columns)
        for figure, up, down in (("fig3", better, worse), ("fig5", worse, worse))
        for name, columns in (("online_dpo_dpo", up), ("online_dpo_sft", up), ("dpo", down))
    }
    evidence = arms.Evidence(("fig3", "fig5"), SEEDS, found, {}, "full", sampled=sampled)
    verdicts = {
        v.prediction.figure: v for v in report(evidence, PREDICTED[:1] + PREDICTED[3:4]).verdicts
    }
    assert {v.outcome for v in verdicts.values()} == {"inconclusive" if sampled else "supported"}
    for verdict in verdicts.values():
        measured = verdict.measurement
        assert measured is not None
        assert measured.low is not None
        assert measured.low > 0
        assert (measured.over_prompts is not None) == sampled
        assert (verdict.needs is not None) == sampled


def test_a_study_of_before_the_packed_forward_is_still_read():
    """It holds settings that are gone, on which no number depended."""
    folder = Path(__file__).parents[2] / "notebooks" / "study"
    assert "accumulation" in json.loads((folder / "study.json").read_text())["config"]["dpo"]
    assert of_study(folder).seeds == (0, 1, 2)
