"""The bridge's table in words for a terminal: plain aligned lines, none cut, at most 80 wide."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from theory import predictions
from theory.predictions import SURE, TAIL

WIDTH = 80  # characters of the narrowest terminal that is served
Row = dict[str, Any]  # a row of bridge.parquet
ARMS = {  # head of its column
    "sft": "SFT",
    "dpo": "DPO",
    "dpo_2x": "DPO\n(2x)",
    "online_dpo_sft": "online DPO\n(SFT)",
    "online_dpo_dpo": "online DPO\n(DPO)",
    "local_rm_policy": "local\nmodel",
}
ROADS = {
    ("other seed: dpo to dpo", "kl"): "DPO,\nanother seed",
    ("other seed: local_rm to local_rm", "kl"): "local model,\nanother seed",
    ("other class: local_rm to dpo", "kl"): "local model\nto DPO",
    ("other class: local_rm to dpo", "kl_back"): "DPO to\nlocal model",
    ("other seed: dpo to dpo", "moved"): "DPO moved\nfrom SFT",
}
JUDGED = ("supported", "contradicted", "inconclusive")


def lines_of(rows: Sequence[Row], seeds: int) -> Iterator[str]:
    """Everything that the table says: policies, Theorem 2.2, what they rest on, and verdicts.

    The verdicts come last, and of these the contradicted ones, so that a terminal ends with them.
    """
    yield from _policies(rows, seeds)
    yield from _roads(rows)
    yield from _assumptions(rows)
    yield from _verdicts([row for row in rows if row["part"] == "verdict"])


# --- what a policy is -----------------------------------------------------------------------------


def _policies(rows: Sequence[Row], seeds: int) -> Iterator[str]:
    over = f"mean over {seeds} seeds ± half of the 95% t interval"
    for title, measure, scale, digits in (
        (f"KL to the optimum, nats, exact; {over}", "kl_to_optimum", 1.0, 2),
        (f"Win rate, percent, exact; {over}", "win_rate", 100.0, 1),
    ):
        found = _values(rows, "policy")
        shown = {
            cell: [_spread(values.get((arm, measure), ()), scale, digits) for arm in ARMS]
            for cell, values in found.items()
        }
        yield from _section(title, ["cell", *ARMS.values()], shown)


def _spread(values: Sequence[float], scale: float, digits: int) -> str:
    """'1.39±0.44'; '1.23' of a policy that all seeds share; '-' where there is none."""
    if not values:
        return "-"
    mean = f"{scale * sum(values) / len(values):.{digits}f}"
    return mean + (f"±{scale * half_width(values):.{digits}f}" if len(values) > 1 else "")


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% t interval of the mean of (n,) values, n > 1; the values' unit."""
    from scipy import stats

    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return float(stats.t.ppf(1 - TAIL, n - 1)) * (variance / n) ** 0.5


def _roads(rows: Sequence[Row]) -> Iterator[str]:
    title = (
        "Theorem 2.2 says 0: KL(soft RL of the reward model || the policy), nats, mean over pairs "
        "of runs; last column for scale: KL(DPO || SFT)"
    )
    shown = {
        cell: [_mean(values, key) for key in ROADS]
        for cell, values in _values(rows, "theorem_2_2").items()
    }
    yield from _section(title, ["cell", *ROADS.values()], shown)
    exact = [
        abs(row["value"])
        for row in rows
        if row["name"].startswith("same fit") and row["measure"] in ("kl", "kl_back")
    ]
    if exact:
        yield f"The RL step alone misses by at most {max(exact):.0e} nats."


def _assumptions(rows: Sequence[Row]) -> Iterator[str]:
    """What the toy forecast and Theorem 2.2 assume and this rung breaks, as numbers."""
    fits, models = _values(rows, "likelihood"), ("global_rm", "local_rm", "dpo_rm")
    head = ["cell", "KL(SFT ||\nreference),\nnats", "DPO's mass\noff the\ntask"]
    head += [f"accuracy\n{name.removesuffix('_rm')}\nmodel" for name in models]
    head += ["best\npossible\naccuracy"]
    heads = [("sft", "kl_to_reference"), ("dpo", "mass_off_task")]
    heads += [(name, "val_accuracy") for name in models] + [("global_rm", "best_accuracy")]
    shown = {
        cell: [_mean({**values, **fits.get(cell, {})}, key) for key in heads]
        for cell, values in _values(rows, "policy").items()
    }
    title = (
        "Assumptions of the forecast, measured: SFT is the reference, all mass is on the task, the "
        "global reward model knows its features"
    )
    yield from _section(title, head, shown)
    shown = {cell: _reached(values) for cell, values in fits.items()}
    head = ["cell", "prompts with\na maximiser", "least\npossible", "DPO", "local\nmodel"]
    title = (
        "Assumptions of Theorem 2.2, measured: the likelihood has a maximum, and training reaches "
        "it (losses on the training pairs, nats a pair)"
    )
    yield from _section(title, head, shown)


def _reached(values: dict[tuple[str, str], list[float]]) -> list[str]:
    pairs = "training pairs"
    counts = [_mean(values, (pairs, name), 0) for name in ("prompts_with_maximiser", "prompts")]
    losses = ("least_loss", "dpo_loss", "local_rm_loss")
    return [" of ".join(counts), *(_mean(values, (pairs, name)) for name in losses)]


def _values(rows: Iterable[Row], part: str) -> dict[str, dict[tuple[str, str], list[float]]]:
    """cell -> (name, measure) -> a value a run, on the main branch at the main size."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if row["part"] == part:
            of_cell = found.setdefault(row["cell"], {})
            if not row["branch"] and not row["size"]:
                of_cell.setdefault((row["name"], row["measure"]), []).append(row["value"])
    return found


def _mean(values: dict[tuple[str, str], list[float]], key: tuple[str, str], digits: int = 3) -> str:
    found = values.get(key)
    return _number(sum(found) / len(found), digits) if found else "-"


# --- verdicts -------------------------------------------------------------------------------------


def _verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """A claim in full, below it a line a cell; then the counts; last what is contradicted."""
    if not rows:
        return
    yield from _paragraph(
        "Forecast and measured: the paper's claim; below it, by cell, the toy forecast, the "
        "measured mean [95% t interval over seeds], and the verdict on the claim"
    )
    claims: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        claims.setdefault((row["measure"], claim(row), row.get("unit") or ""), []).append(row)
    for (figure, words, unit), found in claims.items():
        yield from ("", figure + (f", {unit}" if unit else ""), words)
        wide = max(len(row["cell"]) for row in found)
        yield from (f"  {row['cell']:<{wide}}  {_judged(row)}" for row in found)
    yield from _counts(rows)
    yield from _contradicted(rows)


def claim(row: Row) -> str:
    """What the paper says of a verdict's quantity: '... > 0', '... < 0' or '... within 0.02'."""
    if row["relation"] == "equal":
        return f"{row['name']} within {row['margin']:g}"
    return f"{row['name']} {'>' if row['relation'] == 'greater' else '<'} 0"


def _judged(row: Row) -> str:
    return f"toy {_signed(row['predicted'])}  measured {_measured(row)}  {row['outcome']}"


def _measured(row: Row) -> str:
    if row["low"] is None or row["high"] is None:
        return _signed(row["value"])
    return f"{_signed(row['value'])} [{_signed(row['low'])}, {_signed(row['high'])}]"


def _signed(value: float | None) -> str:
    """Three decimals and a sign, or '-' for None."""
    return "-" if value is None else _number(value, 3, "+")


def _number(value: float, digits: int, sign: str = "") -> str:
    """With so many decimals; what they would print as 0 and is not, in powers of ten."""
    kind = ".0e" if 0 < abs(value) < 0.5 * 10**-digits else f".{digits}f"
    return f"{value:{sign}{kind}}"


def _counts(rows: Sequence[Row]) -> Iterator[str]:
    others = [row["outcome"] for row in rows if row["outcome"] not in JUDGED]
    outcomes = [*JUDGED, *dict.fromkeys(others)]
    cells: dict[str, Counter[str]] = {}
    for row in rows:
        for name in (row["cell"], "all cells"):
            cells.setdefault(name, Counter())[row["outcome"]] += 1
    cells["all cells"] = cells.pop("all cells")  # last
    shown = {
        cell: [*(str(count[outcome]) for outcome in outcomes), str(count.total())]
        for cell, count in cells.items()
    }
    yield from _section("Verdicts", ["cell", *outcomes, "of"], shown)


def _contradicted(rows: Sequence[Row]) -> Iterator[str]:
    """Every contradicted claim by name, and whether the toy forecast had foreseen it."""
    found = [row for row in rows if row["outcome"] == "contradicted"]
    if not found:
        yield from _paragraph(f"Contradicted: none of {len(rows)} claims.")
        return
    known = sum(foreseen(row) for row in found)
    yield from _paragraph(
        f"Contradicted, {len(found)} of {len(rows)} claims: the whole interval lies on the other "
        f"side. The toy forecast had foreseen {known} of them: it lies there itself, by more than "
        f"{SURE:.0f} of its standard errors. {by_chance(rows)}"
    )
    for row in found:
        how = "foreseen" if foreseen(row) else "not foreseen"
        yield f"  {row['measure']}, {row['cell']}, {how}:"
        yield f"  {claim(row)}"
        yield f"    {_judged(row)}"


def foreseen(row: Row) -> bool:
    """Whether a contradicted claim's forecast lies where the measurement does, and surely so."""
    return predictions.foreseen(
        row["predicted"],
        row["predicted_error"],
        row["value"],
        relation=row["relation"],
        margin=row["margin"],
    )


def by_chance(rows: Sequence[Row]) -> str:
    """How many of these 95% intervals would lie on the other side were every difference 0."""
    sides = sum(row["relation"] != "equal" and row["low"] is not None for row in rows)
    return f"Were every difference 0, chance alone would contradict about {TAIL * sides:.0f}."


# --- lines ----------------------------------------------------------------------------------------


def _paragraph(text: str) -> Iterator[str]:
    """An empty line, then the text, wrapped."""
    yield ""
    yield from textwrap.wrap(text, WIDTH)


def _section(title: str, head: Sequence[str], shown: dict[str, list[str]]) -> Iterator[str]:
    """A title and a table of a line a cell; nothing where there is no cell."""
    if shown:
        yield from _paragraph(title)
        yield from columns([head, *([cell, *values] for cell, values in shown.items())])


def columns(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table's lines: the first column to the left, the others to the right, two blanks between.

    The first row is the head, over a rule; a line break in it makes another line.
    """
    parts = [name.split("\n") for name in table[0]]
    high = max(map(len, parts))
    head = [[""] * (high - len(part)) + part for part in parts]
    body = [[row[i] for row in table[1:]] for i in range(len(head))]
    wide = [max(map(len, [*top, *below])) for top, below in zip(head, body, strict=True)]
    for row in zip(*head, strict=True):
        yield _line(row, wide)
    yield "-" * (sum(wide) + 2 * len(wide) - 2)
    for row in table[1:]:
        yield _line(row, wide)


def _line(row: Sequence[str], wide: Sequence[int]) -> str:
    pads: Sequence[Callable[[str, int], str]] = (str.ljust, *[str.rjust] * (len(row) - 1))
    cut = (pad(text, width) for pad, text, width in zip(pads, row, wide, strict=True))
    return "  ".join(cut).rstrip()
