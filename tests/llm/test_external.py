"""Tables measured elsewhere: what they say, that sources agree, and every way to be wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.__main__ import main
from llm.errors import InputError
from llm.results.compare import report
from llm.results.compare_text import lines
from llm.results.external import of_tables, read
from theory.predictions import Prediction, save

ARMS = {"dpo": 0.3, "online_dpo_sft": 0.9, "dpo_2x": 0.3, "online_dpo_dpo": 0.95}


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _where(arm: str, seed: int, prompt: int) -> dict[str, Any]:
    return {"figure": "fig3", "arm": arm, "seed": seed, "prompt_id": f"t3_{prompt}"}


def _verdicts(orders: tuple[str, ...] = ("ab", "ba")) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for arm, rate in ARMS.items():
        for seed in range(3):
            for prompt in range(60):
                won = rng.random() < rate
                for order in orders:
                    preferred = "A" if won == (order == "ab") else "B"
                    rows.append(
                        {**_where(arm, seed, prompt), "order": order, "preferred": preferred}
                    )
    return rows


def _samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            **_where(arm, seed, prompt),
            "sample": " ".join(["word"] * int(rng.integers(1, 9))),
            "reference": "word and word, five words",
        }
        for arm in ARMS
        for seed in range(3)
        for prompt in range(60)
    ]


def _prediction(quantity: str) -> Prediction:
    return Prediction("fig3", quantity, "greater", 0.1, 0.01, "u", "toy", "walsh", (), "claim")


QUANTITY = "win_rate[online_dpo_sft] - win_rate[dpo]"


def test_verdicts_and_samples_become_measurements_and_a_verdict(tmp_path: Path) -> None:
    tables = (
        _parquet(tmp_path / "verdicts.parquet", _verdicts()),
        _csv(tmp_path / "samples.csv", _samples()),
    )
    found = report(of_tables(tables), [_prediction(QUANTITY)])
    measured = {m.quantity: m for m in found.measurements}
    rows = _verdicts(("ab",))
    wins = {
        (arm, seed): np.mean(
            [r["preferred"] == "A" for r in rows if (r["arm"], r["seed"]) == (arm, seed)]
        )
        for arm in ARMS
        for seed in range(3)
    }
    for seed in range(3):
        gap = wins["online_dpo_sft", seed] - wins["dpo", seed]
        assert measured[QUANTITY].per_seed[seed] == pytest.approx(gap)
    assert found.verdicts[0].outcome == "supported"
    assert found.verdicts[0].hypotheses == ("H1", "H2", "H6")
    assert measured["mean_words[dpo]"].unit == "words"
    assert 1 < (measured["mean_words[dpo]"].value or 0) < 9
    assert measured["length_controlled_win_rate[dpo]"].within is not None
    assert measured["rouge_l[dpo]"].value is not None
    assert measured[QUANTITY].rung == "elsewhere"


def test_scores_say_the_same_as_the_verdicts_they_are_made_of(tmp_path: Path) -> None:
    verdicts = _csv(tmp_path / "verdicts.csv", _verdicts(("ab",)))
    rows = [
        {**_where(r["arm"], r["seed"], 0), "prompt_id": r["prompt_id"], "measure": "win_rate"}
        | {"value": float(r["preferred"] == "A")}
        for r in _verdicts(("ab",))
    ]
    scores = _parquet(tmp_path / "scores.parquet", rows)
    both = [report(of_tables([path]), [_prediction(QUANTITY)]) for path in (verdicts, scores)]
    one, two = ({m.quantity: m for m in found.measurements}[QUANTITY] for found in both)
    assert one.per_seed == pytest.approx(two.per_seed)
    assert one.within == two.within
    assert "720 of 720 comparisons were asked in one order alone" in str(one.note)
    with pytest.raises(InputError, match="win_rate stands in the scores and follows again"):
        of_tables([verdicts, scores])


def test_split_and_unreadable_verdicts_are_counted_as_they_are(tmp_path: Path) -> None:
    def rows(prompt: int, ab: str, ba: str) -> list[dict[str, Any]]:
        at = _where("dpo", 0, prompt)
        return [{**at, "order": o, "preferred": p} for o, p in (("ab", ab), ("ba", ba))]

    table = rows(0, "A", "B") + rows(1, "A", "A") + rows(2, "B", "A") + rows(3, "A", "invalid")
    arm = of_tables([_csv(tmp_path / "v.csv", table)]).arms["fig3", "dpo", ""]
    assert arm.column(0, "win_rate") == {"t3_0": 1.0, "t3_1": 0.5, "t3_2": 0.0}
    assert arm.metrics[0]["invalid"] == 1
    assert arm.metrics[0]["win_rate_one_order"] == pytest.approx(3 / 4)


def test_arms_on_other_prompts_are_said_to_be(tmp_path: Path) -> None:
    rows = [r for r in _verdicts() if r["arm"] != "dpo" or int(r["prompt_id"][3:]) < 30]
    path = _csv(tmp_path / "v.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets write UTF-8
    found = {m.quantity: m for m in report(of_tables([path]), []).measurements}
    assert found[QUANTITY].note == "intervals over prompts on 30 of 60: the others differ"
    assert found["win_rate[online_dpo_dpo] - win_rate[dpo_2x]"].note is None


def test_a_length_control_without_a_fit_says_so(tmp_path: Path) -> None:
    always = [{**row, "preferred": "A" if row["order"] == "ab" else "B"} for row in _verdicts()]
    paths = [_csv(tmp_path / "v.csv", always), _csv(tmp_path / "s.csv", _samples())]
    found = {m.quantity: m for m in report(of_tables(paths), []).measurements}
    none = found["length_controlled_win_rate[dpo]"]
    assert (none.value, none.per_seed) == (None, ())
    assert "separable" in str(none.note)
    words = next(w for w in lines(report(of_tables(paths), [])) if none.quantity in w)
    assert "nothing" in words
    assert "separable" in words


@pytest.mark.parametrize("others", [(), ("12b", "")])  # sizes of another figure in one table
def test_sizes_of_fig4_are_crossed(tmp_path: Path, others: tuple[str, ...]) -> None:
    rows = [
        {
            "figure": "fig4",
            "arm": f"best_of_25_by_{rm}",
            "size": policy,
            "seed": seed,
            "prompt_id": prompt,
            "measure": "win_rate",
            "value": min(1.0, 0.2 + 0.1 * p + 0.01 * seed + 0.001 * prompt),
        }
        for rm in ("6.9b", "1.4b")
        for p, policy in enumerate(("1.4b", "6.9b"))
        for seed in range(3)
        for prompt in range(5)
    ]
    rows += [{**rows[0], "figure": "fig3", "arm": "dpo", "size": size} for size in others]
    found = report(of_tables([_parquet(tmp_path / "s.parquet", rows)]), [])
    measured = {m.quantity: m for m in found.measurements}
    names = "win_rate[best_of_25_largest_{0}] - win_rate[best_of_25_smallest_{0}]"
    assert measured[names.format("rm")].per_seed == pytest.approx((0, 0, 0))
    assert measured[names.format("policy")].per_seed == pytest.approx((0.1, 0.1, 0.1))


def _broken(**changes: Any) -> list[dict[str, Any]]:
    """Three good rows of scores, the second with something changed; None leaves a column out."""
    rows = [
        {**_where("dpo", 0, prompt), "measure": "win_rate", "value": 0.5} for prompt in range(3)
    ]
    for name, value in changes.items():
        if value is None:
            rows = [{k: v for k, v in row.items() if k != name} for row in rows]
        elif name in rows[1]:
            rows[1][name] = value
        else:
            rows = [{**row, name: value} for row in rows]
    return rows


@pytest.mark.parametrize("write", [_csv, _parquet])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": None}, "lacks column 'seed'; a table of scores has figure, arm"),
        ({"value": None}, "lacks column 'value'"),
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"value": float("nan")}, "row 2: win_rate must lie in 0..1, got"),
        ({"value": 1.5}, "row 2: win_rate must lie in 0..1, got"),
        ({"figure": "fig2"}, "row 2: unknown figure 'fig2'; known: fig3"),
        ({"arm": "ppo"}, "row 2: unknown arm 'ppo' of fig3; known: sft, dpo"),
        ({"measure": "bleu"}, "row 2: unknown measure 'bleu'"),
        ({"prompt_id": "t3_0"}, r"row 2: says again what .*row 1 says"),
        ({"prompt_id": " "}, "row 2: prompt_id is missing"),
        ({"seed": -1}, "row 2: seed must be a whole number >= 0"),
    ],
)
def test_a_bad_table_is_one_error_with_file_and_row(
    tmp_path: Path, write: Any, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / f"table.{'csv' if write is _csv else 'parquet'}", _broken(**changes))
    with pytest.raises(InputError, match=message) as error:
        of_tables([path])
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("figure,arm,seed,prompt_id,measure,value\n", "no rows"),
        ("", "lacks column"),
        ("figure,arm,seed,prompt_id,measure,value\nfig3,dpo\n", "row 1: 2 fields, the header 6"),
        ("figure,figure,seed,prompt_id,measure,value\n", "a column stands twice"),
    ],
)
def test_a_torn_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        of_tables([path])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    cases = (
        ("x.parquet", "no parquet"),
        ("x.csv", "no csv in UTF-8"),
        ("x.txt", "neither .csv nor .parquet"),
        ("absent.csv", "no such file"),
    )
    for name, message in cases:
        with pytest.raises(InputError, match=message):
            list(read(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "AB"}, "row 1: order is 'AB', none of ab, ba"),
        ({"preferred": '"A"'}, "row 1: preferred is '\"A\"', none of A, B, invalid"),
    ],
)
def test_a_verdict_is_what_it_says_or_an_error(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    row = {**_where("dpo", 0, 0), "order": "ab", "preferred": "A", **changes}
    with pytest.raises(InputError, match=message):
        of_tables([_csv(tmp_path / "v.csv", [row])])


def test_the_command_prints_or_writes_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(_csv(tmp_path / "v.csv", _verdicts()))
    save(tmp_path / "p.json", "predictions", [_prediction(QUANTITY)], task=None)
    line = ["compare", "--table", table, "--predictions", str(tmp_path / "p.json")]
    assert main([*line, "--json", "--out", str(tmp_path / "out")]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["verdicts"][0]["outcome"] == "supported"
    assert "order and sign, never in size" in body["carry_over"]
    written = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert written["verdicts"] == body["verdicts"]
    assert main(line) == 0
    assert "speaks for it" in capsys.readouterr().out
    for bad in ([], ["out/study", "--table", table], ["out/study", "--out", "x"]):
        assert main(["compare", *bad]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
