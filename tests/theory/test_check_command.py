"""`python -m theory check`: its table, its file, its exit codes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from theory.__main__ import main
from theory.certificate import SLACK, Certificate, Twin
from theory.claims import CLAIMS, lemma_2_1
from theory.claims.base import ClaimResult
from theory.claims.replay import twin_file
from theory.commands import check
from theory.commands.check import Check
from theory.errors import InputError
from theory.fit import ConvergenceError

KEYS = [
    "claim",
    "seed",
    "arithmetic",
    "statement",
    "holds",
    "lhs",
    "rhs",
    "slack",
    "trials",
    "nonvacuous",
    "drawn",
    "worst_residual",
    "worst_part",
    "worst_trial",
    "twins",
]


def test_a_claim_that_holds_exits_0_and_is_recorded(tmp_path, capsys):
    path = tmp_path / "made" / "check.json"
    assert Check(claim="lemma-2.1", trials=3, seed=4, json=path).run() == 0
    (record,) = json.loads(path.read_text())
    assert list(record) == KEYS
    assert record["claim"] == "lemma-2.1"
    assert record["holds"] is True
    assert record["trials"] == record["nonvacuous"] == 3
    assert record["worst_residual"] == abs(record["lhs"] - record["rhs"]) <= record["slack"]
    keys = {"name", "assumption", "violation", "holds"}
    assert [set(twin) for twin in record["twins"]] == [keys] * 3
    assert record["drawn"]["trees"] == 3
    assert not any(twin["holds"] for twin in record["twins"])
    assert [file.name for file in path.parent.iterdir()] == ["check.json"]
    shown = capsys.readouterr()
    assert "lemma-2.1" in shown.out
    assert "fails, as it must" in shown.out
    assert "check" in shown.err  # the progress bar, kept off the table


def test_a_broken_claim_exits_1_and_says_where(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(lemma_2_1, "kl", lambda *args: float("nan"))
    path = tmp_path / "check.json"
    assert Check(claim="lemma-2.1", trials=1, json=path).run() == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "lemma-2.1 DOES NOT HOLD in trial 0 of seed 0, at: a random policy" in shown
    assert "--claim lemma-2.1 --seed 0 --trial 0" in shown
    (record,) = json.loads(path.read_text())
    assert record["holds"] is False
    assert record["worst_residual"] is None  # NaN is no number


def test_a_twin_that_does_not_fail_exits_1(monkeypatch, capsys):
    claim = lemma_2_1.CLAIM
    tame = replace(claim.broken[0], violation=lambda replay: 0.0)
    monkeypatch.setattr("theory.claims.CLAIMS", (replace(claim, broken=(tame,), trials=1),))
    assert Check().run() == 1
    assert "DOES NOT FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"claim": "theorem-9"}, "unknown claim 'theorem-9'; known: lemma-2.1"),
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"seed": -3}, "--seed must be at least 0, got -3"),
        ({"trial": -1, "claim": "lemma-2.1"}, "--trial must be at least 0, got -1"),
        ({"trial": 0}, "--trial runs one trial of one claim: say which with --claim"),
        ({"trial": 0, "claim": "lemma-2.1", "json": Path("x.json")}, "leave it out with --trial"),
        ({"replay": Path("nowhere.json")}, "nowhere.json"),
        ({"trial": 1, "trials": 5, "claim": "lemma-2.1"}, "one trial: leave out --trials 5"),
        *(
            ({"replay": Path("x.json"), name: value}, f"leave out --{name} {value}")
            for name, value in {
                "claim": "lemma-2.1",
                "trials": 5,
                "seed": 1,
                "arithmetic": "rational",
                "json": Path("y.json"),
            }.items()
        ),
        ({"replay": Path("x.json"), "claim": "lemma-2.1", "trial": 0}, "leave out --claim"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setattr(check, "_progress", lambda: pytest.fail("work has started"))
    with pytest.raises(InputError, match=message):
        Check(**arguments).run()


def test_a_file_that_cannot_be_written_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "_progress", lambda: pytest.fail("work has started"))
    with pytest.raises(InputError, match="is a folder"):
        Check(json=tmp_path).run()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"check\.json"):
        Check(json=tmp_path / "file" / "check.json").run()


def test_a_record_says_how_to_run_it_again(tmp_path):
    path = tmp_path / "check.json"
    Check(claim="lemma-2.1", trials=2, seed=9, arithmetic="rational", json=path).run()
    (record,) = json.loads(path.read_text())
    assert (record["seed"], record["arithmetic"], record["trials"]) == (9, "rational", 2)


def test_fewer_than_half_of_the_trials_with_something_to_say_exit_1(monkeypatch, capsys):
    def trial(rng, index):
        return replace(lemma_2_1.trial(rng, index), vacuous=index != 0)

    claim = replace(lemma_2_1.CLAIM, trial=trial)
    monkeypatch.setattr("theory.claims.CLAIMS", (claim,))
    assert Check(trials=2).run() == 0
    assert Check(trials=3).run() == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "lemma-2.1 SAYS TOO LITTLE: 1 of 3 trials were not vacuous" in shown


def test_the_table_fits_80_columns_whole():
    names = [claim.name for claim in CLAIMS]
    claims = [replace(lemma_2_1.CLAIM, name=name) for name in names]
    worst = Certificate("", -0.000012345, -0.000012345, SLACK)
    twins = (Twin("", 0.01234), Twin("", 12.345)) * 5
    results = [ClaimResult(claim, 200, 200, worst, 0, twins) for claim in claims]
    text = io.StringIO()
    Console(file=text, width=80).print(check._table(results), crop=False)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text.getvalue()
    assert max(len(line.rstrip()) for line in text.getvalue().splitlines()) <= 80
    assert text.getvalue().count("200/200") == len(names)


# --- one trial, one twin -------------------------------------------------------------------------


def test_one_trial_shows_each_certificate(capsys, monkeypatch):
    assert main(["check", "--claim", "lemma-2.1", "--trial", "2", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lemma-2.1, seed 5, trial 2"
    assert len(lines) == 5
    assert all(line.startswith("  holds  ") for line in lines[1:])
    monkeypatch.setattr(lemma_2_1, "kl", lambda *args: float("nan"))
    assert main(["check", "--claim", "lemma-2.1", "--trial", "2", "--seed", "5"]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_a_fit_that_does_not_end_exits_1_and_names_the_trial(capsys, monkeypatch):
    def stuck(rng, index):
        raise ConvergenceError("gradient 1.00e-03 is left, limit 1.00e-13")

    claim = replace(lemma_2_1.CLAIM, trial=stuck)
    monkeypatch.setattr("theory.claims.CLAIMS", (claim,))
    assert Check(trials=2, seed=7).run() == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "lemma-2.1 DOES NOT HOLD in trial 0 of seed 7, at: no optimum: gradient 1.00e-03" in shown
    )


def test_a_twin_is_replayed_from_its_file(capsys):
    path = twin_file("lemma-2.1", "other-beta")
    assert main(["check", "--replay", str(path)]) == 0
    assert "lemma-2.1 twin other-beta fails, as it must (0.314 nats)" in capsys.readouterr().out
    assert main(["check", "--replay", str(twin_file("lemma-2.1", "exact-beta-ignored"))]) == 0


def test_a_twin_that_holds_again_exits_1(capsys, tmp_path):
    body = json.loads(twin_file("lemma-2.1", "other-beta").read_text())
    body["numbers"]["target_beta"] = 0.5
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(body))
    assert main(["check", "--replay", str(path)]) == 1
    assert "DOES NOT FAIL by 0.01 nats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("twin", "absent", "has no twin 'absent'"), ("claim", "absent", "unknown claim 'absent'")],
)
def test_a_file_of_no_known_twin_exits_2(key, value, message, capsys, tmp_path):
    body = json.loads(twin_file("lemma-2.1", "other-beta").read_text())
    body[key] = value
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(body))
    assert main(["check", "--replay", str(path)]) == 2
    assert message in capsys.readouterr().err
