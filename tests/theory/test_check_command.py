"""`python -m theory check`: its table, its file, its exit codes."""

from __future__ import annotations

import json

import pytest

from theory.certificate import Twin
from theory.claims import lemma_2_1
from theory.claims.base import Claim
from theory.commands import check
from theory.commands.check import Check
from theory.errors import InputError

KEYS = [
    "claim",
    "statement",
    "holds",
    "lhs",
    "rhs",
    "slack",
    "trials",
    "nonvacuous",
    "worst_residual",
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
    assert [set(twin) for twin in record["twins"]] == [{"assumption", "violation", "holds"}] * 2
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
    assert "lemma-2.1 DOES NOT HOLD at: a random policy" in capsys.readouterr().out
    (record,) = json.loads(path.read_text())
    assert record["holds"] is False
    assert record["worst_residual"] is None  # NaN is no number


def test_a_twin_that_does_not_fail_exits_1(monkeypatch, capsys):
    claim = lemma_2_1.CLAIM
    tame = Claim(claim.name, claim.statement, claim.trial, lambda: (Twin("nothing", 0.0),), 1)
    monkeypatch.setattr("theory.claims.CLAIMS", (tame,))
    assert Check().run() == 1
    assert "DOES NOT FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"claim": "theorem-9"}, "unknown claim 'theorem-9'; known: lemma-2.1"),
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"seed": -3}, "--seed must be at least 0, got -3"),
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
