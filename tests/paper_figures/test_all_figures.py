"""Figs. 3 to 10 out of one study: what is drawn, from which branch and size, and what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paper_figures.compare import differences_panels
from paper_figures.curves import curves_pictures
from paper_figures.errors import InputError
from paper_figures.evidence import absences, length_rows, sample_cards
from paper_figures.fig4 import fig4
from paper_figures.fig9 import fig9, matched_sentences
from paper_figures.fig10 import curve, fig10
from paper_figures.levels import ARMS, levels, per_seed, score_name, sizes, sizes_of
from paper_figures.policy_figures import policy_figure
from paper_figures.prose import quantity_words, verdict_row
from paper_figures.records import Study, load_folder
from paper_figures.report import render
from paper_figures.sections import FIGURES, figure_pictures, figure_sections
from paper_figures.style import label
from theory.predictions import Measurement, load_measurements, save

Edit = Callable[[Path, Callable[[Any], None]], None]


@pytest.fixture(scope="module")
def study(whole_study: Path) -> Study:
    """Three sizes, three seeds, all branches."""
    found = load_folder(whole_study).study
    assert found is not None
    return found


def without_measurements(study: Study) -> Study:
    """The same study, of which only the stages' own records are there."""
    return replace(study, measurements=None, verdicts=None)


def test_every_figure_is_drawn_in_the_papers_order(study: Study) -> None:
    verdicts = study.verdicts or ()
    pictures = figure_pictures(study, verdicts)
    assert [picture.name for picture in pictures] == list(FIGURES)
    names = [panel.name for picture in pictures for panel in picture.panels]
    assert len(names) == len(set(names))
    sections = figure_sections(study, verdicts, {picture.name for picture in pictures})
    assert sum(len(section.lines) for section in sections) == len(verdicts)
    ninth = next(section for section in sections if section.name == "fig9")
    assert len(ninth.others) == 3
    assert ninth.others[1] == (
        "validation loss: Local RM \u2212 Global RM, matched, 2.8b: "
        "+0.020 [+0.008, +0.032] nats per pair"
    )
    assert all(section.claims == (f"The claim of {section.name}, in the paper's words.",)
               for section in sections)  # fmt: skip


def test_a_figure_that_nobody_asked_for_is_not_half_drawn(study: Study) -> None:
    """Fig. 7's plain arm is one of Fig. 3's."""
    only = replace(study, figures=("fig3",))
    assert [picture.name for picture in figure_pictures(only, ())] == ["fig3"]


def test_arms_are_read_on_the_branch_of_their_figure(study: Study) -> None:
    levels_of = {
        figure: {level.name: level.mean for level in levels(study, metric, ARMS[figure], figure)}
        for figure, metric in (
            ("fig3", "win_rate"),
            ("fig5", "win_rate"),
            ("fig6", "rouge_l"),
            ("fig8", "win_rate"),
        )
    }
    assert [found["dpo"] for found in levels_of.values()] == pytest.approx([0.45, 0.5, 0.27, 0.4])
    assert list(levels_of["fig8"]) == list(ARMS["fig8"])
    assert score_name(study, "fig6") == "rouge_l"
    assert score_name(study, "fig5") == "win_rate"


def test_sizes_are_ordered_by_their_parameters_and_share_one_axis(study: Study) -> None:
    assert sizes(study) == ("", "2.8b", "6.9b")
    swapped = tuple(
        replace(stage, metrics={"parameters": 1e11}) if stage.name == "sft" else stage
        for stage in study.stages
    )
    assert sizes(replace(study, stages=swapped)) == ("2.8b", "6.9b", "")
    picture = policy_figure("fig3", study, study.verdicts or ())
    assert picture is not None
    shown = [panel.name for panel in picture.panels]
    assert shown[:3] == ["fig3-levels", "fig3-levels-2.8b", "fig3-levels-6.9b"]
    assert len(shown) == 6
    larger = levels(study, "win_rate", ("dpo",), "fig3", "6.9b")[0]
    assert larger.mean > levels(study, "win_rate", ("dpo",), "fig3")[0].mean + 0.1


def test_a_figure_is_shown_at_the_sizes_that_it_is_measured_at(study: Study) -> None:
    picture = policy_figure("fig7", study, study.verdicts or ())
    assert picture is not None  # the larger sizes have its SFT and online policies, from Fig. 3
    assert [panel.name for panel in picture.panels] == ["fig7-levels", "fig7-differences"]
    elsewhere = replace(study, config={"models": study.config["models"]})
    assert sizes_of(elsewhere, "fig9") == ("", "2.8b", "6.9b")
    assert sizes_of(elsewhere, "fig7") == ("",)


def test_lengths_and_the_length_controlled_rate_stand_beside_a_win_rate(study: Study) -> None:
    (level,) = levels(study, "win_rate", ("dpo",), "fig3")
    assert level.tokens == pytest.approx(31.0)
    assert level.controlled == pytest.approx(0.43)
    (level,) = levels(study, "rouge_l", ("dpo",), "fig6")
    assert level.controlled is None
    rows = length_rows(study)
    assert {(row.policy, row.where) for row in rows} >= {("SFT", ""), ("DPO", "SFT samples")}
    main = next(row for row in rows if (row.policy, row.where, row.seed) == ("DPO", "", "1"))
    assert (main.win_rate, main.controlled, main.rouge_l) == ("0.450", "0.430", "0.250")


def test_the_judge_is_believed_before_the_evaluation_itself(study: Study) -> None:
    told = tuple(
        replace(stage, metrics=stage.metrics | {"win_rate": 0.99})
        if stage.base == "eval_dpo"
        else stage
        for stage in study.stages
    )
    assert per_seed(replace(study, stages=told[::-1]), "win_rate", "dpo")[1] == pytest.approx(0.45)


def test_figure_4_crosses_the_sizes(study: Study) -> None:
    picture = fig4(study, study.verdicts or ())
    assert picture is not None
    assert [panel.name for panel in picture.panels] == ["fig4-rm", "fig4-policy",
                                                        "fig4-differences"]  # fmt: skip
    assert "policy 6.9b by RM 1.4b 0.788" in picture.panels[0].alt
    assert fig4(None, ()) is None
    one = replace(study, config={"models": {"1.4b": {}}}, verdicts=None)
    alone = fig4(one, ())
    assert alone is not None
    assert "policy main by RM main" in alone.panels[0].alt


def test_figure_5_shows_both_gaps_with_or_without_measurements(study: Study) -> None:
    for some in (study, without_measurements(study)):
        picture = policy_figure("fig5", some, some.verdicts or ())
        assert picture is not None
        gaps = next(panel for panel in picture.panels if panel.name == "fig5-gaps")
        assert "Fig. 3 0.120; Fig. 5 0.005" in gaps.alt


def test_figure_9_shows_what_the_same_hyperparameters_change(study: Study) -> None:
    picture = fig9(study, study.verdicts or ())
    assert picture is not None
    assert "Global RM, matched 0.62" in fig9_levels(picture.panels[0].alt)
    sentences = matched_sentences(study)
    assert len(sentences) == 3
    assert "others, 2.8b: +0.020 [+0.008, +0.032] nats per pair." in sentences[1]


def fig9_levels(alt: str) -> str:
    """The alternative text without the decimals that seeds add."""
    return alt.replace("0.624", "0.62")


def test_figure_10_has_a_point_for_every_recorded_n(study: Study) -> None:
    found = curve(study, "sft_global_rm", "win_rate")
    assert list(found) == [1, 2, 5, 10, 25]
    assert found[25].low is not None
    assert found[25].low < found[25].mean < (found[25].high or 0)
    assert found[1].mean == pytest.approx(0.304)
    assert curve(study, "sft_global_rm", "win_rate", "9b") == {}
    picture = fig10(study, study.verdicts or ())
    assert picture is not None
    shown = [panel.name for panel in picture.panels]
    assert shown[:2] == ["fig10-sft", "fig10-dpo"]
    assert "fig10-differences-2.8b-2" in shown  # another unit has a panel of its own


def test_verdicts_of_every_size_stand_apart(study: Study) -> None:
    verdicts = study.verdicts or ()
    panels = differences_panels(
        "fig3", study, [v for v in verdicts if v.prediction.figure == "fig3"]
    )
    assert [panel.name for panel in panels] == [
        "fig3-differences", "fig3-differences-2.8b", "fig3-differences-6.9b",
    ]  # fmt: skip
    assert {verdict_row(v).size for v in verdicts} == {"", "1.4b", "2.8b", "6.9b"}


def test_a_margin_of_the_study_is_what_is_shown(study: Study) -> None:
    verdict = next(v for v in study.verdicts or () if v.prediction.relation == "equal")
    assert verdict_row(verdict).claim.endswith("= 0 within 0.02")
    assert verdict_row(replace(verdict, margin=0.05)).claim.endswith("= 0 within 0.05")


def test_words_of_best_of_n_and_of_gaps() -> None:
    assert quantity_words("gap[fig3] - gap[fig5]") == "gap: Fig. 3 \u2212 Fig. 5"
    rm = "win_rate[best_of_25_sft_global_rm] - win_rate[best_of_25_sft_dpo_rm]"
    assert quantity_words(rm) == "win rate: SFT samples (N = 25): Global RM \u2212 DPO RM"
    size = "win_rate[best_of_5_largest_rm] - win_rate[best_of_5_smallest_rm]"
    assert quantity_words(size) == "win rate: largest \u2212 smallest RM (N = 5)"
    more = "win_rate[online_dpo_sft_more_prompts] - win_rate[online_dpo_sft]"
    assert quantity_words(more) == "win rate: Online DPO (SFT): more \u2212 same prompts"
    assert label("bon_dpo_local_rm") == "best of N DPO samples by Local RM"
    assert label("best_of_25_largest_policy") == "best of 25 with the largest policy"


def test_samples_are_those_of_one_branch_and_size(study: Study) -> None:
    (card,) = sample_cards(study)
    assert [text for _, text, _ in card.outputs] == ["of eval_sft", "of eval_dpo"]
    assert sample_cards(replace(study, stages=())) == []


def test_curves_of_other_branches_and_sizes_stand_apart(study: Study) -> None:
    main, more = curves_pictures(study)
    assert [panel.name for panel in main.panels] == ["curve-sft"]
    assert [panel.name for panel in more.panels] == ["curve-sft@2.8b", "curve-sft@6.9b"]
    assert more.panels[0].alt.startswith("Training loss of SFT (2.8b)")


def test_the_report_goes_figure_by_figure(whole_page: Path) -> None:
    page = whole_page.read_text(encoding="utf-8")
    places = [page.index(f'<section id="{figure}">') for figure in FIGURES]
    assert places == sorted(places)
    assert "order and the sign of a difference, never its size" in page
    assert "<summary>2 more training curves" in page
    assert page.count('id="lengths"') == 1
    assert "<summary>36 verdicts</summary>" in page
    assert '<a href="#fig6">Fig. 6: ROUGE-L as the reward</a>: 1 supported, 1 inconclusive' in page


def test_a_figure_that_was_asked_for_and_holds_nothing_is_named(
    whole_study: Path, tmp_path: Path, edit_json: Edit
) -> None:
    root = tmp_path / "study"
    shutil.copytree(whole_study, root)
    edit_json(root / "verdicts.json", lambda body: body["verdicts"].clear())
    edit_json(root / "study.json", lambda body: body["stages"].clear())
    edit_json(root / "measurements.json", lambda body: body["measurements"].clear())
    folder = load_folder(root)
    assert "Nothing in this folder fills Fig. 7." in render(folder)
    assert any("Online DPO (SFT), more prompts" in what for what, _ in absences(folder))


def test_hypotheses_are_named_where_a_verdict_names_them(demo: Path, edit_json: Edit) -> None:
    shutil.rmtree(demo / "sweep")
    root = demo / "study"

    def name(body: Any) -> None:
        body["verdicts"][0].update(hypotheses=["H1", "H6"])
        body["verdicts"][0]["measurement"].update(size="1.4b")

    edit_json(root / "verdicts.json", name)
    seen = {"hypothesis": "H6", "figure": "fig3", "size": "1.4b", "outcome": "supported"}
    seen |= {"quantity": "win_rate[online_dpo_sft] - win_rate[dpo]", "says": "for"}
    words = {
        "name": "H6", "words": "To verify is simpler than to generate.", "tested": ["fig4"],
        "contradictable": [["fig3", "no gap at all"], ["fig5", "a gap as large"]],
        "evidence": [seen, seen | {"outcome": "inconclusive", "says": None}],
    }  # fmt: skip
    body = {"carry_over": "Signs carry over, sizes never.", "hypotheses": [words]}
    (root / "hypotheses.json").write_text(json.dumps(body), encoding="utf-8")
    page = render(load_folder(demo))
    assert "<b>H6</b>: To verify is simpler than to generate." in page
    assert "How it bears on it: no gap at all." in page
    assert "<b>H1</b></p>" in page
    assert "1.4b; H1, H6" in page
    assert "Signs carry over, sizes never." in page
    assert "Verdicts: for it 1, against it 0, neither 1." in page
    assert "Fig. 3 at 1.4b, win rate: Online DPO (SFT) \u2212 DPO: supported, for it" in page
    edit_json(root / "hypotheses.json", lambda b: b["hypotheses"][0].pop("words"))
    with pytest.raises(InputError, match=r"hypotheses\.json: hypothesis 0: key 'words'"):
        load_folder(demo)


def best_of(figure: str, arm: str, value: float, size: str) -> Measurement:
    """The win rate of one best-of-N, as a comparison writes it."""
    return Measurement(
        figure, f"win_rate[{arm}]", "points", value, value - 0.01, value + 0.01, "95% t interval",
        (0, 1), (value - 0.001, value + 0.001), "full", size=size,
    )  # fmt: skip


def test_measurements_made_elsewhere_are_drawn_without_a_study(
    whole_study: Path, tmp_path: Path
) -> None:
    for name in ("measurements.json", "verdicts.json"):
        shutil.copy(whole_study / name, tmp_path / name)
    rows = [*load_measurements(tmp_path / "measurements.json")]
    rows += [
        best_of("fig10", f"best_of_{n}_sft_{rm}", 0.1 * n, "2.8b")
        for n in (5, 1)
        for rm in ("global_rm", "local_rm")
    ]
    rows += [best_of("fig4", f"best_of_{n}_by_2.8b", 0.01 * n, "6.9b") for n in (5, 25)]
    save(tmp_path / "measurements.json", "measurements", rows)
    folder = load_folder(tmp_path)
    study = folder.study
    assert study is not None
    assert study.stages == ()
    assert sizes(study) == ("", "2.8b", "6.9b")
    found = {picture.name: picture for picture in figure_pictures(study, study.verdicts or ())}
    assert list(found) == list(FIGURES)
    assert "policy 6.9b by RM 2.8b 0.250" in found["fig4"].panels[0].alt
    assert list(curve(study, "sft_local_rm", "win_rate", "2.8b")) == [1, 5]
    assert found["fig10"].panels[0].name == "fig10-sft-2.8b"
