"""Verdicts: supported, contradicted, inconclusive; and the files that carry them."""

import json
from dataclasses import replace

import pytest

from theory.predictions import (
    Measurement,
    Prediction,
    RecordError,
    judge,
    load_measurements,
    load_predictions,
    load_verdicts,
    save,
)

GREATER = Prediction("fig3", "a - b", "greater", 0.1, 0.01, "u", "toy", "walsh", ("x",), "claim")
EQUAL = replace(GREATER, relation="equal", margin=0.02)
MEASURED = Measurement("fig3", "a - b", "u", 0.1, 0.05, 0.15, "t", (0, 1), (0.1, 0.1), "tiny")


def _at(low, high, **changes):
    return replace(MEASURED, low=low, high=high, value=(low + high) / 2, **changes)


@pytest.mark.parametrize(
    ("prediction", "low", "high", "outcome"),
    [
        (GREATER, 0.01, 0.2, "supported"),
        (GREATER, -0.01, 0.2, "inconclusive"),
        (GREATER, 0.0, 0.2, "inconclusive"),
        (GREATER, -0.2, -0.01, "contradicted"),
        (GREATER, 4.2e-25, 4.3e-25, "inconclusive"),  # rounding, however small its spread
        (GREATER, -4.3e-25, -4.2e-25, "inconclusive"),
        (GREATER, 1e-5, 2e-5, "supported"),
        (replace(GREATER, relation="less"), -0.2, -0.01, "supported"),
        (replace(GREATER, relation="less"), 0.01, 0.2, "contradicted"),
        (EQUAL, -0.01, 0.01, "supported"),
        (EQUAL, -0.01, 0.03, "inconclusive"),
        (EQUAL, 0.03, 0.05, "contradicted"),
        (EQUAL, -0.05, 0.05, "inconclusive"),
    ],
)
def test_the_interval_decides(prediction, low, high, outcome):
    assert judge(prediction, _at(low, high)).outcome == outcome


def test_what_would_decide_is_said_only_where_nothing_is_decided():
    open_one = judge(GREATER, _at(-0.1, 0.3, seeds_to_decide=7))
    assert open_one.needs == "about 7 seeds, if the spread stays as it is"
    assert judge(GREATER, _at(0.1, 0.3, seeds_to_decide=2)).needs is None


def test_what_is_rounding_no_seeds_decide():
    verdict = judge(GREATER, _at(1e-9, 2e-9, seeds_to_decide=2))
    assert (verdict.reason, verdict.needs) == ("the interval lies within rounding of 0", None)


def test_prompts_may_decide_as_well_as_seeds():
    open_one = _at(-0.1, 0.3, seeds_to_decide=7, prompts_to_decide=2400)
    needs = "about 7 seeds or about 2400 prompts a seed, if the spread stays as it is"
    assert judge(GREATER, open_one).needs == needs
    prompts_alone = judge(GREATER, _at(-0.1, 0.3, prompts_to_decide=2400))
    assert prompts_alone.needs == "about 2400 prompts a seed, if the spread stays as it is"


def test_a_study_has_its_own_margin_for_no_gap():
    inside = _at(-0.015, 0.015)
    assert judge(EQUAL, inside).outcome == "supported"
    narrow = judge(EQUAL, inside, margin=0.01)
    assert (narrow.outcome, narrow.margin) == ("inconclusive", 0.01)
    assert narrow.reason == "the interval crosses the margin +-0.01"
    assert judge(EQUAL, _at(0.03, 0.05), margin=0.1).outcome == "supported"
    assert judge(GREATER, inside, margin=0.01).margin is None  # a sign needs no margin
    for margin in (0.0, -0.1, float("nan")):
        with pytest.raises(RecordError, match="margin must be > 0"):
            judge(EQUAL, inside, margin=margin)


def test_without_interval_or_measurement_there_is_no_verdict():
    one_seed = replace(MEASURED, low=None, high=None, seeds=(0,), per_seed=(0.1,))
    verdict = judge(GREATER, one_seed)
    assert (verdict.outcome, verdict.needs) == ("inconclusive", "at least 2 seeds")
    assert judge(GREATER, None).outcome == "not measured"


def test_a_model_too_small_is_never_judged():
    for measured in (MEASURED, None):
        verdict = judge(GREATER, measured, too_small="3 parameters")
        assert (verdict.outcome, verdict.reason) == ("model too small to judge", "3 parameters")


def test_quantities_are_not_mixed_up():
    with pytest.raises(RecordError, match="cannot be judged by"):
        judge(GREATER, replace(MEASURED, quantity="b - a"))
    with pytest.raises(RecordError, match="not an interval"):
        judge(GREATER, replace(MEASURED, low=float("nan")))


def test_bad_predictions_are_refused():
    for changes in ({"relation": "bigger"}, {"relation": "equal"}, {"value": float("nan")}):
        with pytest.raises(RecordError):
            replace(GREATER, **changes)


def test_files_give_back_what_was_saved(tmp_path):
    verdicts = (judge(GREATER, MEASURED), judge(EQUAL, None))
    save(tmp_path / "p.json", "predictions", [GREATER, EQUAL], task=None)
    save(tmp_path / "m.json", "measurements", [replace(MEASURED, within=((0.1, 0.2), None))])
    save(tmp_path / "v.json", "verdicts", verdicts)
    assert load_predictions(tmp_path / "p.json") == (GREATER, EQUAL)
    assert load_measurements(tmp_path / "m.json")[0].within == ((0.1, 0.2), None)
    assert load_verdicts(tmp_path / "v.json") == verdicts
    assert not list(tmp_path.glob("*.partial"))


def test_files_of_before_still_read(tmp_path):
    """Without sizes, prompts that would decide, margins and hypotheses."""
    verdict = judge(EQUAL, MEASURED)
    save(tmp_path / "m.json", "measurements", [MEASURED])
    save(tmp_path / "v.json", "verdicts", [verdict])
    for name, key in (("m.json", "measurements"), ("v.json", "verdicts")):
        body = json.loads((tmp_path / name).read_text())
        for row in body[key]:
            for record in (row, row.get("measurement", {})):
                for field in ("size", "prompts_to_decide", "margin", "hypotheses"):
                    record.pop(field, None)
        (tmp_path / name).write_text(json.dumps(body))
    assert load_measurements(tmp_path / "m.json") == (MEASURED,)
    assert load_verdicts(tmp_path / "v.json") == (verdict,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "has no list 'predictions'"),
        ('{"predictions": [3]}', "is not an object"),
        ('{"predictions": [{"figure": "fig3", "colour": 1}]}', "unknown keys"),
        ('{"predictions": [{"figure": "fig3"}]}', "missing"),
    ],
)
def test_unreadable_files_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as error:
        load_predictions(path)
    assert str(path) in str(error.value)


def test_numbers_that_are_none_stay_none(tmp_path):
    path = tmp_path / "p.json"
    save(path, "predictions", [replace(GREATER, value=None, error=None)])
    assert json.loads(path.read_text())["predictions"][0]["value"] is None
    assert load_predictions(path)[0].value is None


@pytest.mark.parametrize(
    ("relation", "over_prompts", "outcome", "needs"),
    [
        ("greater", (0.02, 0.18), "supported", None),
        ("greater", (-0.1, 0.3), "inconclusive", "about 4.0 times the prompts"),
        ("less", (-0.1, 0.3), "inconclusive", "about 4.0 times the prompts"),
        ("equal", (0.06, 0.14), "supported", None),
        ("equal", (0.0, 0.2), "inconclusive", "about 4.0 times the prompts"),
        ("equal", None, "supported", None),
    ],
)
def test_a_verdict_holds_for_other_prompts_too(relation, over_prompts, outcome, needs):
    """Seeds that agree on one set of prompts say nothing of the noise that they share."""
    prediction = replace(GREATER, relation=relation, margin=0.15)
    found = judge(prediction, _at(0.09, 0.11, over_prompts=over_prompts))
    assert found.outcome == outcome
    assert (found.needs or "").startswith(needs or "")
    assert (found.needs is None) == (needs is None)
    if outcome == "inconclusive":
        assert found.reason.startswith("over seeds the interval")
        assert ", over prompts the interval" in found.reason


def test_what_would_decide_names_seeds_and_prompts_where_both_leave_it_open():
    open_one = _at(-0.1, 0.3, seeds_to_decide=9, prompts_to_decide=40)
    assert judge(GREATER, open_one).needs.startswith("about 9 seeds or about 40 prompts a seed")
    both = judge(GREATER, replace(open_one, over_prompts=(-0.1, 0.3)))
    assert both.needs.startswith("about 9 seeds or about 40 prompts a seed")
    assert "; and about 4.0 times the prompts" in both.needs
    one = judge(GREATER, replace(open_one, over_prompts=(0.05, 0.15)))
    assert one.needs == judge(GREATER, open_one).needs
