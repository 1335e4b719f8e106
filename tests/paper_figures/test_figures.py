"""Levels, Figs. 3 and 9, curves and the files they become."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paper_figures.curves import curves_pictures, logp_sentences, series
from paper_figures.evidence import length_rows, sample_cards
from paper_figures.fig9 import fig9
from paper_figures.levels import POLICIES, REWARD_MODELS, evaluation_stages, levels, stages_of
from paper_figures.policy_figures import policy_figure
from paper_figures.records import load_folder
from paper_figures.style import INK, panel_svg, picture_files


def test_levels_come_from_the_stage_records(demo: Path) -> None:
    study = load_folder(demo).study
    assert study is not None
    by_name = {level.name: level for level in levels(study, "win_rate", POLICIES, "fig3")}
    assert list(by_name) == list(POLICIES)
    assert by_name["dpo"].per_seed == pytest.approx((0.60, 0.61, 0.62))
    assert by_name["online_dpo_dpo"].mean == pytest.approx(0.64)
    assert levels(study, "val_accuracy", REWARD_MODELS, "fig9")[2].mean == pytest.approx(0.62)
    assert levels(study, "no_such_metric", POLICIES, "fig3") == ()


def test_a_method_takes_its_own_training_and_evaluation_alone(demo: Path) -> None:
    study = load_folder(demo).study
    assert study is not None
    assert {stage.stage for stage in stages_of(study, "dpo")} == {"dpo", "eval_dpo"}
    assert {stage.stage for stage in stages_of(study, "sft")} == {"sft", "eval_sft"}
    assert {stage.stage for stage in stages_of(study, "dpo_rm")} == {"eval_dpo_rm"}
    assert [stage.name for stage in evaluation_stages(study, "dpo")] == [
        f"eval_dpo[{seed}]" for seed in range(3)
    ]


def test_lengths_and_samples_come_from_the_evaluation(demo: Path) -> None:
    study = load_folder(demo).study
    assert study is not None
    rows = length_rows(study)
    assert len(rows) == 1 + 4 * 3
    assert {(row.samples, row.tokens, row.ended) for row in rows} == {("3", "8.0", "66.7 %")}
    cards = sample_cards(study)
    assert len(cards) == 3
    assert [policy for policy, _, _ in cards[0].outputs][-1] == "Online DPO (DPO)"
    assert all(text != "only for pairs" for card in cards for _, text, _ in card.outputs)
    assert cards[1].outputs[0][2] == "8 tokens, cut at the limit; score 0.500"


def test_figures_3_and_9(demo: Path) -> None:
    folder = load_folder(demo)
    verdicts = folder.verdicts or ()
    third, ninth = policy_figure("fig3", folder.study, verdicts), fig9(folder.study, verdicts)
    assert third is not None
    assert [panel.name for panel in third.panels] == ["fig3-levels", "fig3-differences"]
    assert "Online DPO (SFT) \u2212 DPO: supported" in third.panels[1].alt
    assert ninth is not None
    assert len(ninth.panels) == 4
    assert policy_figure("fig3", None, ()) is None
    assert fig9(None, ()) is None


def test_rouge_l_stands_where_no_win_rate_was_measured(
    demo: Path, edit_json: Callable[[Path, Callable[[Any], None]], None]
) -> None:
    for record in (demo / "study" / "stages").glob("eval_*/record.json"):
        edit_json(record, lambda body: body.update(metrics={"rouge_l": 0.2}))
    study = load_folder(demo).study
    assert study is not None
    picture = policy_figure("fig3", study, ())
    assert picture is not None
    assert [panel.name for panel in picture.panels] == ["fig3-levels"]
    assert picture.panels[0].alt.startswith("ROUGE-L of each policy")
    assert length_rows(study)[0].rouge_l == "0.200"
    assert length_rows(study)[0].win_rate == "\N{EM DASH}"


def test_predictions_alone_make_a_figure(demo: Path) -> None:
    third = policy_figure("fig3", None, load_folder(demo).verdicts or ())
    assert third is not None
    assert [panel.name for panel in third.panels] == ["fig3-differences"]


def test_svg_is_well_formed_deterministic_and_has_its_own_ids(demo: Path) -> None:
    folder = load_folder(demo)
    picture = fig9(folder.study, folder.verdicts or ())
    assert picture is not None
    pages = [panel_svg(panel) for panel in picture.panels]
    assert pages == [panel_svg(panel) for panel in picture.panels]
    ids: list[str] = []
    for page in pages:
        root = ElementTree.fromstring(page)
        ids += [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert INK not in page
        assert "currentColor" in page
    assert len(ids) == len(set(ids))


def test_picture_files_are_the_same_bytes_every_time(demo: Path) -> None:
    folder = load_folder(demo)
    picture = policy_figure("fig3", folder.study, folder.verdicts or ())
    assert picture is not None
    first = picture_files(picture)
    assert first == picture_files(picture)
    assert first["png"].startswith(b"\x89PNG")
    assert b"<svg" in first["svg"]


def test_curves_and_series(demo: Path) -> None:
    study = load_folder(demo).study
    assert study is not None
    (picture,) = curves_pictures(study)
    assert len(picture.panels) == 2
    history = ({"step": 0, "loss": 1.0}, {"step": 5, "eval_loss": 2.0}, {"step": 9, "loss": None})
    assert series(history, ("loss",)) == ([0.0], [1.0])
    assert series(history, ("absent", "eval_loss")) == ([5.0], [2.0])
    assert series(history, ("absent",)) == ([], [])


def test_log_probs_of_both_completions(
    demo: Path, edit_json: Callable[[Path, Callable[[Any], None]], None]
) -> None:
    falls = [{"step": s, "chosen_logp": -3.0 - s, "rejected_logp": -4.0 - 2 * s} for s in (0, 1)]
    rises = [{"step": s, "chosen_logp": -3.0 + s, "rejected_logp": -4.0} for s in (0, 1)]
    for seed, history in enumerate((falls, rises, falls)):
        record = next((demo / "study" / "stages").glob(f"dpo-{seed}-*")) / "record.json"
        edit_json(record, lambda body, history=history: body.update(history=history))
    study = load_folder(demo).study
    assert study is not None
    (sentence,) = logp_sentences(study)
    assert sentence.startswith("DPO: the log-probability of preferred completions fell in 2 of 3")
    picture = curves_pictures(study)[-1]
    assert picture.name == "logps"
    (panel,) = picture.panels
    assert "dpo[0] from -3.00 to -4.00; dpo[1] from -3.00 to -2.00" in panel.alt
    assert panel_svg(panel)
