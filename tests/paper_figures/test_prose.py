"""Numbers and words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paper_figures import prose
from theory.predictions import Measurement, Prediction, Verdict, judge


def prediction(**changes: object) -> Prediction:
    """A prediction with a few fields changed."""
    fields: dict = {
        "figure": "fig3", "quantity": "win_rate[online_dpo_sft] - win_rate[dpo]",
        "relation": "greater", "value": 0.1, "error": 0.02, "unit": "points", "rung": "toy",
        "family": "walsh", "assumptions": (), "paper_claim": "Online wins.",
    }  # fmt: skip
    return Prediction(**{**fields, **changes})


def measurement(low: float, high: float) -> Measurement:
    """A measurement of the same quantity with the interval [low, high]."""
    middle = (low + high) / 2
    return Measurement(
        "fig3", "win_rate[online_dpo_sft] - win_rate[dpo]", "points", middle, low, high,
        "95% t interval over seeds", (0, 1), (low, high), "tiny", seeds_to_decide=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.0, "0.000"),
        (-0.25, "\u22120.250"),
        (0.00001, "1.0e\u221205"),
        (12.3456, "12.346"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert prose.number(value) == text


def test_a_small_number_is_never_printed_as_zero() -> None:
    assert prose.number(3.1e-14, 1) == "3.1e\u221214"
    assert prose.number(-4e-4, sign=True) == "\u22124.0e\u221204"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (2.25, "2.2 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (7260, "2 h 1 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert prose.duration(seconds) == text


def test_quantities() -> None:
    assert prose.parse_quantity("kl") is None
    assert prose.parse_quantity("a[x] - b[y]") is None
    assert prose.parse_quantity("win_rate[dpo]") == prose.Quantity("win_rate", "dpo", None)
    words = prose.quantity_words("val_loss[dpo_rm] - val_loss[local_rm]")
    assert words == "validation loss: DPO RM \u2212 Local RM"


def test_listing_and_plural() -> None:
    assert prose.listing(["a"]) == "a"
    assert prose.listing(["a", "b", "c"]) == "a, b and c"
    assert prose.plural(1, "seed") == "1 seed"
    assert prose.plural(1500, "pair") == "1,500 pairs"


def test_disagreements_name_only_what_is_not_supported() -> None:
    good = judge(prediction(), measurement(0.01, 0.2))
    bad = judge(prediction(), measurement(-0.2, -0.1))
    open_ = judge(prediction(), measurement(-0.1, 0.2))
    lines = prose.disagreements((good, open_, bad))
    assert len(lines) == 2
    assert "contradicted" in lines[0]
    assert "\u22120.150 [\u22120.200, \u22120.100]" in lines[0]
    assert "inconclusive" in lines[1]
    assert "about 9 seeds" in lines[1]
    assert prose.disagreements((good,)) == []


def test_models_too_small_share_one_sentence() -> None:
    verdict = judge(prediction(), measurement(0.1, 0.2), too_small="2 layers")
    lines = prose.disagreements((verdict, verdict))
    assert lines == ["2 predictions: model too small to judge. Reason: 2 layers"]


def test_notes_and_doubts() -> None:
    assert prose.prediction_notes([prediction()]) == []
    (line,) = prose.prediction_notes([prediction(note="means 0.86 and 0.84")])
    assert line.endswith("means 0.86 and 0.84")
    assert prose.doubts([prediction(), prediction(value=None, error=None)]) == []
    (doubt,) = prose.doubts([prediction(value=-0.2)])
    assert "the toy rung itself gives \u22120.200" in doubt
    assert len(prose.doubts([prediction(relation="less")])) == 1
    assert prose.doubts([prediction(relation="equal", margin=0.2)]) == []


def test_an_error_shows_at_least_one_digit() -> None:
    assert prose.plus_minus(0.0741, 0.00039) == "+0.0741 ± 0.0004"
    assert prose.plus_minus(-0.5, None) == "\u22120.500"
    assert prose.plus_minus(0.5, 0.2) == "+0.500 ± 0.200"


def test_a_row_without_a_measurement_or_a_value() -> None:
    row = prose.verdict_row(
        Verdict(prediction(value=None, error=None), None, "not measured", "none")
    )
    assert (row.predicted, row.measured, row.interval, row.needs) == ("—", "—", "", "—")
    equal = prediction(relation="equal", margin=0.01)
    assert prose.claim_words(equal).endswith("= 0 within 0.01")


def test_the_interval_over_prompts_is_a_column_of_its_own() -> None:
    plain = measurement(0.1, 0.2)
    other = replace(plain, over_prompts=(-0.01, 0.31))
    assert [prose.measured_row(row).prompts for row in (plain, other)] == [
        "—",
        "[\u22120.010, +0.310]",
    ]
