"""What the bridge prints: every claim in full, 80 columns, the contradicted ones last."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import pytest

from theory.bridge import cells
from theory.bridge_rows import SCHEMA, VERIFIER
from theory.bridge_text import (
    ARMS,
    ROADS,
    WIDTH,
    by_chance,
    claim,
    columns,
    foreseen,
    half_width,
    lines_of,
)

CELLS = [cell.name for cell in cells()]
LONG = "win_rate[best_of_25_largest_rm] - win_rate[best_of_25_smallest_rm]"
LONGEST = "val_accuracy_on_dpo_pairs[global_rm] - val_accuracy_on_dpo_pairs[local_rm]"
OUTCOMES = ("supported", "contradicted", "inconclusive")
Row = dict[str, Any]


def row(cell: str, part: str, name: str, measure: str, value: float | None, **more: Any) -> Row:
    """One row of the table; what is not named is null."""
    start = {**dict.fromkeys(SCHEMA), "branch": "", "size": "", "part": part}
    return {**start, "cell": cell, "name": name, "measure": measure, "value": value, **more}


def verdict(cell: str, name: str, outcome: str, value: float = -0.1, **more: Any) -> Row:
    """A verdict; unless said otherwise of Fig. 3, "greater", forecast at 0.05 +- 0.01."""
    start = {"low": value - 0.05, "high": value + 0.05, "predicted": 0.05, "predicted_error": 0.01}
    start |= {"relation": "greater", "outcome": outcome, "unit": "win-rate points (0-1)"}
    return row(cell, "verdict", name, "fig3", value, **{**start, **more})


def whole() -> list[Row]:
    """Nine cells with three seeds each: every policy, road, fit, and three claims."""
    found = []
    for i, cell in enumerate(CELLS):
        for name in ARMS:
            seeds = (None,) if name == "sft" else range(3)
            for seed in seeds:
                value = 3.0 + (0.25 * seed if seed else 0.0)
                found.append(row(cell, "policy", name, "kl_to_optimum", value, seed=seed))
                found.append(row(cell, "policy", name, "win_rate", value / 10, seed=seed))
        found.append(row(cell, "policy", "sft", "kl_to_reference", 0.25))
        found.append(row(cell, "policy", "dpo", "mass_off_task", 0.125, seed=0))
        found += [row(cell, "theorem_2_2", name, measure, 0.5, seed=0) for name, measure in ROADS]
        for name in ("global_rm", "local_rm", "dpo_rm"):
            found += [row(cell, "likelihood", name, measure, 0.75, seed=0) for measure in VERIFIER]
        for name in ("pairs", "prompts", "prompts_with_maximiser", "least_loss", "dpo_loss"):
            found.append(row(cell, "likelihood", "training pairs", name, 4.0, seed=0))
        found.append(verdict(cell, LONGEST, OUTCOMES[i % 3], value=-0.5))
        found.append(verdict(cell, LONG, "inconclusive", relation="equal", margin=0.02))
    return found


def said(rows: list[Row]) -> list[str]:
    """The lines."""
    return list(lines_of(rows, seeds=3))


def test_nothing_is_cut_and_nothing_is_wider_than_a_terminal():
    lines = said(whole())
    assert [line for line in lines if len(line) > 80] == []
    assert not any("…" in line or "..." in line for line in lines)
    assert lines.count(f"{LONGEST} > 0") == 1
    assert lines.count(f"{LONG} within 0.02") == 1
    judged = [line for line in lines if "measured -0.500 [-0.550, -0.450]" in line]
    of_cells = [line for line in judged if any(line.startswith(f"  {cell} ") for cell in CELLS)]
    assert len(of_cells) == len(CELLS)
    assert all("toy +0.050" in line for line in judged)


def test_a_cell_too_many_columns_wide_would_be_seen():
    """The twin: side by side, nine cells do not fit, which is why they stand one below another."""
    assert max(map(len, columns([["claim", *CELLS], [LONGEST, *["+0.050"] * 9]]))) > WIDTH


def test_verdicts_are_counted_by_cell_and_in_total():
    rows = whole()
    lines = said(rows)
    table = lines[lines.index("Verdicts") + 1 :]
    assert table[0].split() == ["cell", *OUTCOMES, "of"]
    counts = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in table[2 : 3 + len(CELLS)]}
    assert list(counts) == [*CELLS, "all cells"]
    for cell, found in counts.items():
        mine = [r for r in rows if r["part"] == "verdict" and cell in (r["cell"], "all cells")]
        expected = Counter(r["outcome"] for r in mine)
        assert found == [*(str(expected[name]) for name in OUTCOMES), str(len(mine))]


def test_an_outcome_beside_the_three_has_its_own_column():
    missing = dict.fromkeys(("value", "low", "high", "predicted"))
    absent = {**verdict("a", LONG, "not measured"), **missing}
    lines = said([absent, verdict("a", LONGEST, "supported")])
    assert "  a  toy -  measured -  not measured" in lines
    assert "cell       supported  contradicted  inconclusive  not measured  of" in lines
    assert lines[-1] == "Contradicted: none of 2 claims."


def test_the_contradicted_claims_end_the_output_by_name():
    rows = whole()
    lines = said(rows)
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("Contradicted")) :]
    against = [r for r in rows if r["outcome"] == "contradicted"]
    assert f"Contradicted, {len(against)} of 18 claims" in last[0]
    listed = [line for line in last if line.startswith("  fig3, ")]
    assert listed == [f"  fig3, {r['cell']}, not foreseen:" for r in against]
    assert last.count(f"  {LONGEST} > 0") == len(against)
    assert last[-1].endswith("contradicted")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"predicted": -0.03}, True),
        ({"predicted": -0.019}, False),  # within two standard errors of 0
        ({"predicted": 0.03}, False),
        ({"predicted": None}, False),
        ({"predicted": -0.03, "value": 0.1, "relation": "less"}, False),
        ({"predicted": 0.03, "value": 0.1, "relation": "less"}, True),
        ({"predicted": -0.03, "relation": "equal", "margin": 0.02}, False),
        ({"predicted": -0.05, "relation": "equal", "margin": 0.02}, True),
    ],
)
def test_foreseen_is_what_the_forecast_itself_surely_says(more: Row, expected: bool):
    found = {**verdict("a", LONG, "contradicted"), **more}
    assert foreseen(found) is expected
    assert (", foreseen:" in "\n".join(said([found]))) is expected


def test_chance_alone_contradicts_one_side_of_a_95_percent_interval():
    rows = [verdict("a", LONG, "inconclusive")] * 120
    assert by_chance(rows).endswith("about 3.")
    equal = [verdict("a", LONG, "inconclusive", relation="equal", margin=0.1)] * 120
    assert by_chance(equal).endswith("about 0.")
    assert by_chance([*rows, *equal]) == by_chance(rows)


def test_relations_are_told_apart():
    for relation, words in (("greater", "> 0"), ("less", "< 0"), ("equal", "within 0.02")):
        found = verdict("a", "x[b]", "supported", relation=relation, margin=0.02)
        assert claim(found) == f"x[b] {words}"


def test_the_interval_is_students_t():
    values = [1.0, 2.0, 4.0]
    quantile = 0.95 * (2 / (4 * 0.975 * 0.025)) ** 0.5  # t(0.975) of 2 degrees, in closed form
    by_hand = quantile * statistics.stdev(values) / 3**0.5
    assert half_width(values) == pytest.approx(by_hand, rel=1e-9)
    assert half_width([value + 7 for value in values]) == pytest.approx(by_hand, rel=1e-9)
    assert half_width([-3 * value for value in values]) == pytest.approx(3 * by_hand, rel=1e-9)
    rows = [row("a", "policy", "dpo", "kl_to_optimum", v, seed=i) for i, v in enumerate(values)]
    other = row("a", "policy", "dpo", "kl_to_optimum", 99.0, seed=0, branch="narrow")
    line = next(line for line in said([*rows, other]) if line.startswith("a "))
    assert line.split()[2] == f"{7 / 3:.2f}±{by_hand:.2f}"


def test_small_numbers_are_not_printed_as_zero():
    found = verdict("a", LONG, "supported", value=2e-4, low=7e-5, high=3.4e-4, predicted=0.0)
    assert "  a  toy +0.000  measured +2e-04 [+7e-05, +3e-04]  supported" in said([found])


def test_the_rl_step_alone_is_said_with_its_largest_miss():
    road = "same fit: dpo to dpo"
    rows = [row("a", "theorem_2_2", road, "kl", -3e-16, seed=s) for s in (0, 1)]
    rows.append(row("a", "theorem_2_2", road, "moved", 0.5, seed=0))
    assert "The RL step alone misses by at most 3e-16 nats." in said(rows)


def test_columns_stand_below_their_heads():
    assert list(columns([["cell", "a\nlong head", "b"], ["x", "1", "22"]])) == [
        "              a",
        "cell  long head   b",
        "-------------------",
        "x             1  22",
    ]
