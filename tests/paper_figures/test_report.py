"""The page as text, and the two commands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paper_figures.__main__ import main
from paper_figures.evidence import absences, flatten
from paper_figures.records import load_folder
from paper_figures.report import check_summary, render, verdict_summary
from theory.predictions import load_predictions, save

Edit = Callable[[Path, Callable[[Any], None]], None]


@pytest.fixture(scope="module")
def page(shared_demo: Path) -> str:
    """The rendered page of a whole demo folder."""
    return render(load_folder(shared_demo))


def test_the_page_is_the_same_bytes_every_time_and_asks_for_nothing_outside(
    page: str, shared_demo: Path
) -> None:
    assert page == render(load_folder(shared_demo))
    outside = re.findall(r'(?:src|href)="(?!#|data:,)([^"]+)"', page)
    assert outside == []
    assert "default-src 'none'" in page


def test_text_of_samples_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_numbers_in_prose_follow_the_records(page: str) -> None:
    assert "7 predictions: 3 supported, 2 inconclusive, 1 contradicted, 1 not measured." in page
    assert "1,500 examples for SFT, 6,000 preference pairs" in page
    assert "2 of 2 claims hold; 2 of 2 broken twins fail, as they must." in page
    assert "Online DPO beats offline DPO." in page
    assert "the toy rung itself gives \u22120.010" in page
    assert "the toy rung has the other sign here" in page
    assert "Everything that was measured" in page
    assert "8 min 1 s" in page
    assert "<details open><summary>3 open</summary>" in page
    assert page.count("contradicted; measured") == 1


@pytest.fixture
def checks_alone(demo: Path) -> Path:
    """A demo folder without the sweep and the study."""
    for name in ("sweep", "study"):
        shutil.rmtree(demo / name)
    return demo


def test_a_twin_that_holds_is_shouted_about(checks_alone: Path, edit_json: Edit) -> None:
    demo = checks_alone
    edit_json(demo / "check.json", lambda body: body[0]["twins"][0].update(holds=True))
    folder = load_folder(demo)
    assert "not to be trusted" in check_summary(folder.checks or ())
    assert "holds, although it must not" in render(folder)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("sweep", "no sweep in this folder"),
        ("check.json", "no theorem checks in this folder"),
        ("study", "no language-model study in this folder"),
        ("study/data_card.json", "no data_card.json in the study"),
        ("study/verdicts.json", "no verdicts.json in the study"),
        ("study/measurements.json", "no measurements.json in the study"),
    ],
)
def test_what_is_missing_is_named(demo: Path, gone: str, said: str) -> None:
    path = demo / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(said in what for what, _ in absences(load_folder(demo)))


def test_without_verdicts_every_prediction_stands_as_not_measured(demo: Path) -> None:
    shutil.rmtree(demo / "study")
    page = render(load_folder(demo))
    assert "no language-model study in this folder" in page
    assert page.count('data-outcome="not measured"') == 2 * 7  # the table, and the figures


def test_a_study_without_predictions_still_shows_what_was_measured(
    demo: Path, edit_json: Edit
) -> None:
    edit_json(demo / "study" / "verdicts.json", lambda body: body["verdicts"].clear())
    (demo / "predictions.json").unlink()
    page = render(load_folder(demo))
    assert "No verdict and no prediction in this folder." in page
    assert 'id="measured"' in page
    assert 'id="picture-fig3"' in page


def test_a_model_too_small_is_said_once_and_in_every_row(real_study: Path) -> None:
    page = render(load_folder(real_study))
    assert page.count('data-outcome="model too small to judge"') == 2 * 7
    assert 'id="scale-note"' in page
    assert "123,456 parameters trained on 1,500 posts" in page


def test_summaries_of_nothing() -> None:
    assert verdict_summary(()) == ""


def test_flatten() -> None:
    body = {"a": {"b": 1, "c": {}}, "d": [1, 2.5], "e": [{"f": None}], "g": True}
    assert flatten(body) == [
        ("a / b", "1"), ("a / c", "—"), ("d", "1, 2.5"), ("e / 1 / f", "—"), ("g", "yes"),
    ]  # fmt: skip


def test_the_command_writes_the_page_and_prints_the_table(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(demo)]) == 0
    printed = capsys.readouterr().out
    assert f"report: {demo / 'report.html'}" in printed
    assert "contradicted" in printed
    assert (demo / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(demo.glob("*.partial"))


def test_the_command_refuses_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "looked for check.json" in printed.err
    assert not (tmp_path / "report.html").exists()


def test_draw_writes_every_figure(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert main(["draw", str(demo), "--out", str(out)]) == 0
    names = sorted(path.name for path in out.iterdir())
    sweep = ("", "-complexity", "-efficiency", "-gap", "-other", "-other-more", "-pairs")
    stems = ("curves", "fig3", "fig9", *(f"sweep{part}" for part in sweep))
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))


def test_the_sweep_alone_is_drawn_from_its_folder(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    assert main(["sweep", str(demo / "sweep"), "--out", str(out), "--overview"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["sweep.png", "sweep.svg"]
    first = (out / "sweep.svg").read_bytes()
    assert main(["sweep", str(demo / "sweep"), "--out", str(out), "--overview"]) == 0
    assert (out / "sweep.svg").read_bytes() == first
    assert "8 cells in 2 families" in capsys.readouterr().out


def test_an_old_sweep_is_one_clear_error(
    demo: Path, edit_json: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(demo / "sweep" / "grid.json", lambda body: body.update(version=1))
    assert main(["sweep", str(demo / "sweep"), "--out", str(tmp_path)]) == 2
    assert main(["report", str(demo)]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 2
    assert error.count("a sweep of version 1; this reads version 2") == 2


def test_the_sweep_is_grouped_and_its_sentences_are_generated(page: str) -> None:
    headings = [
        "The short answer", "KL against the number of pairs", "How many times the pairs",
        "When the gap opens and closes", "Verifier against generator", "Other measures",
    ]  # fmt: skip
    places = [page.index(f"<h3>{heading}</h3>") for heading in headings]
    assert places == sorted(places)
    assert "8 cells in 2 families" in page
    assert "a gap of +0.300" in page
    assert "7 more panels: other measures" in page


def test_several_twins_of_a_claim_are_folded_but_one_that_holds_is_not(
    checks_alone: Path, edit_json: Edit
) -> None:
    demo = checks_alone
    twin = {"assumption": "another", "violation": 0.5, "holds": False}

    def three(body: Any) -> None:
        body[0]["twins"] += [twin, {**twin, "assumption": "a third", "holds": True}]

    edit_json(demo / "check.json", three)
    page = render(load_folder(demo))
    assert "<summary>2 twins fail as they must</summary>" in page
    cell = page[page.index('<td data-label="Broken twin">') :]
    assert cell.index("a third: 0.500 nats, holds, although") < cell.index("<details")


def test_predictions_of_other_figures_stand_as_not_measured(checks_alone: Path) -> None:
    demo = checks_alone
    rows = load_predictions(demo / "predictions.json")
    other = [
        replace(
            rows[0], figure=figure, relation="equal", margin=0.02, note="the twin contradicts this",
            quantity=f"win_rate_at_25[{figure}_a, b] - win_rate[c] / 2",
        )
        for figure in ("fig4", "fig5", "fig6", "fig7", "fig8", "fig10")
    ]  # fmt: skip
    save(demo / "predictions.json", "predictions", [*rows, *other])
    page = render(load_folder(demo))
    assert page.count('data-outcome="not measured"') == 2 * (7 + 6)
    assert all(f"<div>Fig. {n}</div>" in page for n in (4, 5, 6, 7, 8, 10))
    assert "13 predictions: 13 not measured" in page


def test_draw_with_nothing_to_draw_ends_with_1(demo: Path, tmp_path: Path) -> None:
    for name in ("sweep", "study"):
        shutil.rmtree(demo / name)
    (demo / "predictions.json").unlink()
    assert main(["draw", str(demo), "--out", str(tmp_path / "figures")]) == 1
